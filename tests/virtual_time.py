"""An event loop whose clock jumps to the next timer when nothing else is left to do.

Tests of minutes take milliseconds, and none sleeps.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import selectors
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for `timeout` seconds, says that they are over."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            msg = "nothing left to do and no timer set: the test would hang"
            raise RuntimeError(msg)
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time; sockets and threads do not belong on it."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an async test on a VirtualLoop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    del run.__wrapped__  # pytest would take it for an async test
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


def now() -> float:
    """The running loop's time, in seconds."""
    return asyncio.get_running_loop().time()
