"""What a job is submitted with: as a JSON body, or as a query before a body of JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from application.job_service import Submission
from domain.errors import FieldError, InvalidRequest
from domain.ports import IdempotencyKey
from domain.prediction import ModelRef
from domain.webhook import check_url
from interface.http.decoding import Decoder, Inputs, Name, check_number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from pydantic import ConfigDict

    from bootstrap.settings import JobsSettings
    from domain.prediction import CacheControl

LONGEST = 604_800  # seconds that a job may be given


Timeout = Annotated[
    float,
    Field(gt=0, le=LONGEST, allow_inf_nan=False, description="Seconds it may take; then it is expired."),
]
StrictTimeout = Annotated[Timeout, Field(strict=True)]
WebhookUrl = Annotated[
    str,
    Field(
        max_length=2_048,
        description="Told when the job is over (Standard Webhooks); only where webhooks are configured.",
        json_schema_extra={"format": "uri", "pattern": "^https?://"},
    ),
]


@dataclass(frozen=True, slots=True)
class JobBody(Inputs):
    """What a caller of `POST /jobs` sends as JSON."""

    timeout: StrictTimeout | None = None
    webhook_url: WebhookUrl | None = None


@dataclass(frozen=True, slots=True)
class BulkQuery:
    """What goes before a body of JSON lines, in the query."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    model_name: Name
    model_version: Name | None = None
    timeout: Timeout | None = None
    webhook_url: WebhookUrl | None = None
    parameters: ClassVar[Mapping[str, Any]] = {}


_BODY = Decoder(JobBody)
_QUERY = Decoder(BulkQuery, "query")


def decode(text: bytes, max_instances: int) -> JobBody:
    """The body that `text` spells. Raises InvalidRequest with a pointer to each thing that is wrong."""
    body = _BODY.decode(text)
    check_number(body.instances, max_instances)
    return body


def decode_query(query: Mapping[str, str]) -> BulkQuery:
    """The same of a query. Raises InvalidRequest."""
    try:
        return _QUERY.check(dict(query))
    except InvalidRequest as error:
        raise InvalidRequest(str(error)) from None  # pointers lead into a body


def check_query(query: Mapping[str, str]) -> None:
    """Refuse a query that says nonsense; a JSON body says all of it itself. Raises InvalidRequest."""
    if query:
        asked = decode_query({"model_name": "of the body", **query})
        if asked.webhook_url is not None:
            check_url(asked.webhook_url, http=True)


def submission(
    asked: JobBody | BulkQuery, limits: JobsSettings, *, bulk: bool, cache: CacheControl
) -> Submission:
    """What is `asked`, completed by what is configured. Raises InvalidRequest."""
    if asked.webhook_url is not None and not limits.webhook_secrets:
        message = "There are no webhooks here: the configuration has no secret to sign them with."
        raise InvalidRequest(message, [FieldError("/webhook_url", message)])
    if asked.webhook_url is not None:
        check_url(asked.webhook_url, http=bool(limits.webhook_networks))
    return Submission(
        ModelRef(asked.model_name, asked.model_version),
        asked.timeout or limits.timeout,
        limits.retention,
        asked.parameters,
        bulk=bulk,
        webhook=asked.webhook_url,
        cache=cache,
    )


class Identity:
    """What makes two submissions with one `Idempotency-Key` the same: all that was asked for."""

    def __init__(self, key: str, asked: Submission) -> None:
        self._partition, self._key = asked.partition, key
        options = [asked.model, asked.parameters, asked.timeout, asked.bulk, asked.webhook, asked.cache]
        self._hash = blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=16)

    def add(self, instances: bytes) -> None:
        """Take down a chunk."""
        self._hash.update(b"%d:" % len(instances))
        self._hash.update(instances)

    async def of(self, chunks: AsyncIterator[tuple[int, bytes]]) -> AsyncIterator[tuple[int, bytes]]:
        """`chunks`, taken down as they pass."""
        async for size, instances in chunks:
            self.add(instances)
            yield size, instances

    def key(self) -> IdempotencyKey:
        """The key with the fingerprint of what has passed."""
        return IdempotencyKey(self._partition, self._key, self._hash.hexdigest())
