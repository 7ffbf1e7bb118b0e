from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from domain.errors import ServerFault, ServerUnreachable
from domain.prediction import ModelRef, PredictionRequest
from infrastructure.torchserve import key_file
from infrastructure.torchserve.client import TorchServeClient
from infrastructure.torchserve.key_file import KeyFile
from tests.unit.torchserve.raw_server import Received, Reply, captured, channel_to, client, ok, serving

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

REQUEST = PredictionRequest(ModelRef("m"), (1,))


@dataclass
class Clock:
    seconds: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Frontend:
    """TorchServe's token authorization: a new key counts before the file tells it, and the old one is dead.

    Both APIs share one port here. `used` are the keys that were accepted, `renewed` how often one was made.
    """

    path: Path
    clock: Clock
    lifetime: float = 3600.0
    api: str = "api-0"
    keys: dict[str, tuple[str, float]] = field(default_factory=dict)
    made: int = 0
    renewed: int = 0
    used: list[str] = field(default_factory=list)
    refused: int = 0

    def start(self) -> None:
        self.api = f"api-{self.made}"
        self.make("inference")
        self.make("management")
        self.write()

    def make(self, kind: str) -> None:
        self.made += 1
        self.keys[kind] = (f"{kind}-{self.made}", self.clock() + self.lifetime)

    def write(self) -> None:
        content: dict[str, dict[str, str]] = {"API": {"key": self.api}}
        for kind, (key, expires) in self.keys.items():
            time = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
            content[kind] = {"key": key, "expiration time": time}
        self.path.write_text(json.dumps(content))

    def expire(self) -> None:
        self.clock.seconds += self.lifetime + 1

    async def __call__(self, request: Received) -> Reply:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if "/token?type=" in request.line:
            return self.renew(request.line.split("=")[1].split(" ")[0], given)
        key, expires = self.keys["inference"]
        if given != key or self.clock() >= expires:
            self.refused += 1
            return captured("refused_key")
        self.used.append(given)
        return ok(b"[1]")

    def renew(self, kind: str, given: str) -> Reply:
        if given != self.api:
            return captured("not_renewed")
        self.renewed += 1
        self.make(kind)
        self.write()
        return captured("renewed")


@pytest.fixture
def frontend(tmp_path: Path) -> Frontend:
    made = Frontend(tmp_path / "key_file.json", Clock())
    made.start()
    return made


def keys_of(frontend: Frontend, http: httpx.AsyncClient, management: str | None) -> KeyFile:
    return KeyFile(frontend.path, http=http, management=management, now=frontend.clock)


async def test_the_servers_key_goes_with_every_request(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, server.url))
        await predict(REQUEST)

    assert server.received[0].headers["authorization"] == "Bearer inference-1"


async def test_a_restarted_servers_keys_are_noticed(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, server.url))
        await predict(REQUEST)
        frontend.start()
        await predict(REQUEST)
        frontend.path.unlink()
        frontend.start()
        await predict(REQUEST)

    assert frontend.used == ["inference-1", "inference-3", "inference-5"]
    assert (frontend.refused, frontend.renewed) == (0, 0)


