"""Calling webhooks: signed as Standard Webhooks 1.0 says, and never into an inner network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import re
import ssl
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpcore
import httpx

from domain.errors import InvalidRequest
from domain.webhook import Attempt, check_url
from infrastructure.guarded_network import AddressRefused, GuardedNetwork, Names

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from infrastructure.guarded_network import Network, Resolve

TIMEOUT = 15.0  # seconds for a whole call; Standard Webhooks: between 15 and 30
CONNECT_TIMEOUT = 5.0  # seconds of them for the look-up and the connection, and again for TLS
KEEPALIVE = 5.0  # seconds that a connection is kept for the next job of the same receiver
MOST_READ = 65_536  # bytes of an answer's body, only so that its connection can be used again
READ_TIMEOUT = 1.0  # seconds for that
PREFIX = "whsec_"
AGENT = "model-dispatcher"

PROBLEMS: dict[type[BaseException], str] = {
    InvalidRequest: "",  # says it itself
    AddressRefused: "The host has no public address.",
    TimeoutError: "The server did not answer in time.",
    httpcore.TimeoutException: "The server did not answer in time.",
    httpcore.ConnectError: "The server could not be reached.",
    httpcore.NetworkError: "The connection broke off.",
    httpcore.ProtocolError: "The answer is not HTTP.",
    httpcore.UnsupportedProtocol: "The URL cannot be called.",
    httpx.InvalidURL: "The URL cannot be called.",
    ValueError: "The URL cannot be called.",
    OSError: "The connection broke off.",
}
"""What can go wrong, and how a person is told; nobody is told an address, or what the server said."""

_SECONDS = re.compile(r"[0-9]{1,9}")


class SignedWebhooks:
    """A WebhookSender. All of `secrets` (`whsec_…`) sign, so that one can follow another; without one
    nothing is sent.

    It calls public addresses by https, and those in `allow_private` by http as well. A call takes `timeout`
    seconds at most. `resolve` looks names up and `tls` says whom to trust, if not as the platform and
    certifi do. No proxy of the environment is used, no redirect followed, no cookie kept.
    Raises ValueError where a secret is none.
    """

    def __init__(
        self,
        secrets: Sequence[str],
        *,
        allow_private: Collection[Network] = frozenset(),
        timeout: float = TIMEOUT,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._keys = [_key(each) for each in secrets]
        self._http_allowed = bool(allow_private)
        self._timeout = timeout
        self._names = Names()
        resolve = resolve or self._names
        tls = tls or httpx.create_ssl_context(trust_env=False)
        networks = {
            "https": GuardedNetwork(resolve, allowed=allow_private),
            "http": GuardedNetwork(resolve, allowed=allow_private, public=False),
        }
        self._pools = {
            scheme: httpcore.AsyncConnectionPool(
                ssl_context=tls, max_connections=None, keepalive_expiry=KEEPALIVE, network_backend=network
            )
            for scheme, network in networks.items()
        }

    async def __call__(self, url: str, message_id: str, body: bytes, now: float) -> Attempt:
        """As WebhookSender."""
        if not self._keys:
            return Attempt(now, problem="There is no secret to sign with.")
        try:
            check_url(url, http=self._http_allowed)
            return await self._post(httpx.URL(url), self._headers(message_id, body, now), body, now)
        except tuple(PROBLEMS) as error:
            return Attempt(now, problem=_words(error))

    async def aclose(self) -> None:
        """Close the connections."""
        for pool in self._pools.values():
            await pool.aclose()
        self._names.close()

    def _headers(self, message_id: str, body: bytes, now: float) -> list[tuple[str, str]]:
        timestamp = str(int(now))
        signed = f"{message_id}.{timestamp}.".encode() + body
        digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in self._keys)
        return [
            ("webhook-id", message_id),
            ("webhook-timestamp", timestamp),
            ("webhook-signature", " ".join(f"v1,{base64.b64encode(each).decode()}" for each in digests)),
            ("content-type", "application/json"),
            ("user-agent", AGENT),
            ("accept", "*/*"),
        ]

    async def _post(self, url: httpx.URL, headers: list[tuple[str, str]], body: bytes, now: float) -> Attempt:
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        timeouts = {"connect": min(CONNECT_TIMEOUT, self._timeout)}
        answer = self._pools[url.scheme].stream(
            "POST",
            target,
            headers=[("host", url.netloc.decode("ascii")), *headers],
            content=body,
            extensions={"timeout": timeouts},
        )
        async with asyncio.timeout(self._timeout) as limit, answer as response:
            attempt = _attempt(response, now)
            limit.reschedule(None)  # it has answered
            await _read_a_little(response)
        return attempt


def _key(secret: str) -> bytes:
    if not secret.startswith(PREFIX):
        raise ValueError(f"A webhook secret begins with {PREFIX}.")
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError("A webhook secret is base64.") from None
    return key


def _attempt(response: httpcore.Response, now: float) -> Attempt:
    status = response.status
    if 200 <= status < 300:  # noqa: PLR2004  what HTTP calls successful
        return Attempt(now, status)
    redirect = "; redirects are not followed" if 300 <= status < 400 else ""  # noqa: PLR2004
    headers = {name.lower(): value for name, value in response.headers}
    return Attempt(
        now, status, f"The server answered {status}{redirect}.", _seconds(headers.get(b"retry-after"), now)
    )


def _seconds(retry_after: bytes | None, now: float) -> float | None:
    """What the header says (RFC 9110, 10.2.3): seconds, or a date."""
    if retry_after is None:
        return None
    text = retry_after.decode("latin-1").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    return None


async def _read_a_little(response: httpcore.Response) -> None:
    """Read the body, if it is short and comes at once; the answer has been given without it."""
    read = 0
    with contextlib.suppress(TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
        async with asyncio.timeout(READ_TIMEOUT):
            async for part in response.aiter_stream():
                read += len(part)
                if read > MOST_READ:
                    return


def _words(error: BaseException) -> str:
    if isinstance(error, InvalidRequest):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "The server's certificate is not valid for its name."
        cause = cause.__cause__ or cause.__context__
    return next(PROBLEMS[each] for each in type(error).__mro__ if each in PROBLEMS)
