"""Waiting for what nobody sets an Event for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def happened(event: Callable[[], object]) -> None:
    """Return when `event` is true; fail when it is not within five seconds."""
    async with asyncio.timeout(5):
        while not event():  # noqa: ASYNC110  (nobody sets an Event for it)
            await asyncio.sleep(0.001)
