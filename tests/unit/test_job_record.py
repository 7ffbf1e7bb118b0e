"""What a job's record must survive: other versions of us, and rubbish. The stores' tests show the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from domain.job import Failure, Job, JobStatus
from domain.prediction import ModelRef
from domain.webhook import Attempt, Delivery
from infrastructure.job_record import decode, encode

WEBHOOK = Delivery("http://x", (Attempt(1.0, 500, "no"),), 1, 2.0)
JOB = Job(
    *("a", ModelRef("m"), 1, 500, 1.0, 2.0, 3.0),
    status=JobStatus.FAILED,
    error=Failure("server-fault", "no"),
    webhook=WEBHOOK,
)


def test_a_record_of_a_newer_version_is_read_without_what_is_new() -> None:
    record: dict[str, Any] = json.loads(encode(JOB))
    for part in (record, record["error"], record["webhook"], record["webhook"]["attempts"][0]):
        part["invented later"] = {"x": 1}

    assert decode(json.dumps(record).encode()) == JOB


def test_a_record_of_an_older_version_is_read_with_the_defaults() -> None:
    record: dict[str, Any] = json.loads(encode(JOB))
    for later in ("error", "status"):
        del record[later]
    del record["webhook"]["attempts"][0]["problem"]

    read = decode(json.dumps(record).encode())

    assert (read.error, read.status) == (None, JobStatus.QUEUED)
    assert read.webhook == Delivery("http://x", (Attempt(1.0, 500),), 1, 2.0)


def test_a_status_is_one_of_ours() -> None:
    assert decode(encode(JOB)).status is JobStatus.FAILED


@pytest.mark.parametrize(
    "rubbish", [b"", b"[]", b"null", b"{}", b'"a"', b"\xff", encode(JOB).replace(b"failed", b"lost")]
)
def test_what_is_no_record_is_a_value_error(rubbish: bytes) -> None:
    with pytest.raises(ValueError, match="not the record of a job"):
        decode(rubbish)
