"""The queue that processes share: RabbitMQ, with messages that Celery's workers understand."""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, cast

import aio_pika
from aio_pika.exceptions import AMQPError, DeliveryError, ProbableAuthenticationError, PublishError
from pamqp.commands import Basic

from domain.errors import QueueUnavailable
from domain.ports import Condition
from infrastructure.celery_messages import BULK, DEAD, INTERACTIVE, QUEUES, body, headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aio_pika.abc import AbstractChannel, AbstractConnection
    from aiormq.channel import Channel

    from domain.job import Chunk

LOGGER = logging.getLogger("dispatcher.jobs")

CONNECT_TIMEOUT = 5.0  # seconds for TCP, TLS, login and the declaration of the queues
CLOSE_TIMEOUT = 1.0  # seconds; a broker that is blocked does not even answer that
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 1.0  # seconds
HICCUPS = 1  # failures that are not worth a word
HEARTBEAT = 5  # seconds; a connection is dead after 18 without a word
PROBE = "dispatcher.nobody"  # a queue that does not exist: what is sent there is confirmed and dropped

KINDS = {"interactive": INTERACTIVE, "bulk": BULK, "dead": DEAD}

REASONS = (
    (ProbableAuthenticationError, "RabbitMQ refuses the user name or password."),
    (PublishError, "RabbitMQ has lost the queue."),
    (DeliveryError, "The queue is full."),
    (TimeoutError, "RabbitMQ did not answer in time."),
)
LOST = "RabbitMQ cannot be reached, or closed the connection."


