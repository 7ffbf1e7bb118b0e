from __future__ import annotations

import random
from collections import Counter

import pytest

from domain.selection import PeakEwma, power_of_two_choices


def test_a_slow_answer_counts_at_once_and_a_fast_one_only_with_time() -> None:
    load = PeakEwma(decay=10.0)
    load.observe(0.1, now=0.0)
    load.observe(2.0, now=1.0)
    assert load.latency == 2.0

    load.observe(0.1, now=1.0)
    assert load.latency == pytest.approx(2.0)

    load.observe(0.1, now=11.0)
    assert load.latency == pytest.approx(0.1 + 1.9 / 2.718281828, rel=1e-6)


def test_requests_in_flight_multiply_the_load() -> None:
    load = PeakEwma(in_flight=3)
    load.observe(0.5, now=0.0)

    assert load.load(now=0.0) == 2.0


def test_a_slow_start_is_forgiven_without_another_answer() -> None:
    load = PeakEwma(decay=10.0)
    load.observe(5.0, now=0.0)

    assert load.load(now=100.0) < 0.001


def test_a_server_that_never_answered_is_not_taken_for_the_fastest() -> None:
    silent, slow = PeakEwma(in_flight=1), PeakEwma(in_flight=50)
    slow.observe(10.0, now=0.0)

    assert PeakEwma().load(now=0.0) == 0.0
    assert silent.load(now=0.0) > slow.load(now=0.0)


def test_the_cheaper_of_two_is_chosen_and_the_most_expensive_never() -> None:
    chance = random.Random(1)
    costs = {"a": 1.0, "b": 2.0, "c": 3.0}

    chosen = Counter(power_of_two_choices(list(costs), costs.__getitem__, chance.sample) for _ in range(300))

    assert chosen["c"] == 0
    assert chosen["a"] > chosen["b"] > 50


def test_a_single_candidate_needs_no_chance() -> None:
    assert power_of_two_choices(["a"], lambda _: 0.0, lambda _, __: pytest.fail("drawn")) == "a"
