"""Nothing inside is reached, however it is named, and whatever its name leads to."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import httpcore
import pytest

from infrastructure.guarded_network import MOST_TRIED, AddressRefused, GuardedNetwork, Names, is_public
from tests.integration.webhook_receiver import LOOPBACK, PUBLIC, Receiver, Resolver, World

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
    "192.88.99.1",
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
    "2001:20::1",
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


async def test_a_name_without_an_address_is_refused() -> None:
    async def nothing(_host: str, _port: int) -> list[str]:
        await asyncio.sleep(0)
        return []

    with pytest.raises(AddressRefused):
        await GuardedNetwork(nothing, inner=World()).connect_tcp("hooks.example", 443, timeout=1.0)


async def test_what_cannot_be_a_name_is_refused() -> None:
    names, world = Names(), World()
    with pytest.raises(AddressRefused):
        await GuardedNetwork(names, inner=world).connect_tcp(f"{'a' * 64}.example", 443, timeout=5.0)
    names.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"])
async def test_what_is_allowed_is_however_it_is_written(address: str) -> None:
    async with Receiver().serving() as receiver:
        world = World(receiver.port)
        network = GuardedNetwork(Resolver([[address]]), allowed=LOOPBACK, public=False, inner=world)
        stream = await network.connect_tcp("hooks.example", 443, timeout=1.0)
        await stream.aclose()
    assert world.dialed == [(address, 443)]


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


async def test_an_address_that_does_not_answer_leaves_time_for_the_next() -> None:
    async with Receiver().serving() as receiver:
        world = World(receiver.port, silent=frozenset({"2606:4700::1"}))
        network = GuardedNetwork(Resolver([["2606:4700::1", PUBLIC]]), inner=world)
        stream = await network.connect_tcp("hooks.example", 443, timeout=0.5)
        await stream.aclose()
    assert [host for host, _ in world.dialed] == ["2606:4700::1", PUBLIC]


async def test_of_many_dead_addresses_some_are_tried_and_each_once() -> None:
    dead = [f"93.184.216.{number // 2}" for number in range(40)]
    world = World(dead=frozenset(dead))
    with pytest.raises(httpcore.ConnectError):
        await GuardedNetwork(Resolver([dead]), inner=world).connect_tcp("hooks.example", 443, timeout=1.0)
    assert [host for host, _ in world.dialed] == [f"93.184.216.{number}" for number in range(MOST_TRIED)]


async def test_a_slow_look_up_is_part_of_the_time() -> None:
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return [host, str(port)]

    with pytest.raises(httpcore.ConnectTimeout):
        await GuardedNetwork(slow).connect_tcp("hooks.example", 443, timeout=0.1)


async def test_names_are_looked_up_as_the_platform_does() -> None:
    names = Names()
    assert "127.0.0.1" in await names("localhost", 80)
    names.close()
