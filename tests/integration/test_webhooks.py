"""One call of a webhook: what is sent, what counts as an answer, and whom it trusts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import struct
import subprocess
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from infrastructure import webhook_sender
from infrastructure.webhook_sender import SignedWebhooks
from tests.integration.processes import until
from tests.integration.webhook_receiver import LOOPBACK, NEW, OLD, PUBLIC, Receiver, Resolver, answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from domain.webhook import Attempt

BODY = '{"type":"job.succeeded","data":{"name":"Zoë"}}'.encode()


async def call(
    url: str, *, secrets: Sequence[str] = (NEW,), seconds: float = 5.0, tls: ssl.SSLContext | None = None
) -> Attempt:
    async with contextlib.aclosing(
        SignedWebhooks(secrets, allow_private=LOOPBACK, timeout=seconds, tls=tls)
    ) as send:
        return await send(url, "job-1:0", BODY, time.time())


async def called(receiver: Receiver, seconds: float = 5.0) -> Attempt:
    async with receiver.serving():
        return await call(f"http://127.0.0.1:{receiver.port}/hook", seconds=seconds)


# --- signing


async def test_what_is_sent_is_verified_by_the_standards_own_library() -> None:
    receiver = Receiver()
    attempt = await called(receiver)
    (request,) = receiver.received
    assert (attempt.status, attempt.problem) == (204, None)
    assert request.head == "POST /hook HTTP/1.1"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "job-1:0"
    assert request.body == BODY
    assert Webhook(NEW).verify(request.body, request.headers)["type"] == "job.succeeded"


async def test_while_secrets_rotate_both_the_new_and_the_old_one_verify() -> None:
    receiver = Receiver()
    async with receiver.serving():
        await call(f"http://127.0.0.1:{receiver.port}/", secrets=(NEW, OLD))
    (request,) = receiver.received
    for secret in (NEW, OLD):
        Webhook(secret).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"w" * 32).decode()).verify(request.body, request.headers)


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp"])
async def test_whoever_changes_what_is_sent_is_found_out(header: str) -> None:
    receiver = Receiver()
    await called(receiver)
    (request,) = receiver.received
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(request.body + b" ", request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(request.body, request.headers | {header: request.headers[header] + "0"})


async def test_without_a_secret_nothing_is_sent() -> None:
    receiver = Receiver()
    async with receiver.serving():
        attempt = await call(f"http://127.0.0.1:{receiver.port}/", secrets=())
    assert (attempt.problem, receiver.received) == ("There is no secret to sign with.", [])


@pytest.mark.parametrize("secret", ["secret", "whsec_", "whsec_!!", "whsec_b28=!", "whsk_b28="])
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="webhook secret") as raised:
        SignedWebhooks([secret])
    assert secret.removeprefix("whsec_") in ("", "secret") or secret not in str(raised.value)


# --- answers


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("200 OK", None),
        ("202 Accepted", None),
        ("299 Fine", None),
        ("302 Found", "The server answered 302; redirects are not followed."),
        ("410 Gone", "The server answered 410."),
        ("500 Oops", "The server answered 500."),
    ],
)
async def test_only_two_hundreds_count(status: str, problem: str | None) -> None:
    attempt = await called(Receiver([answer(status, body=b"secret of theirs")]))
    assert (attempt.status, attempt.problem) == (int(status[:3]), problem)


async def test_a_redirect_is_not_followed() -> None:
    inner = Receiver()
    async with inner.serving():
        attempt = await called(Receiver([answer("307 See", f"location: http://127.0.0.1:{inner.port}/")]))
    assert (attempt.status, inner.received) == (307, [])


@pytest.mark.parametrize("as_date", [False, True])
async def test_a_server_may_say_when_it_wants_to_be_called_again(*, as_date: bool) -> None:
    said = format_datetime(datetime.now(UTC) + timedelta(seconds=120)) if as_date else "120"
    attempt = await called(Receiver([answer("503 Busy", f"Retry-After: {said}")]))
    assert attempt.retry_after == pytest.approx(120, abs=60)


async def test_a_time_that_has_passed_means_now() -> None:
    attempt = await called(Receiver([answer("503 Busy", "Retry-After: Mon, 01 Jan 2024 00:00:00 GMT")]))
    assert attempt.retry_after == 0.0


@pytest.mark.parametrize("said", ["-1", "1e9", "9" * 5_000, "soon", "Mon, 99 Foo 2020", ""])
async def test_nonsense_about_it_is_ignored(said: str) -> None:
    attempt = await called(Receiver([answer("503 Busy", f"Retry-After: {said}")]))
    assert (attempt.status, attempt.retry_after) == (503, None)


async def test_a_failure_and_then_a_success_share_a_connection() -> None:
    receiver = Receiver([answer("500 Oops", body=b"x" * 1_000), answer("204 No Content")])
    async with (
        receiver.serving(),
        contextlib.aclosing(SignedWebhooks([NEW], allow_private=LOOPBACK)) as send,
    ):
        statuses = [
            (await send(f"http://127.0.0.1:{receiver.port}/", "a:0", BODY, time.time())).status
            for _ in range(2)
        ]
    assert (statuses, len(receiver.connections)) == ([500, 204], 1)


async def test_a_long_body_is_not_read() -> None:
    receiver = Receiver([answer("200 OK", body=b"x" * 1_000_000), answer("200 OK")])
    async with (
        receiver.serving(),
        contextlib.aclosing(SignedWebhooks([NEW], allow_private=LOOPBACK)) as send,
    ):
        for _ in range(2):
            await send(f"http://127.0.0.1:{receiver.port}/", "a:0", BODY, time.time())
    assert len(receiver.connections) == 2  # the first one was given up


async def test_an_answer_in_time_counts_though_its_body_takes_longer() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"
    attempt = await called(Receiver([head], drips=True), seconds=0.7)
    assert (attempt.status, attempt.problem) == (200, None)


@pytest.mark.parametrize("endless", [b"x" * 10_000_000, b""])
async def test_a_body_without_end_does_not_matter(endless: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"
    began = time.monotonic()
    attempt = await called(Receiver([head + endless], drips=True), seconds=3.0)
    assert (attempt.status, attempt.problem) == (200, None)
    assert time.monotonic() - began < 2.9


async def test_an_answer_counts_though_its_body_is_nonsense() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    attempt = await called(Receiver([head + b"nonsense\r\n"]))
    assert (attempt.status, attempt.problem) == (200, None)


async def test_a_connection_that_breaks_off_is_no_delivery() -> None:
    def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        attempt = await call(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert (attempt.status, attempt.problem) == (None, "The connection broke off.")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"", "The server did not answer in time."),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, "The server did not answer in time."),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "The answer is not HTTP."),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 10_000_000, "The answer is not HTTP."),
    ],
)
async def test_no_answer_is_no_delivery(said: bytes, problem: str) -> None:
    began = time.monotonic()
    attempt = await called(Receiver([said]), seconds=1.0)
    assert (attempt.status, attempt.problem) == (None, problem)
    assert time.monotonic() - began < 3.0


async def test_nobody_there_is_no_delivery() -> None:
    receiver = Receiver()
    async with receiver.serving():
        pass
    attempt = await call(f"http://127.0.0.1:{receiver.port}/")
    assert (attempt.status, attempt.problem) == (None, "The server could not be reached.")


async def test_a_name_that_is_not_found_in_time_is_given_up_before_the_whole_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return [host, str(port)]

    monkeypatch.setattr(webhook_sender, "CONNECT_TIMEOUT", 0.1)
    began = time.monotonic()
    async with contextlib.aclosing(SignedWebhooks([NEW], resolve=slow, timeout=5.0)) as send:
        attempt = await send("https://hooks.example/", "a:0", BODY, time.time())
    assert (attempt.status, attempt.problem) == (None, "The server did not answer in time.")
    assert time.monotonic() - began < 3.0


async def test_a_server_that_does_not_answer_holds_up_no_other() -> None:
    silent, other = Receiver([b""]), Receiver()
    async with (
        silent.serving(),
        other.serving(),
        contextlib.aclosing(SignedWebhooks([NEW], allow_private=LOOPBACK, timeout=5.0)) as send,
    ):
        held = asyncio.create_task(send(f"http://127.0.0.1:{silent.port}/", "a:0", BODY, time.time()))
        await asyncio.to_thread(until, lambda: len(silent.received) == 1, "the first call")
        attempt = await send(f"http://127.0.0.1:{other.port}/", "b:0", BODY, time.time())
        assert (attempt.status, held.done()) == (204, False)
        held.cancel()
        await asyncio.wait([held])


# --- where it leads


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://2130706433/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/",
        f"https://{'a' * 64}.example/",
        "https://no-such-name.invalid/",
        "https://%31%32%37.0.0.1/",
    ],
)
async def test_however_it_is_spelled_nothing_inside_is_called(url: str) -> None:
    async with contextlib.aclosing(SignedWebhooks([NEW])) as send:
        attempt = await send(url, "a:0", BODY, time.time())
    assert attempt.status is None
    assert attempt.problem in ("The host has no public address.", "The URL cannot be called.")


async def test_http_is_only_for_inner_networks_that_are_allowed() -> None:
    async with contextlib.aclosing(SignedWebhooks([NEW], resolve=Resolver([[PUBLIC]]))) as send:
        attempt = await send("http://hooks.example/", "a:0", BODY, time.time())
    assert attempt.problem == "The webhook's URL must begin with https://."
    some = SignedWebhooks([NEW], resolve=Resolver([[PUBLIC]]), allow_private=LOOPBACK)
    async with contextlib.aclosing(some) as send:
        attempt = await send("http://hooks.example/", "a:0", BODY, time.time())
    assert attempt.problem == "The host has no public address."


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Receiver()
    async with proxy.serving():
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await called(Receiver())).status == 204
    assert proxy.received == []


# --- TLS


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem and a certificate for hooks.example and localhost that it has signed."""
    folder = tmp_path_factory.mktemp("authority")
    new = "req -newkey rsa:2048 -nodes"
    names = "subjectAltName=DNS:hooks.example,DNS:localhost"
    signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy"
    for command in (
        f"{new} -x509 -keyout ca.key -out ca.pem -days 2 -subj /CN=ca -addext keyUsage=keyCertSign",
        f"{new} -keyout key.pem -out request.pem -subj /CN=hooks.example -addext {names}",
        f"x509 -req -in request.pem {signed} -out certificate.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


async def called_by_tls(authority: Path, url: str, *, trusted: bool = True) -> tuple[Attempt, Receiver]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority / "certificate.pem", authority / "key.pem")
    client = ssl.create_default_context(cafile=authority / "ca.pem") if trusted else None
    async with Receiver().serving(server) as receiver:
        return await call(url.format(port=receiver.port), tls=client), receiver


