"""Doing together what many ask for one by one: the bundle leaves at once, or when the one before is back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from domain.errors import InternalError, Overloaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


class Gathering(Generic[T, R]):
    """`work` for many at a time: group commit, and its like.

    While fewer than `at_once` calls of `work` are under way, an item leaves without waiting; else it leaves
    with the others that have come meanwhile, `most` at a time. More than `waiting` may not wait: Overloaded.
    `work` gives a result for each item, in order; what it raises, all of its items raise.
    A caller who is cancelled disturbs nobody: its item travels on.
    Source: the group commit of databases (DeWitt et al., SIGMOD 1984).
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        most: int,
        at_once: int = 1,
        waiting: int = 100_000,
    ) -> None:
        self._work = work
        self._most = most
        self._at_once = at_once
        self._allowed = waiting
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, item: T) -> asyncio.Future[R]:
        """The result of `work` for `item`, to be awaited."""
        if len(self._waiting) >= self._allowed:
            raise Overloaded("Too many jobs are on their way to be recorded, read or queued.")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, result))
        if self._under_way < self._at_once:
            self._under_way += 1
            task = loop.create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return result

    async def aclose(self) -> None:
        """Wait until all is done that was asked for."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self) -> None:
        try:
            while self._waiting:
                bundle, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._together(bundle)
        finally:
            # Not when the task is seen to be done: whoever comes between would wait for nobody.
            self._under_way -= 1

    async def _together(self, bundle: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._work([item for item, _ in bundle])
            if len(results) != len(bundle):
                raise InternalError(f"{len(results)} results for {len(bundle)} items")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  # all who wait for it raise it
            for _, waiter in bundle:
                if not waiter.done():
                    waiter.set_exception(error)
        except BaseException:
            for _, waiter in (*bundle, *self._waiting):  # nobody will go on with it
                waiter.cancel()
            self._waiting = []
            raise
        else:
            for (_, waiter), result in zip(bundle, results, strict=True):
                if not waiter.done():
                    waiter.set_result(result)
