from __future__ import annotations

import pytest

from domain.errors import InvalidRequest
from domain.webhook import LONGEST_URL, REMEMBERED, RETRY_AFTER, Attempt, Delivery, check_url

URL = "https://hooks.example/done"
ACCEPTED = Attempt(100.0, 204)
REFUSED = Attempt(100.0, 500, "The server answered 500.")


def test_a_delivery_that_is_accepted_is_not_tried_again() -> None:
    done = Delivery(URL).scheduled(99.0).claimed(159.0).attempted(ACCEPTED)
    assert done == Delivery(URL, (ACCEPTED,), 1, None, delivered=True)


def test_one_that_is_refused_is_tried_by_the_plan_and_then_given_up() -> None:
    delivery, pauses = Delivery(URL).scheduled(99.0), []
    while delivery.next_at is not None:
        delivery = delivery.attempted(Attempt(delivery.next_at, 500, "no"))
        pauses.append(delivery.next_at and delivery.next_at - delivery.attempts[-1].at)
    assert pauses == [*RETRY_AFTER, None]
    assert not delivery.delivered


def test_chance_spreads_the_calls_of_many() -> None:
    earliest = Delivery(URL).attempted(REFUSED, 0.0).next_at
    latest = Delivery(URL).attempted(REFUSED, 1.0).next_at
    assert (earliest, latest) == (105.0, 106.0)


def test_a_server_that_is_gone_is_not_called_again() -> None:
    gone = Delivery(URL).attempted(Attempt(100.0, 410, "The server answered 410."))
    assert (gone.next_at, gone.delivered) == (None, False)


@pytest.mark.parametrize(("asked", "pause"), [(None, 5.0), (1.0, 5.0), (60.0, 60.0), (1e9, 86_400.0)])
def test_a_server_is_left_alone_for_as_long_as_it_wants_but_at_most_a_day(
    asked: float | None, pause: float
) -> None:
    delivery = Delivery(URL).attempted(Attempt(100.0, 429, "The server answered 429.", asked))
    assert delivery.next_at == 100.0 + pause


def test_a_person_gets_the_whole_plan_again() -> None:
    given_up = Delivery(URL, planned=10)
    again = given_up.scheduled(200.0)
    assert (again.next_at, again.planned) == (200.0, 0)
    assert again.attempted(REFUSED).next_at == 105.0


def test_only_the_latest_attempts_are_remembered() -> None:
    delivery = Delivery(URL)
    for number in range(100):
        delivery = delivery.noted(Attempt(float(number)))
    assert [each.at for each in delivery.attempts] == list(range(100 - REMEMBERED, 100))


def test_an_attempt_that_is_only_noted_leaves_the_plan_alone() -> None:
    delivery = Delivery(URL, next_at=7.0, planned=2)
    assert delivery.noted(ACCEPTED) == Delivery(URL, (ACCEPTED,), 2, 7.0)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (URL, "hooks.example"),
        ("https://[2001:DB8::1]:8/", "2001:db8::1"),
        ("https://[x", ""),
        ("nothing", ""),
    ],
)
def test_a_delivery_knows_its_host(url: str, host: str) -> None:
    assert Delivery(url).host == host


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "https://hooks.example:8443/a/b?c=d&e=%20f#g",
        "https://xn--bcher-kva.example/",
        "https://[2606:4700::1]/",
        "HTTPS://HOOKS.EXAMPLE",
        "https://hooks.example/" + "a" * (LONGEST_URL - 22),
    ],
)
def test_a_webhook_may_be_at_a_public_https_url(url: str) -> None:
    check_url(url, http=False)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://hooks.example/", "must begin with https://"),
        ("ftp://hooks.example/", "must begin with https://"),
        ("//hooks.example/", "must begin with https://"),
        ("file:///etc/passwd", "has no host"),
        ("javascript:alert(1)", "has no host"),
        ("", "characters"),
        ("https://", "has no host"),
        ("https:///x", "has no host"),
        ("https://:443/", "has no host"),
        ("https://hooks.example:0/", "no valid port"),
        ("https://hooks.example:65536/", "no valid port"),
        ("https://hooks.example:x/", "no valid port"),
        ("https://[::1/", "has no host"),
        ("https://user:secret@hooks.example/", "a user or a password"),
        ("https://@hooks.example/", "a user or a password"),
        ("https://hooks.example\\@10.0.0.1/", "characters"),
        ("https://hooks.example/a b", "characters"),
        ("https://hooks.example/\r\nHost: x", "characters"),
        ("https://hooks.example/\n", "characters"),
        ("\thttps://hooks.example/", "characters"),
        ("https://bücher.example/", "characters"),
        ("https://hooks.example/" + "a" * LONGEST_URL, "longer than"),
    ],
)
def test_a_webhook_may_not_be_elsewhere(url: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as raised:
        check_url(url, http=False)
    (error,) = raised.value.errors
    assert error.pointer == "/webhook_url"
    assert "secret" not in str(raised.value)


def test_http_is_for_where_it_is_allowed() -> None:
    check_url("http://hooks.example/", http=True)
    with pytest.raises(InvalidRequest, match="https:// or http://"):
        check_url("ftp://hooks.example/", http=True)
