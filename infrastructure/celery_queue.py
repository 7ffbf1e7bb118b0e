"""The queue that processes share: RabbitMQ, with messages that Celery's workers understand."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, cast

from pamqp.commands import Basic

from domain.errors import QueueUnavailable
from domain.ports import Condition
from infrastructure.celery_messages import BULK, DEAD, INTERACTIVE, body, headers
from infrastructure.rabbitmq_connection import PROBE, RabbitMQConnection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_pika.abc import AbstractChannel
    from aiormq.channel import Channel

    from domain.job import Chunk

KINDS = {"interactive": INTERACTIVE, "bulk": BULK, "dead": DEAD}


class CeleryQueue:
    """A JobQueue in RabbitMQ: persistent messages in quorum queues, each confirmed.

    Nothing takes more than `timeout` seconds; while RabbitMQ cannot be used nobody waits at all.
    Whoever makes it closes it. `url` is of amqp:// or amqps://.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._connection = RabbitMQConnection(url)
        self._timeout = timeout

    async def connect(self) -> bool:
        """Whether it can be used, once that has been tried."""
        return await self._connection.connect()

    async def publish(self, chunks: Sequence[Chunk], *, bulk: bool) -> None:
        """As JobQueue.publish; interactive chunks travel, and are worked, in one message."""
        messages = [[chunk] for chunk in chunks] if bulk else [chunks]
        async with self._connection.channel(self._timeout) as channel:
            underlay = cast("Channel", await channel.get_underlay_channel())
            sending = (_send(underlay, each, BULK if bulk else INTERACTIVE) for each in messages)
            for error in await asyncio.gather(*sending, return_exceptions=True):
                if error is not None:
                    raise error

    async def is_empty(self, *, bulk: bool) -> bool | None:
        """Whether nothing waits to be delivered; None where RabbitMQ does not say."""
        try:
            async with self._connection.channel(self._timeout) as channel:
                return not await _waiting(channel, BULK if bulk else INTERACTIVE)
        except QueueUnavailable:
            return None

    async def condition(self) -> Condition:
        """As Component.condition, with the messages that wait and those that are dead.

        Asked by publishing: a RabbitMQ that is out of memory or disk does all else.
        """
        try:
            async with self._connection.channel(self._timeout) as channel:
                underlay = await channel.get_underlay_channel()
                await underlay.basic_publish(b"", routing_key=PROBE)
                return Condition(counts={kind: await _waiting(channel, name) for kind, name in KINDS.items()})
        except QueueUnavailable as error:
            return Condition(str(error))

    async def aclose(self) -> None:
        """Disconnect."""
        await self._connection.aclose()


async def _send(channel: Channel, chunks: Sequence[Chunk], queue: str) -> None:
    """Publish one task message. Returns when it is safe; raises DeliveryError where it was refused."""
    task_id = str(uuid.uuid4())
    properties = Basic.Properties(
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers(task_id),
        delivery_mode=2,
        correlation_id=task_id,
        message_id=task_id,
    )
    await channel.basic_publish(
        body(chunks), routing_key=queue, properties=properties, mandatory=True, wait=False
    )  # without `wait` it is not one at a time


async def _waiting(channel: AbstractChannel, name: str) -> int:
    """How many messages of a queue are with nobody."""
    queue = await channel.declare_queue(name, passive=True)
    return queue.declaration_result.message_count or 0
