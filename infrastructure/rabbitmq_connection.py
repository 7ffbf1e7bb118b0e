"""The connection to RabbitMQ that a process has: with confirms, probed, and never waited for long."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, cast

import aio_pika
from aio_pika.exceptions import AMQPError, DeliveryError, ProbableAuthenticationError, PublishError

from domain.errors import QueueUnavailable
from infrastructure.celery_messages import QUEUES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel, AbstractConnection
    from aiormq.channel import Channel

LOGGER = logging.getLogger("dispatcher.jobs")

CONNECT_TIMEOUT = 5.0  # seconds for TCP, TLS, login and the declaration of the queues
CLOSE_TIMEOUT = 1.0  # seconds; a broker that is blocked does not even answer that
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 1.0  # seconds
HICCUPS = 1  # failures that are not worth a word
HEARTBEAT = 5  # seconds; a connection is dead after 18 without a word
PROBE = "dispatcher.nobody"  # a queue that does not exist: what is sent there is confirmed and dropped

REASONS = (
    (ProbableAuthenticationError, "RabbitMQ refuses the user name or password."),
    (PublishError, "RabbitMQ has lost the queue."),
    (DeliveryError, "The queue is full."),
    (TimeoutError, "RabbitMQ did not answer in time."),
)
LOST = "RabbitMQ cannot be reached, or closed the connection."


class RabbitMQConnection:
    """A channel with publisher confirms, and all queues declared; it is used by many at the same time.

    While there is none nobody waits at all: one task connects, with an exponential back-off of 0.1 to 1 s,
    and a connection is used when RabbitMQ has confirmed a probe: while it is out of memory or disk it takes
    connections, and no messages. Whoever makes it closes it. `url` is of amqp:// or amqps://.
    """

    def __init__(self, url: str) -> None:
        self._url = url
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

    @asynccontextmanager
    async def channel(self, seconds: float) -> AsyncIterator[AbstractChannel]:
        """The channel, for `seconds` at most: what takes longer gives up the connection, for everybody.

        Raises QueueUnavailable where there is none, and for whatever RabbitMQ and the network do meanwhile.
        """
        channel: AbstractChannel | None = None
        try:
            async with asyncio.timeout(seconds):
                channel = await self._usable()
                yield channel
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


async def _close(connection: AbstractConnection) -> None:
    with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.close()


def _reason(error: BaseException) -> str:
    """In our own words: those of RabbitMQ and of the network may name what is nobody's business."""
    return next((said for kind, said in REASONS if isinstance(error, kind)), LOST)