async def test_a_server_is_called_by_tls(authority: Path) -> None:
    attempt, receiver = await called_by_tls(authority, "https://localhost:{port}/")
    assert (attempt.status, attempt.problem, len(receiver.received)) == (204, None, 1)


async def test_a_certificate_for_another_name_is_not_enough(authority: Path) -> None:
    attempt, receiver = await called_by_tls(authority, "https://127.0.0.1:{port}/")
    assert attempt.problem == "The server's certificate is not valid for its name."
    assert receiver.received == []


async def test_a_certificate_of_an_unknown_authority_is_not_enough(authority: Path) -> None:
    attempt, receiver = await called_by_tls(authority, "https://localhost:{port}/", trusted=False)
    assert attempt.problem == "The server's certificate is not valid for its name."
    assert receiver.received == []


async def test_the_certificate_is_that_of_the_name_and_not_of_the_address(authority: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority / "certificate.pem", authority / "key.pem")
    client = ssl.create_default_context(cafile=authority / "ca.pem")
    names = Resolver([["127.0.0.1"]])
    async with Receiver().serving(server) as receiver:
        sender = SignedWebhooks([NEW], allow_private=LOOPBACK, resolve=names, tls=client)
        async with contextlib.aclosing(sender) as send:
            for name, status in (("hooks.example", 204), ("other.example", None)):
                attempt = await send(f"https://{name}:{receiver.port}/", "a:0", BODY, time.time())
                assert attempt.status == status
    assert [each.headers["host"] for each in receiver.received] == [f"hooks.example:{receiver.port}"]
