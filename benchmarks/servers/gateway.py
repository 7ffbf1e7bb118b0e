"""The gateway, and the `dispatcher.toml` of every scenario."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.process import Program, free_port, status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FRAME = """\
[servers.local]
url = "{url}"
management_url = "{management_url}"
{key_file}

[models.{model}]
canary = "This is a test."
{policies}

[log]
level = "warning"
access = false
"""

SWITCHES = ("caching", "coalescing", "admission", "batching")


def policies(**settings: str) -> str:
    """The lines of a model's table that switch policies on, each as it is said here, and all others off.

    Deadline, balancing and the attempt timeout are always there.
    """
    return "\n".join(f"{name} = {settings.get(name, 'false')}" for name in SWITCHES)


OF_ONE = "{ max_size = 1 }"  # what batching costs by itself, before a stub that answers one prediction
NO_POLICY = policies()
ALL = policies(caching="true", coalescing="true", admission="true", batching="true")
# Texts of about one length are cheapest together; dispatcher.toml has the same for it.
LIKE_WITH_LIKE = "{ max_cost = 2500 }"
OF_MODEL = {
    "sentiment": policies(caching="true", coalescing="true", admission="true", batching=LIKE_WITH_LIKE),
    "light": ALL,
}
ALL_SINGLE = policies(caching="true", coalescing="true", admission="true", batching=OF_ONE)
ALONE = {
    "none": NO_POLICY,
    "caching (misses)": policies(caching="true"),
    "coalescing": policies(coalescing="true"),
    "admission": policies(admission="true"),
    "batching (of one)": policies(batching=OF_ONE),
}

# Tables of their own, appended. With the first, answers are kept in Redis instead of memory.
REDIS = '\n[redis]\nurl = "{url}"\n'
CACHE = "\n[cache]\nmax_bytes = {bytes}\n"
# Who waits for an answer gets 100 s: nobody who is measured is sent away with a job instead.
JOBS = '\n[jobs]\ndefault_model = "{model}"\nanswer_timeout = 100\nconcurrency = {concurrency}\n'
BROKER = 'broker = "{broker}"\nredis = "{redis}"\n'


def toml(
    model_policies: str,
    *,
    url: str,
    model: str = "m",
    management_url: str | None = None,
    key_file: Path | None = None,
    tables: str = "",
) -> str:
    """`dispatcher.toml` for one server; `management_url` is `url` where it is left out."""
    return (
        FRAME.format(
            url=url,
            management_url=management_url or url,
            key_file=f'key_file = "{key_file}"' if key_file else "",
            model=model,
            policies=model_policies,
        )
        + tables
    )


def start(folder: Path, cores: Sequence[int], config: str) -> tuple[Program, int]:
    """A gateway configured by `config`, once it is ready, and its port."""
    program, port = launch(folder, cores, config)
    program.wait_for(lambda: status(f"http://127.0.0.1:{port}/health/ready") == 200)
    return program, port


def launch(folder: Path, cores: Sequence[int], config: str) -> tuple[Program, int]:
    """The same without waiting for it."""
    port = free_port()
    return _run(folder, cores, config, "serve", "--host", "127.0.0.1", "--port", str(port)), port


def launch_worker(folder: Path, config: str) -> Program:
    """Who works the jobs of a gateway with the same `config`, without waiting for it."""
    return _run(folder, (), config, "worker")


def _run(folder: Path, cores: Sequence[int], config: str, *arguments: str) -> Program:
    folder.mkdir(parents=True)
    (folder / "dispatcher.toml").write_text(config, encoding="utf-8")
    environment = {
        "DISPATCHER_CONFIG": str(folder / "dispatcher.toml"),
        "DISPATCHER_JOBS__PATH": str(folder / "jobs.sqlite"),
    }
    command = [sys.executable, "-m", "interface.cli", *arguments]
    return Program(command, log=folder / f"{arguments[0]}.log", cores=cores, environment=environment)