class CeleryQueue:
    """A JobQueue in RabbitMQ: persistent messages in quorum queues, each confirmed.

    `publish` takes `timeout` seconds at most. What is later than that gives up the connection, for everybody;
    while there is none nobody waits at all. One task connects, with an exponential back-off of 0.1 to 1 s,
    and a connection is used when RabbitMQ has confirmed a probe: while it is out of memory or disk it takes
    connections, and no messages. Whoever makes it closes it. `url` is of amqp:// or amqps://.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._url = url
        self._timeout = timeout
        self._channel: AbstractChannel | None = None
        self._lost = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._failures = 0  # since it could last be used
        self._problem = LOST  # why it cannot be used, where it cannot

    async def connect(self) -> bool:
        """Whether it can be used, once that has been tried."""
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._work())
        if not self._closed:
            await self._tried.wait()
        return self._channel is not None

    async def publish(self, chunks: Sequence[Chunk], *, bulk: bool) -> None:
        """As JobQueue.publish; interactive chunks travel, and are worked, in one message."""
        messages = [[chunk] for chunk in chunks] if bulk else [chunks]
        channel: AbstractChannel | None = None
        try:
            async with asyncio.timeout(self._timeout):
                channel = await self._usable()
                underlay = cast("Channel", await channel.get_underlay_channel())
                sending = (_send(underlay, each, BULK if bulk else INTERACTIVE) for each in messages)
                results = await asyncio.gather(*sending, return_exceptions=True)
            for error in results:
                if error is not None:
                    raise error
        except DeliveryError as error:  # of this message, and maybe of no other
            if isinstance(error, PublishError):
                self._give_up(channel)
            raise QueueUnavailable(_reason(error)) from None
        except asyncio.CancelledError as error:
            if _cancelled():
                raise
            raise QueueUnavailable(_reason(error)) from None
        except (TimeoutError, AMQPError, OSError, RuntimeError) as error:
            self._give_up(channel)
            raise QueueUnavailable(_reason(error)) from None

    async def is_empty(self, *, bulk: bool) -> bool | None:
        """Whether nothing waits to be delivered; None where RabbitMQ does not say."""
        try:
            async with asyncio.timeout(self._timeout):
                channel = await self._usable()
                queue = await channel.declare_queue(BULK if bulk else INTERACTIVE, passive=True)
        except (QueueUnavailable, TimeoutError, AMQPError, OSError, RuntimeError):
            return None
        except asyncio.CancelledError:
            if _cancelled():
                raise
            return None
        return not queue.declaration_result.message_count

    async def condition(self) -> Condition:
        """As Component.condition, with the messages that wait and those that are dead.

        Asked by publishing: a RabbitMQ that is out of memory or disk does all else.
        """
        channel: AbstractChannel | None = None
        try:
            async with asyncio.timeout(self._timeout):
                channel = await self._usable()
                underlay = await channel.get_underlay_channel()
                await underlay.basic_publish(b"", routing_key=PROBE)
                return Condition(counts={kind: await _waiting(channel, name) for kind, name in KINDS.items()})
        except QueueUnavailable as error:
            return Condition(str(error))
        except asyncio.CancelledError as error:
            if _cancelled():
                raise
            return Condition(_reason(error))
        except (TimeoutError, AMQPError, OSError, RuntimeError) as error:
            self._give_up(channel)
            return Condition(_reason(error))

    async def aclose(self) -> None:
        """Disconnect."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _usable(self) -> AbstractChannel:
        if self._channel is None and not self._tried.is_set():
            await self.connect()
        if self._channel is None:
            raise QueueUnavailable(self._problem)
        return self._channel

    def _give_up(self, channel: AbstractChannel | None) -> None:
        if channel is not None and channel is self._channel:
            self._channel = None
            self._lost.set()

    async def _work(self) -> None:
        try:
            while True:
                try:
                    async with self._connection() as channel:
                        await self._serve(channel)
                    self._failed(ConnectionError())
                except Exception as error:  # noqa: BLE001  whatever it is, it is tried again
                    self._failed(error)
                await asyncio.sleep(min(FIRST_BACKOFF * 2.0 ** min(self._failures - 1, 10), LONGEST_BACKOFF))
        finally:
            self._channel = None
            self._tried.set()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AbstractChannel]:
        """A channel with confirms, and all queues declared. `_lost` is set when it is lost."""
        self._lost.clear()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await aio_pika.connect(self._url, heartbeat=HEARTBEAT, name="model-dispatcher")
        connection.close_callbacks.add(self._on_close)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                channel = connection.channel(publisher_confirms=True, on_return_raises=True)
                channel.close_callbacks.add(self._on_close)
                await channel.initialize()
                for name, arguments in QUEUES.items():
                    await channel.declare_queue(name, durable=True, arguments=dict(arguments))
            yield channel
        finally:
            await _close(connection)

    async def _serve(self, channel: AbstractChannel) -> None:
        """Let `channel` be used until it is lost."""
        underlay = cast("Channel", await channel.get_underlay_channel())
        probe = asyncio.ensure_future(_probe(underlay))
        lost = asyncio.ensure_future(self._lost.wait())
        limit = CONNECT_TIMEOUT
        try:
            done, _ = await asyncio.wait((probe, lost), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._failed(TimeoutError())  # it may be blocked for long: nobody waits for that
                await asyncio.wait((probe, lost), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                return
            await probe
            self._recovered(channel)
            await lost
        finally:
            self._channel = None
            probe.cancel()
            lost.cancel()
            await asyncio.gather(probe, lost, return_exceptions=True)

    def _on_close(self, *_: object) -> None:
        self._channel = None
        self._lost.set()

    def _recovered(self, channel: AbstractChannel) -> None:
        if self._failures > HICCUPS:
            LOGGER.info("queue found")
        self._failures = 0
        self._channel = channel
        self._tried.set()

    def _failed(self, error: Exception) -> None:
        self._problem = _reason(error)
        self._failures += 1
        if self._failures == HICCUPS + 1:
            LOGGER.error("queue lost", extra={"fields": {"reason": self._problem}})
        self._tried.set()


def _cancelled() -> bool:
    """Whether the running task is: aiormq cancels whoever waits on a lost channel, too."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


async def _probe(channel: Channel) -> None:
    """Return when RabbitMQ takes messages: without memory or disk it takes the first of a connection."""
    for _ in range(2):
        await channel.basic_publish(b"", routing_key=PROBE)


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


async def _close(connection: AbstractConnection) -> None:
    with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.close()


def _reason(error: BaseException) -> str:
    """In our own words: those of RabbitMQ and of the network may name what is nobody's business."""
    return next((said for kind, said in REASONS if isinstance(error, kind)), LOST)
