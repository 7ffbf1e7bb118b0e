"""What makes two instances the same question: the key of caches, leases and flights."""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domain.prediction import Json, ModelRef, PredictionRequest

SIZE = 16  # bytes: two of 2**53 questions share a fingerprint with a probability below 10**-6

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False).encode


def fingerprints(request: PredictionRequest) -> tuple[bytes, ...]:
    """One for each instance: a hash of partition, model, version, parameters and the instance itself.

    The order of an object's keys does not matter; 1, 1.0, true and "1" are different questions.
    """
    return request.fingerprints or fingerprints_for(request.model, request)


def fingerprints_for(model: ModelRef, request: PredictionRequest) -> tuple[bytes, ...]:
    """The same, were the request to `model`."""
    question = _question(request.partition, model.name, model.version)
    if request.parameters:
        question = _continued(question, request.parameters)  # an object: it ends where the instance begins
    if len(request.instances) == 1:
        return (_continued(question, request.instances[0]).digest(),)
    return tuple([_continued(question, instance).digest() for instance in request.instances])


@lru_cache(maxsize=256)
def _question(partition: str, name: str, version: str | None) -> blake2b:
    """What most requests have in common, hashed so far; as one JSON list, so that its parts stay apart.

    Without the parameters: a caller could fill the memory with theirs.
    """
    return blake2b(_canonical([partition, name, version]).encode(), digest_size=SIZE)


def _continued(question: blake2b, value: Json) -> blake2b:
    hashed = question.copy()
    # No other JSON text begins with a quotation mark: a text needs no more than that, and no escapes.
    text = '"' + value if isinstance(value, str) else _canonical(value)
    hashed.update(text.encode(errors="surrogatepass"))
    return hashed
