"""`model-dispatcher`: start the gateway, or check what it would start with."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

import uvicorn

from bootstrap.pipeline import policy_names
from bootstrap.settings import SettingsError, load
from interface.http.protocol import GatewayProtocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bootstrap.settings import Settings

GRACE = 30  # seconds that requests in flight get to finish when the gateway is stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2 where the configuration is not usable."""
    chosen = _parser().parse_args(arguments)
    try:
        settings = load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if chosen.command == "check":
        sys.stdout.write(describe(settings))
        return 0
    return serve(chosen.host, chosen.port)


def serve(host: str, port: int) -> int:
    """Run the gateway in the foreground until it is stopped by SIGINT or SIGTERM.

    Requests in flight get GRACE seconds to finish. The exit status is 0: uvicorn raises the signal again
    when it is done, and being stopped is no failure.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        "interface.main:app",
        host=host,
        port=port,
        http=GatewayProtocol,
        proxy_headers=False,  # nobody has said which proxies to believe
        timeout_graceful_shutdown=GRACE,
        access_log=False,  # we write our own
        server_header=False,
        log_config=None,
    )
    return 0


def describe(settings: Settings) -> str:
    """The servers, and the policies of every configured model and of all others, as text."""
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
    serving = commands.add_parser("serve", help="start the gateway")
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=int, default=8000)
    commands.add_parser("check", help="validate the configuration, print what it composes, and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
