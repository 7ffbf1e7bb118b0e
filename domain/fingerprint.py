"""What makes two instances the same question: the key of caches, leases and flights."""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.prediction import Json, ModelRef, PredictionRequest

SIZE = 16  # bytes: two of 2**53 questions share a fingerprint with a probability below 10**-6

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False).encode


def fingerprints(request: PredictionRequest) -> tuple[bytes, ...]:
    """One for each instance: a hash of partition, model, version, parameters and the instance itself.

    The order of an object's keys does not matter; 1, 1.0, true and "1" are different questions.
    """
    if request.fingerprints:
        return request.fingerprints
    question = _question(request.partition, request.model, request.parameters)
    return tuple(_fingerprint(question, instance) for instance in request.instances)


def _question(partition: str, model: ModelRef, parameters: Mapping[str, Json]) -> blake2b:
    return _hash(partition, model.name, model.version, _canonical(parameters) if parameters else "")


@lru_cache(maxsize=256)
def _hash(partition: str, name: str, version: str | None, parameters: str) -> blake2b:
    """All but the instance, hashed so far; the parts are told apart by their lengths, as JSON strings are."""
    return blake2b(_canonical([partition, name, version, parameters]).encode(), digest_size=SIZE)


def _fingerprint(question: blake2b, instance: Json) -> bytes:
    hashed = question.copy()
    hashed.update(_canonical(instance).encode())
    return hashed.digest()
