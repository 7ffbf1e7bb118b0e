"""A network for addresses that strangers choose: nothing inside can be reached through it.

The guard stands where connections are opened: a name is looked up once, every address it has is judged, and
one of those very addresses is connected to. So neither a name that leads inside gets through, nor one that
leads elsewhere the second time (DNS rebinding), nor a redirect or any other way to spell an address.
TLS comes afterwards, and is verified against the name.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

import httpcore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

Network: TypeAlias = IPv4Network | IPv6Network
Resolve: TypeAlias = "Callable[[str, int], Awaitable[Sequence[str]]]"
"""The addresses of a name. Raises OSError where it has none."""

MOST_TRIED = 4  # addresses of one name that are connected to, one after the other
THREADS = 16  # that look names up

_UNICAST = IPv6Network("2000::/3")  # all that is assigned for use across the Internet
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: leads to the IPv4 address in its last 32 bits
_NOT_PUBLIC = tuple(
    ip_network(each)
    for each in (
        "168.63.129.16/32",  # Azure's host, under a public address
        "192.0.0.0/24",  # RFC 6890; 192.0.0.192 is Oracle's metadata. Not all Pythons know all of it,
        "2001::/23",  # nor of this; Teredo is in it, which has an IPv4 address in its own
        "3fff::/20",  # RFC 9637: documentation
        "192.88.99.0/24",  # a relay to 6to4,
        "2002::/16",  # which RFC 7526 has retired: the same as Teredo
    )
)


class AddressRefused(httpcore.ConnectError):
    """A name has no address that may be called; it does not say which it has."""


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses, if `public`, and to those in `allowed`; never to sockets of this machine.

    Raises AddressRefused where a name has any other address, or none at all.
    `inner` opens the connections.
    """

    def __init__(
        self,
        resolve: Resolve,
        *,
        allowed: Collection[Network] = (),
        public: bool = True,
        inner: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._public = public
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's own
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to `host`, in `timeout` seconds with its look-up. Raises httpcore.ConnectError as well."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._checked(host, port)
                return await self._connect(addresses, port, timeout, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error

    async def _checked(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise AddressRefused from error
        if not addresses or not all(map(self._may_be_called, addresses)):
            raise AddressRefused
        return list(dict.fromkeys(addresses))[:MOST_TRIED]

    def _may_be_called(self, written: str) -> bool:
        try:
            address = _destination(ip_address(written))
        except ValueError:
            return False
        return any(address in network for network in self._allowed) or (self._public and is_public(address))

    async def _connect(
        self,
        addresses: Sequence[str],
        port: int,
        timeout: float | None,  # noqa: ASYNC109  shared out between the addresses
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        share = None if timeout is None else timeout / len(addresses)
        *others, last = addresses
        for address in others:
            try:
                return await self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(last, port, share, local_address, socket_options)


class Names:
    """Looks names up as the platform does, in threads of its own: a slow name server holds up nobody else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "webhook-names")

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of `host`. Raises OSError where it has none, UnicodeError where it is no name."""
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """Look nothing up any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is somebody's own across the whole Internet; what leads to another is judged by that."""
    address = _destination(address)
    if isinstance(address, IPv6Address) and address not in _UNICAST:
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _destination(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Where a packet to `address` arrives: IPv6 has ways to write addresses of IPv4."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address
