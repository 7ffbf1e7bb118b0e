"""Starting a task."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


if sys.version_info >= (3, 12):

    def start(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that runs `coroutine`; its owner awaits or cancels it.

        It runs up to its first wait before this returns, which saves a turn of the loop.
        """
        return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)

else:

    def start(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that runs `coroutine`; its owner awaits or cancels it."""
        return asyncio.get_running_loop().create_task(coroutine)