async def test_a_change_that_the_files_times_do_not_show_is_noticed_by_a_refusal(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        keys = keys_of(frontend, http, server.url)
        predict = TorchServeClient(channel, keys=keys)
        await predict(REQUEST)
        frontend.start()
        keys._signature = keys._sign()
        await predict(REQUEST)

    assert (frontend.refused, frontend.renewed) == (1, 0)


async def test_a_key_is_renewed_shortly_before_it_expires(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http:
        keys = keys_of(frontend, http, server.url)
        assert await keys.key("inference") == "inference-1"
        frontend.clock.seconds += 3569
        assert await keys.key("inference") == "inference-1"
        frontend.clock.seconds += 2
        assert await keys.key("inference") == "inference-3"
        assert await keys.key("management") == "management-4"

    assert frontend.renewed == 2


async def test_a_short_lived_key_lives_two_thirds_of_its_life(frontend: Frontend) -> None:
    frontend.lifetime = 12
    frontend.start()
    async with serving(frontend) as server, client() as http:
        keys = keys_of(frontend, http, server.url)
        first = await keys.key("inference")
        frontend.clock.seconds += 7
        assert await keys.key("inference") == first
        frontend.clock.seconds += 2
        assert await keys.key("inference") != first
        assert await keys.key("inference") == frontend.keys["inference"][0]

    assert frontend.renewed == 1


async def test_many_who_find_a_key_expired_renew_it_once(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, server.url))
        await predict(REQUEST)
        frontend.expire()
        await asyncio.gather(*(predict(REQUEST) for _ in range(20)))

    assert frontend.renewed == 1
    assert len(frontend.used) == 21


async def test_a_key_that_is_refused_though_the_file_holds_it_is_renewed(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, server.url))
        frontend.make("inference")
        await predict(REQUEST)

    assert (frontend.refused, frontend.renewed) == (1, 1)


async def test_a_key_that_another_process_renewed_is_not_renewed_again(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http:
        ours, theirs = (keys_of(frontend, http, server.url) for _ in range(2))
        refused = await ours.key("inference")
        assert await theirs.renewed("inference", refused) == await ours.renewed("inference", refused)

    assert frontend.renewed == 1


async def test_processes_that_renew_at_the_same_moment_fail_no_request(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        gateways = [TorchServeClient(channel, keys=keys_of(frontend, http, server.url)) for _ in range(2)]
        for _ in range(10):
            frontend.expire()
            await asyncio.gather(*(predict(REQUEST) for predict in gateways for _ in range(5)))

    assert len(frontend.used) == 100


async def test_a_server_that_refuses_every_key_is_at_fault_and_the_caller_is_not(frontend: Frontend) -> None:
    async with serving(refuse) as server, client() as http, channel_to(server.url) as channel:
        keys = keys_of(frontend, http, None)
        with pytest.raises(ServerFault, match="refused our key"):
            await TorchServeClient(channel, keys=keys)(REQUEST)
        assert len(server.received) == 1

        async with serving(frontend) as management:
            keys = keys_of(frontend, http, management.url)
            with pytest.raises(ServerFault, match="refused our key"):
                await TorchServeClient(channel, keys=keys)(REQUEST)
        assert frontend.renewed == 2


async def test_a_server_that_does_not_renew_says_what_to_check(frontend: Frontend) -> None:
    async with serving(refuse) as server, client() as http, channel_to(server.url) as channel:
        with pytest.raises(ServerFault, match="key file and management address"):
            await TorchServeClient(channel, keys=keys_of(frontend, http, server.url))(REQUEST)


async def test_a_missing_file_says_what_to_do_and_is_read_when_it_appears(
    frontend: Frontend, caplog: pytest.LogCaptureFixture
) -> None:
    frontend.path.unlink()
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, server.url))
        for _ in range(3):
            with pytest.raises(ServerFault, match="key file is missing or cannot be read") as raised:
                await predict(REQUEST)
        frontend.start()
        await predict(REQUEST)

    assert str(frontend.path) not in str(raised.value)
    assert caplog.text.count(str(frontend.path)) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"inference-1"', '""'),
        ('"inference-1"', '"two\\nlines"'),
        ('"inference-1"', '"ünicode"'),
        ('"API"', '"api"'),
        ('"expiration time"', '"expires"'),
        ("Z", ""),
        ("{", "["),
    ],
)
async def test_a_file_that_is_not_torchserves_is_none_and_its_content_is_not_told(
    frontend: Frontend, caplog: pytest.LogCaptureFixture, old: str, new: str
) -> None:
    frontend.path.write_text(frontend.path.read_text().replace(old, new))
    async with client() as http:
        with pytest.raises(ServerFault) as raised:
            await keys_of(frontend, http, None).key("inference")

    told = f"{raised.value!r} {raised.value.__cause__!r} {caplog.text}"
    assert not [secret for secret in ("inference-1", "api-0", "lines") if secret in told]


