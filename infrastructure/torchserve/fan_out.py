"""Several calls at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

T = TypeVar("T")
R = TypeVar("R")


async def fan_out(call: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int) -> list[R]:
    """The results of `call` for all `items`, in order, `at_once` of them at a time.

    Raises the first failure, and then the other calls are cancelled and over.
    """
    slots = asyncio.Semaphore(at_once)

    async def limited(item: T) -> R:
        async with slots:
            return await call(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(limited(item)) for item in items]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
