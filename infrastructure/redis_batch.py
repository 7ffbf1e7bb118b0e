"""What many callers want of Redis, sent and answered together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from hiredis import pack_command
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    import asyncio

    from redis.asyncio.connection import AbstractConnection

Command: TypeAlias = tuple[bytes | str | int, ...]
Replies: TypeAlias = list[object]
"""What Redis said to each of several commands; a ResponseError to one that it refused."""
Values: TypeAlias = Sequence[bytes | None]


class Greeting(NamedTuple):
    """What Redis is asked whenever it has been connected to, and who hears what it says."""

    commands: Sequence[Command]
    heard: Callable[[Replies], None]


@dataclass(slots=True)
class _Call:
    """The place of one caller in a batch; nobody waits where `answer` is None."""

    count: int
    answer: asyncio.Future[Any] | None

    def settle(self, replies: object) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(replies)


@dataclass(slots=True)
class Batch:
    """Commands in order, then one MGET of all keys, so that it sees them done.

    `since` is when the first of it came, by the loop's clock; `size` counts commands and keys.
    Futures get what their caller asked for, or None if there is no answer; they may be cancelled.
    """

    since: float = 0.0
    size: int = 0
    _commands: list[bytes] = field(default_factory=list)
    _calls: list[_Call] = field(default_factory=list)
    _keys: list[bytes] = field(default_factory=list)
    _reads: list[_Call] = field(default_factory=list)

    def write(self, commands: Sequence[Command], replies: asyncio.Future[Replies | None] | None) -> None:
        packed = list(map(_packed, commands))  # which may raise: then nothing was written
        self.size += len(packed)
        self._commands += packed
        self._calls.append(_Call(len(commands), replies))

    def read(self, keys: Sequence[bytes], values: asyncio.Future[Values | None] | None) -> None:
        self.size += len(keys)
        self._keys += keys
        self._reads.append(_Call(len(keys), values))

    async def travel(self, connection: AbstractConnection) -> None:
        """One round trip. Raises RedisError or OSError: then `connection` is out of step."""
        packed = [*self._commands, _packed(("MGET", *self._keys))] if self._keys else self._commands
        await connection.send_packed_command(packed)
        for call in self._calls:
            call.settle([await _reply(connection) for _ in range(call.count)])
        if self._keys:
            values = await connection.read_response(disable_decoding=True)
            start = 0
            for call in self._reads:
                call.settle(values[start : start + call.count])
                start += call.count

    def abandon(self) -> None:
        """Whoever has no answer yet gets none."""
        for call in (*self._calls, *self._reads):
            call.settle(None)


async def _reply(connection: AbstractConnection) -> object:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as refusal:
        return refusal


def _packed(command: Command) -> bytes:
    return cast("bytes", pack_command(command))  # type: ignore[arg-type]  # it means tuple[T, ...]