async def test_the_last_keys_are_used_while_the_file_is_being_written(frontend: Frontend) -> None:
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, server.url))
        await predict(REQUEST)
        frontend.path.write_text("")
        await predict(REQUEST)
        frontend.path.unlink()
        await predict(REQUEST)

    assert frontend.used == ["inference-1"] * 3


async def test_a_key_that_still_works_is_used_while_it_cannot_be_renewed(
    frontend: Frontend, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(refuse) as management,
        serving(frontend) as server,
        client() as http,
        channel_to(server.url) as channel,
    ):
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, management.url))
        await predict(REQUEST)
        frontend.clock.seconds += 3580
        for _ in range(3):
            await predict(REQUEST)
        assert len(management.received) == 1
        frontend.clock.seconds += 6
        await predict(REQUEST)
        assert len(management.received) == 2

    assert "inference" in caplog.text
    assert "inference-1" not in caplog.text


async def test_a_renewal_that_hangs_holds_up_one_request(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "EARLY_RENEWAL_SECONDS", 60)
    async with (
        serving(hang) as management,
        serving(frontend) as server,
        client() as http,
        channel_to(server.url) as channel,
    ):
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, management.url))
        await predict(REQUEST)
        frontend.clock.seconds += 3580
        held_up = asyncio.create_task(predict(REQUEST))
        await management.until(lambda: len(management.received) == 1)
        async with asyncio.timeout(3):
            await predict(REQUEST)
        assert not held_up.done()
        held_up.cancel()

    assert frontend.used == ["inference-1"] * 2


async def test_a_renewal_that_hangs_does_not_hold_it_up_for_long(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "EARLY_RENEWAL_SECONDS", 0.01)
    async with (
        serving(hang) as management,
        serving(frontend) as server,
        client(seconds=60) as http,
        channel_to(server.url) as channel,
    ):
        keys = KeyFile(frontend.path, http=http, management=management.url, seconds=60, now=frontend.clock)
        predict = TorchServeClient(channel, keys=keys)
        await predict(REQUEST)
        frontend.clock.seconds += 3580
        async with asyncio.timeout(5):
            await predict(REQUEST)

    assert frontend.used == ["inference-1"] * 2


async def test_a_caller_who_leaves_while_the_key_is_renewed_leaves_it_to_the_next(frontend: Frontend) -> None:
    begun = asyncio.Event()

    async def slow_once(request: Received) -> Reply:
        if "/token" in request.line and not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        return await frontend(request)

    async with serving(slow_once) as server, client() as http, channel_to(server.url) as channel:
        predict = TorchServeClient(channel, keys=keys_of(frontend, http, server.url))
        frontend.make("inference")
        first = asyncio.create_task(predict(REQUEST))
        await begun.wait()
        second = asyncio.create_task(predict(REQUEST))
        await server.until(lambda: len(server.received) == 3)
        first.cancel()
        await second

    assert first.cancelled()
    assert frontend.renewed == 1


async def test_a_management_api_out_of_reach_is_said_to_be(frontend: Frontend) -> None:
    async with client() as http:
        keys = keys_of(frontend, http, "http://127.0.0.1:1")
        with pytest.raises(ServerUnreachable):
            await keys.renewed("inference", await keys.key("inference"))


async def test_no_key_shows_in_what_may_be_logged(
    frontend: Frontend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(frontend) as server, client() as http, channel_to(server.url) as channel:
        keys = keys_of(frontend, http, server.url)
        await TorchServeClient(channel, keys=keys)(REQUEST)

    assert "inference-1" not in f"{keys!r} {keys._keys!r} {caplog.text}"


async def refuse(_request: Received) -> Reply:
    return captured("refused_key")


async def hang(_request: Received) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError
