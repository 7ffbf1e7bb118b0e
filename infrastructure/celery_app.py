"""Celery, set up so that nothing is lost: one task, two queues, and no results but our own records."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery import Celery  # type: ignore[import-untyped]
from celery.exceptions import Reject  # type: ignore[import-untyped]
from kombu.entity import Exchange, Queue

from infrastructure.celery_messages import INTERACTIVE, QUEUES, TASK, chunks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from domain.job import Chunk

LOGGER = logging.getLogger("dispatcher.jobs")


def celery_app(broker_url: str, work: Callable[[Sequence[Chunk]], None]) -> Celery:
    """A Celery application whose only task hands chunks to `work`.

    What `work` returns from is acknowledged; what it raises from is delivered again, to whomever, and after
    DELIVERIES of those it is dead. What names no chunks is dead at once. It is made to work, not to publish:
    that is CeleryQueue's, which waits for the broker's confirms.
    """
    app = Celery("dispatcher", broker=broker_url, set_as_current=False)
    app.conf.update(
        # --- nothing is lost
        task_acks_late=True,
        task_acks_on_failure=False,  # what Celery itself cannot run is dead at once
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # what is recorded first stays
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_heartbeat=10,
        # --- the queues, and nothing beside them
        task_queues=[_queue(name) for name in QUEUES],
        task_default_queue=INTERACTIVE,
        task_default_exchange="",
        task_default_routing_key=INTERACTIVE,
        task_create_missing_queues=False,
        # --- no results, and nothing but JSON
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        worker_send_task_events=False,
    )

    @app.task(name=TASK, shared=False)  # type: ignore[untyped-decorator]
    def dispatcher_work(chunks: object) -> None:
        try:
            valid = chunks_of(chunks)
        except ValueError as error:
            LOGGER.error("a message was set aside: %s", error)  # noqa: TRY400  (it says all)
            raise Reject(error, requeue=False) from None
        try:
            work(valid)
        except BaseException:  # noqa: BLE001  whatever it was, they are not done
            raise Reject(requeue=True) from None

    return app


def _queue(name: str) -> Queue:
    default = Exchange("")  # type: ignore[no-untyped-call]
    return Queue(  # type: ignore[no-untyped-call]
        name, default, routing_key=name, queue_arguments=dict(QUEUES[name])
    )
