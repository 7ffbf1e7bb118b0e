from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import httpcore
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from application import housekeeping
from application.housekeeping import Housekeeping
from application.job_records import JobRecords
from domain import webhook
from domain.job import Job
from domain.ports import Change, NewJob
from domain.prediction import ModelRef
from domain.webhook import Delivery
from infrastructure.guarded_network import AddressRefused, GuardedNetwork, Names, is_public
from infrastructure.webhook_sender import SignedWebhooks
from tests.fakes_jobs import FakeJobQueue, FakeJobStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

    from domain.webhook import Attempt

OLD = "whsec_" + base64.b64encode(b"o" * 32).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
LOOPBACK = frozenset({ip_network("127.0.0.0/8")})
BODY = '{"type":"job.succeeded","data":{"name":"Zoë"}}'.encode()
PUBLIC = "93.184.216.34"
INNER = (
    "127.0.0.1",
    "127.255.0.1",
    "0.0.0.0",  # noqa: S104  an address to refuse
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2002:5db8:d822::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff0e::1",
    "2001:db8::1",
    "3fff::1",
    "no address",
)


@dataclass
class Received:
    """One request as it came."""

    head: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """An HTTP server that answers one request by `answers`, the next by the next, all others by the last."""

    answers: list[bytes] = field(default_factory=lambda: [answer("204 No Content")])
    drips: bool = False
    received: list[Received] = field(default_factory=list)
    connections: list[asyncio.Task[None]] = field(default_factory=list)
    port: int = 0

    @contextlib.asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        yield self
        server.close()
        for each in self.connections:
            each.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer_all(reader, writer)
        finally:
            writer.transport.abort()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.received.append(Received(head, headers, body))
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                await writer.drain()
                while self.drips:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.05)


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = (f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


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


@dataclass
class Resolver:
    """Answers with `answers` one after the other, the last for ever."""

    answers: list[list[str]]
    asked: int = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        await asyncio.sleep(0)
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not found:
            raise OSError(host, port)
        return found


@dataclass
class World(httpcore.AsyncNetworkBackend):
    """All addresses lead to `port` on this machine; those in `dead` to nowhere."""

    port: int = 0
    dead: frozenset[str] = frozenset()
    dialed: list[tuple[str, int]] = field(default_factory=list)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        ip_address(host)  # never a name
        self.dialed.append((host, port))
        if host in self.dead:
            raise httpcore.ConnectError
        network = httpcore.AnyIOBackend()
        return await network.connect_tcp("127.0.0.1", self.port, timeout, local_address, socket_options)


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


@pytest.mark.parametrize("secret", ["secret", "whsec_", "whsec_!!", "whsk_b28="])
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


# --- the whole way


@pytest.mark.parametrize(
    ("answers", "statuses", "delivered"),
    [
        (("500 Oops", "503 Busy", "204 No Content"), [500, 503, 204], True),
        (("410 Gone", "204 No Content"), [410], False),
    ],
)
async def test_a_jobs_end_is_told_until_the_receiver_accepts_it_or_is_gone(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[str], statuses: Sequence[int], *, delivered: bool
) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 0.02)
    monkeypatch.setattr(webhook, "RETRY_AFTER", (0.1,) * 9)
    store, receiver = FakeJobStore(), Receiver([*map(answer, answers)])
    async with receiver.serving():
        await end_a_job(store, f"http://127.0.0.1:{receiver.port}/")
        async with contextlib.aclosing(SignedWebhooks([NEW], allow_private=LOOPBACK)) as send:
            keeper = Housekeeping(
                JobRecords(store), FakeJobQueue(), send, clock=time.time, chance=lambda: 0.0
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(keeper.run(), 2.0)
    told = store.jobs["job-1"].webhook
    assert told is not None
    assert ([each.status for each in told.attempts], told.delivered) == (statuses, delivered)
    assert {each.headers["webhook-id"] for each in receiver.received} == {"job-1:0"}
    for each in receiver.received:
        assert Webhook(NEW).verify(each.body, each.headers)["data"]["id"] == "job-1"


async def end_a_job(store: FakeJobStore, url: str) -> None:
    now = time.time()
    job = Job("job-1", ModelRef("m"), 1, 500, now, now + 60, 600, webhook=Delivery(url))
    await store.create([NewJob(job)])
    ended = job.chunk_finished(0, now, failed=0, error=None, version="1")
    assert ended is not None
    await store.save([Change(ended)])


# --- the guard


@pytest.mark.parametrize("address", INNER)
async def test_a_name_that_leads_inside_is_refused(address: str) -> None:
    world = World()
    network = GuardedNetwork(Resolver([[address]]), inner=world)
    with pytest.raises(AddressRefused) as raised:
        await network.connect_tcp("hooks.example", 443)
    assert (world.dialed, str(raised.value)) == ([], "")


async def test_a_name_that_leads_inside_as_well_is_refused() -> None:
    world = World()
    network = GuardedNetwork(Resolver([[PUBLIC, "10.0.0.1"]]), inner=world)
    with pytest.raises(AddressRefused):
        await network.connect_tcp("hooks.example", 443)
    assert world.dialed == []


@pytest.mark.parametrize(
    "address", [PUBLIC, "2606:4700:4700::1111", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


async def test_a_name_that_leads_inside_the_second_time_was_asked_for_only_once() -> None:
    receiver, names = Receiver(), Resolver([[PUBLIC], ["127.0.0.1"]])
    async with receiver.serving():
        world = World(receiver.port)
        network = GuardedNetwork(names, inner=world)
        async with httpcore.AsyncConnectionPool(network_backend=network) as pool:
            answered = await pool.request("POST", "http://hooks.example:8443/", content=b"")
    assert (answered.status, names.asked, world.dialed) == (204, 1, [(PUBLIC, 8443)])


async def test_the_next_address_is_tried_where_one_is_dead() -> None:
    receiver = Receiver()
    async with receiver.serving():
        world = World(receiver.port, dead=frozenset({"2606:4700::1"}))
        network = GuardedNetwork(Resolver([["2606:4700::1", PUBLIC]]), inner=world)
        stream = await network.connect_tcp("hooks.example", 443, timeout=1.0)
        await stream.aclose()
    assert [host for host, _ in world.dialed] == ["2606:4700::1", PUBLIC]


async def test_a_slow_look_up_is_part_of_the_time() -> None:
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return [host, str(port)]

    with pytest.raises(httpcore.ConnectTimeout):
        await GuardedNetwork(slow).connect_tcp("hooks.example", 443, timeout=0.1)


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


async def test_names_are_looked_up_as_the_platform_does() -> None:
    names = Names()
    assert "127.0.0.1" in await names("localhost", 80)
    names.close()


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
