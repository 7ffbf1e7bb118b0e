"""`model-dispatcher`: the gateway, its workers, and what a person does from a shell."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from interface import job_commands
from interface.batch import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bootstrap.settings import Settings

GRACE = 30  # seconds that requests in flight get to finish when the gateway is stopped

# Each command imports what it needs when it runs: all of it together takes a second.
# ruff: noqa: PLC0415


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2 where it, or the configuration, is not usable."""
    chosen = _parser().parse_args(arguments)
    if chosen.command == "jobs":
        return job_commands.run(chosen)
    if chosen.command == "batch":
        from interface.batch import run

        return run.run(chosen)
    return _with_settings(chosen)


def _with_settings(chosen: argparse.Namespace) -> int:
    from bootstrap.settings import SettingsError, load

    try:
        settings = load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if chosen.command == "check":
        sys.stdout.write(describe(settings))
        return 0
    if chosen.command == "worker":
        from interface.worker.run import work

        return work(settings, events=chosen.events)
    return serve(chosen.host, chosen.port)


def serve(host: str, port: int) -> int:
    """Run the gateway in the foreground until it is stopped by SIGINT or SIGTERM.

    Requests in flight get GRACE seconds to finish. The exit status is 0: uvicorn raises the signal again
    when it is done, and being stopped is no failure. Raises SystemExit, with 3, where it cannot start.
    """
    import uvicorn

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _allow_connections()
    uvicorn.run(
        "interface.main:app",
        host=host,
        port=port,
        http="interface.http.protocol:GatewayProtocol",
        proxy_headers=False,  # nobody has said which proxies to believe
        timeout_graceful_shutdown=GRACE,
        access_log=False,  # we write our own
        server_header=False,
        log_config=None,
    )
    return 0


def _allow_connections() -> None:
    """Let this process open as many files as the system permits it: each connection is one.

    What it gets unasked is often 1,024, for the sake of programs that use select().
    """
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS permits less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def describe(settings: Settings) -> str:
    """The servers, and the policies of every configured model and of all others, as text."""
    from bootstrap.pipeline import policy_names

    lines = ["servers:"]
    for name, server in settings.servers.items():
        management = server.management_url or "none: versions and workers stay unknown"
        lines.append(f"  {name}: {server.url} (management: {management})")
    for name in (*settings.models, "any other model"):
        lines.append(f"{name}:")
        lines += [f"  {policy}" for policy in policy_names(settings, name)]
    return "\n".join([*lines, ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="model-dispatcher", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    job_commands.add_parser(commands)
    options.add_parser(commands)
    serving = commands.add_parser("serve", help="start the gateway")
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=_port, default=8000)
    working = commands.add_parser("worker", help="work jobs that gateways accept")
    working.add_argument("-E", "--events", action="store_true", help="tell Flower what is done")
    commands.add_parser("check", help="validate the configuration, print what it composes, and exit")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError("should be a number below 65536")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
