"""The HTTP connections to model servers: httpx over a network that knows whether an answer has begun."""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import httpcore
import httpx

if TYPE_CHECKING:
    from collections.abc import Iterable

KEEPALIVE_EXPIRY = 60.0  # seconds; TorchServe itself never closes an idle connection
HEAD_BYTES = len(b"HTTP/1.1 1")


def http_client(
    *, timeout: httpx.Timeout, max_connections: int = 1000, tls: ssl.SSLContext | None = None
) -> httpx.AsyncClient:
    """The client that all adapters of all TorchServe servers share; whoever makes it closes it.

    It uses no proxy of the environment, follows no redirect and keeps no cookie.
    """
    limits = httpx.Limits(
        max_connections=max_connections,
        max_keepalive_connections=max_connections,
        keepalive_expiry=KEEPALIVE_EXPIRY,
    )
    return httpx.AsyncClient(
        transport=Transport(limits, tls or ssl.create_default_context()),
        timeout=timeout,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        trust_env=False,
    )


class Transport(httpx.AsyncBaseTransport):
    """Sends a request again that met a connection its server had closed while it was idle.

    At once, on a new connection, once, and only where no byte of an answer came (RFC 9112, 9.3.1).
    A server that goes away before it answers is an httpx.ReadError, after FIN as after RST.
    An informational answer (1xx) is an httpx.RemoteProtocolError: we never ask for one, and TorchServe
    lets nothing follow where a handler sets such a status, so that httpcore would wait for ever.
    """

    def __init__(self, limits: httpx.Limits, tls: ssl.SSLContext) -> None:
        none_kept = httpx.Limits(max_connections=limits.max_connections, max_keepalive_connections=0)
        self._kept = _Pooled(limits, tls)
        self._new = _Pooled(none_kept, tls)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._kept.handle_async_request(request)
        except httpx.ReadError as error:
            if not isinstance(error.__cause__, StaleConnection):
                raise
        return await self._new.handle_async_request(request)

    async def aclose(self) -> None:
        await self._kept.aclose()
        await self._new.aclose()


class _Pooled(httpx.AsyncHTTPTransport):
    """httpx's own transport; it has no argument for a network of one's own, only this attribute."""

    def __init__(self, limits: httpx.Limits, tls: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Network(),
        )


class StaleConnection(httpcore.ReadError):
    """A connection that had answered before was closed before a byte of this answer came."""


class _Network(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that knows how many answers it gave, and how far the present one is."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._answered = False
        self._head = b""  # the first bytes of the present answer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            data = await self._inner.read(max_bytes, timeout)
        except httpcore.ReadError:
            raise self._gone() from None
        if not (data or self._head):
            raise self._gone()
        if len(self._head) < HEAD_BYTES:
            self._head = (self._head + data)[:HEAD_BYTES]
            if self._head[8:] == b" 1":
                raise httpcore.RemoteProtocolError("informational answer")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if self._head:
            self._answered = True
            self._head = b""
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)

    def _gone(self) -> httpcore.ReadError:
        stale = self._answered and not self._head
        return StaleConnection("stale") if stale else httpcore.ReadError("connection closed")
