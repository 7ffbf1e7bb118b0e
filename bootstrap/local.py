"""Everything on one machine, in the foreground: TorchServe and the gateway (`make run`).

TorchServe is started again when it dies; the gateway is not: when it goes, everything goes.
State lives in one folder (`.run/`): TorchServe's home with its keys, and both logs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bootstrap.child_process import Child, end_leftovers, end_with_parent, record
from bootstrap.terminal import Progress, complain, say
from infrastructure.torchserve.process import (
    LOOPBACK,
    Ports,
    TorchServe,
    TorchServeError,
    default_workers,
    is_free,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = {"model_name": "sentiment", "instances": ["I loved every minute of it."]}

START_TIMEOUT = 300.0  # seconds until the first prediction; 4 to 6 are usual
PATIENCE = 20.0  # seconds after which a log may say more than the gateway knows
GATEWAY_GRACE = 40.0  # seconds to end once told to: it gives requests in flight 30 (interface.cli.GRACE)
TORCHSERVE_GRACE = 10.0  # it takes 2 to 4
LONGEST_PAUSE = 30.0  # seconds between two starts of TorchServe
STEADY = 60.0  # seconds of life after which a death is the first one again


class LocalError(Exception):
    """It cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Local:
    """The two processes, and the folder of their state."""

    state: Path
    port: int
    server: TorchServe
    torchserve: Child
    gateway: Child

    @classmethod
    def plan(cls, state: Path, port: int, ports: Ports | None = None) -> Local:
        """What will run, with the gateway on `port`. Raises LocalError or TorchServeError."""
        if not is_free(port):
            raise LocalError(
                f"Port {port} is taken, or not yours to use. Another one: `make run PORT={port + 1}`."
            )
        server = TorchServe(
            home=state / "torchserve",
            model_store=ROOT / "model_store",
            models="sentiment.mar",
            python=ROOT / ".venv-torchserve" / "bin" / "python",
            ports=Ports.free(ports, besides=[port]),
            workers=default_workers(),
        )
        server.prepare()
        torchserve = Child(
            "TorchServe", server.command(), server.environment(), server.home, state / "torchserve.log"
        )
        gateway = Child(
            "the gateway",
            [sys.executable, "-m", "interface.cli", "serve", "--host", LOOPBACK, "--port", str(port)],
            _gateway_environment(server, state),
            ROOT,
            state / "gateway.log",
            orphaned=signal.SIGTERM,  # it drains, and ends processes of its own
        )
        return cls(state, port, server, torchserve, gateway)

    @property
    def url(self) -> str:
        """Where the gateway is."""
        return f"http://{LOOPBACK}:{self.port}"

    async def run(self) -> int:
        """Start both, stop both once told to, and return the exit code.

        That is 1 where one of them cannot be started, or the gateway ends by itself; the reason is printed.
        """
        told_to_stop = self._listen_to_signals()
        try:
            await self._serve(told_to_stop)
        except (LocalError, TorchServeError) as error:
            complain(error)
            return 1
        else:
            return 0
        finally:
            say("Stopping; requests in flight may finish …")
            await self.gateway.stop(GATEWAY_GRACE)
            await self.torchserve.stop(TORCHSERVE_GRACE)
            say("Stopped.")

    async def _serve(self, told_to_stop: asyncio.Event) -> None:
        started_at = time.monotonic()
        say("Starting TorchServe and the gateway; they are ready when a prediction has been answered.")
        await self._start()
        await _first(
            told_to_stop.wait(),
            self._first_prediction(),
            _fail_when_ended(self.torchserve),
            _fail_when_ended(self.gateway),
        )
        if not told_to_stop.is_set():
            self._announce(time.monotonic() - started_at)
            await _first(told_to_stop.wait(), self._keep_torchserve(), _fail_when_ended(self.gateway))

    def _listen_to_signals(self) -> asyncio.Event:
        """An event that SIGINT, SIGTERM and SIGHUP set; a second Ctrl-C ends both processes at once."""
        told_to_stop = asyncio.Event()

        def interrupted() -> None:
            if told_to_stop.is_set():
                self.gateway.kill()
                self.torchserve.kill()
            told_to_stop.set()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, interrupted)
        loop.add_signal_handler(signal.SIGTERM, told_to_stop.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(signal.SIGHUP, told_to_stop.set)
        return told_to_stop

    async def _start(self) -> None:
        for child in (self.torchserve, self.gateway):
            child.log.write_bytes(b"")
            await child.start()
        self._record()

    def _record(self) -> None:
        record((self.torchserve, self.gateway), self.state / "processes.json")

    async def _first_prediction(self) -> None:
        """Ask until a prediction is answered, and say meanwhile what it is that is waited for."""
        progress, started_at = Progress(), time.monotonic()
        with contextlib.closing(progress):
            while True:
                status, said = await asyncio.to_thread(_ask, self.port)
                waited = time.monotonic() - started_at
                if status == http.HTTPStatus.OK:
                    return
                if waited > START_TIMEOUT:
                    logs = f"{_log_of(self.torchserve)}\n{_log_of(self.gateway)}"
                    raise LocalError(
                        f"No prediction within {START_TIMEOUT:.0f} s; the last answer: {said}\n{logs}"
                    )
                hint = f" {_shown(self.torchserve.log)} may say more." if waited > PATIENCE else ""
                progress.show(waited, said + hint)
                await asyncio.sleep(0.2)

    async def _keep_torchserve(self) -> None:
        """Start TorchServe again whenever it dies, later each time that it dies young."""
        pause = 0.5
        while True:
            started_at = time.monotonic()
            how = await self.torchserve.ended()
            pause = 1.0 if time.monotonic() - started_at > STEADY else min(2 * pause, LONGEST_PAUSE)
            say(f"TorchServe {how} (log: {_shown(self.torchserve.log)}); starting it again in {pause:.0f} s.")
            await asyncio.sleep(pause)
            self.server.prepare()
            await self.torchserve.start()
            self._record()

    def _announce(self, seconds: float) -> None:
        body = json.dumps(EXAMPLE)
        say(
            f"\nReady after {seconds:.1f} s. Try it:\n\n"
            f"  curl -s {self.url}/dispatch_model -H 'Content-Type: application/json' -d '{body}'\n\n"
            f"  API      {self.url}/docs\n"
            f"  Models   {self.url}/models\n"
            f"  Health   {self.url}/health\n"
            f"  Logs     {_shown(self.gateway.log)}, {_shown(self.torchserve.log)}\n\n"
            "Ctrl-C stops everything."
        )


def _gateway_environment(server: TorchServe, state: Path) -> dict[str, str]:
    """The configuration, with the server called "local" replaced by the one that is started here."""
    return {
        "DISPATCHER_LOG__FORMAT": "console",  # its log goes to a file, but a person reads it
        "DISPATCHER_JOBS__PATH": str(state / "jobs.sqlite"),
        **os.environ,
        "DISPATCHER_SERVERS__LOCAL__URL": server.url,
        "DISPATCHER_SERVERS__LOCAL__MANAGEMENT_URL": server.management_url,
        "DISPATCHER_SERVERS__LOCAL__KEY_FILE": str(server.key_file),
    }


def _ask(port: int) -> tuple[int, str]:
    """Ask the gateway for a prediction: the status, 0 where there is none, and what it says."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=30)
    try:
        connection.request(
            "POST", "/dispatch_model", json.dumps(EXAMPLE), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        return answer.status, _detail(answer.read(), f"the gateway answers {answer.status}")
    except ConnectionRefusedError:
        return 0, "the gateway is starting"
    except (OSError, http.client.HTTPException) as error:
        return 0, f"the gateway does not answer ({error})"
    finally:
        connection.close()


def _detail(body: bytes, otherwise: str) -> str:
    """The `detail` of a problem (RFC 9457)."""
    with contextlib.suppress(ValueError):
        problem = json.loads(body)
        if isinstance(problem, dict) and "detail" in problem:
            return str(problem["detail"])
    return otherwise


async def _fail_when_ended(child: Child) -> None:
    how = await child.ended()
    message = f"{child.name} {how}.\n{_log_of(child)}"
    raise LocalError(message[0].upper() + message[1:])


async def _first(*waits: Coroutine[object, object, object]) -> None:
    """Wait for whichever comes first, raise what it raises, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_of(child: Child) -> str:
    return f"--- the end of {_shown(child.log)}:\n{child.last_lines() or '(empty)'}"


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the lock of this folder's `make run`. Raises LocalError where another one holds it."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise LocalError(
                f"`make run` runs already, as process {lock.read().strip()}. Stop it first."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 2**16:
        raise ValueError
    return port


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(description="Run TorchServe and the gateway on this machine.")
    parser.add_argument("--port", type=_port, default=8000, help="the gateway's port (8000)")
    parser.add_argument("--state", type=Path, default=ROOT / ".run", help="the folder of its state (.run)")
    options = parser.parse_args()
    state = options.state.absolute()
    end_with_parent(signal.SIGTERM, os.getppid())
    try:
        with only_one(state):
            end_leftovers(state / "processes.json")
            sys.exit(asyncio.run(Local.plan(state, options.port).run()))
    except (LocalError, TorchServeError) as error:
        complain(error)
        sys.exit(1)
    except KeyboardInterrupt:  # before there was anything to stop
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
