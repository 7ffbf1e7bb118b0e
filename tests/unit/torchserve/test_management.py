from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from domain.errors import ServerFault, ServerTimeout, ServerUnreachable
from domain.fleet import ServedModel
from infrastructure.torchserve.management import PingProbe, Reachable, TorchServeManagement
from tests.unit.torchserve.raw_server import Answer, Received, Reply, always, captured, client, ok, serving
from tests.unit.torchserve.test_key_file import Clock, Frontend, keys_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from domain.ports import ServerProbe

CAPTURED = {
    "/models?limit=100&next_page_token=0": captured("models"),
    "/models/probe/all": captured("describe_probe_all"),
    "/models/probe": captured("describe_probe"),
    "/models/bare/all": captured("describe_bare_all"),
    "/models/%74okenizer/all": captured("describe_tokenizer"),
}


def paths(replies: Mapping[str, Reply]) -> Answer:
    async def answer(request: Received) -> Reply:
        return replies[request.line.split()[1]]

    return answer


def listing(*names: str, following: str | None = None) -> Reply:
    page: dict[str, object] = {"models": [{"modelName": name, "modelUrl": "x.mar"} for name in names]}
    return ok(json.dumps(page | ({"nextPageToken": following} if following else {})).encode())


def described(version: str, *statuses: str, free: int = 100) -> dict[str, object]:
    return {
        "modelVersion": version,
        "workers": [{"status": status} for status in statuses],
        "jobQueueStatus": {"remainingCapacity": free, "pendingRequests": 0},
    }


async def served(answer: Answer) -> tuple[ServedModel, ...]:
    async with serving(answer) as server, client() as http:
        probe: ServerProbe = TorchServeManagement(http, server.url)
        return await probe()


async def test_every_version_of_every_model_is_told() -> None:
    assert await served(paths(CAPTURED)) == (
        ServedModel("bare", "1.0", queue_free=6),
        ServedModel("probe", "1.0", queue_free=4),  # two requests waited at that moment
        ServedModel("probe", "2.0", default=False, queue_free=6),
        ServedModel("tokenizer", "1.0", queue_free=6),
    )


async def test_the_default_is_the_version_that_describes_itself_without_one() -> None:
    two = [described("1.0", "READY"), described("2.0", "READY")]
    replies = {
        "/models?limit=100&next_page_token=0": listing("m"),
        "/models/m/all": ok(json.dumps(two).encode()),
        "/models/m": ok(json.dumps(two[1:]).encode()),
    }

    assert [(m.version, m.default) for m in await served(paths(replies))] == [("1.0", False), ("2.0", True)]


async def test_only_workers_that_are_ready_count_as_ready() -> None:
    replies = {
        "/models?limit=100&next_page_token=0": listing("m", "empty"),
        "/models/m/all": ok(json.dumps([described("1", "READY", "UNLOADING", free=0)]).encode()),
        "/models/empty/all": ok(json.dumps([described("1")]).encode()),
    }

    assert await served(paths(replies)) == (
        ServedModel("m", "1", workers=2, workers_ready=1, queue_free=0),
        ServedModel("empty", "1", workers=0, workers_ready=0, queue_free=100),
    )


async def test_a_long_list_is_read_page_by_page() -> None:
    replies = {
        "/models?limit=100&next_page_token=0": listing("a", following="1&x"),
        "/models?limit=100&next_page_token=1%26x": listing("b", following="2"),
        "/models?limit=100&next_page_token=2": listing(),
        "/models/a/all": ok(json.dumps([described("1")]).encode()),
        "/models/b/all": ok(json.dumps([described("1")]).encode()),
    }

    assert [model.name for model in await served(paths(replies))] == ["a", "b"]


async def test_a_list_without_end_is_the_servers_fault() -> None:
    with pytest.raises(ServerFault, match="more than 10000 models"):
        await served(always(listing("a", following="0")))


async def test_a_model_that_is_removed_meanwhile_is_left_out() -> None:
    replies = CAPTURED | {
        "/models/bare/all": captured("describe_unknown"),
        "/models/probe": captured("describe_unknown"),
    }

    assert [(m.name, m.default) for m in await served(paths(replies))] == [
        ("probe", False),
        ("probe", False),
        ("tokenizer", True),
    ]


async def test_a_model_that_nobody_can_ask_for_is_left_out() -> None:
    assert await served(always(listing("a/b", ".."))) == ()


async def test_at_most_eight_descriptions_are_asked_for_at_once() -> None:
    asking = most = 0

    async def answer(request: Received) -> Reply:
        nonlocal asking, most
        if "/all" not in request.line:
            return listing(*(f"m{i}" for i in range(30)))
        asking += 1
        most = max(most, asking)
        await server.until(lambda: len(server.received) >= 9)
        for _ in range(50):  # turns of the loop, in which one more would come
            await asyncio.sleep(0)
        asking -= 1
        return ok(json.dumps([described("1")]).encode())

    async with serving(answer) as server, client() as http:
        assert len(await TorchServeManagement(http, server.url)()) == 30

    assert most == 8


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (captured("unknown_path"), "not that of a TorchServe management API"),
        (captured("root"), "not that of a TorchServe management API"),
        (captured("refused_key"), "wants a key"),
        (captured("ping"), "what TorchServe does not"),
        (ok(b""), "what TorchServe does not"),
        (ok(b'{"models": [{"modelName": 1}]}'), "what TorchServe does not"),
        (captured("handler_set_204"), "answers with 204"),
    ],
)
async def test_a_server_that_does_not_say_is_at_fault(reply: Reply, words: str) -> None:
    with pytest.raises(ServerFault, match=words):
        await served(always(reply))


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with client() as http:
        for probe in (
            TorchServeManagement(http, "http://127.0.0.1:1"),
            PingProbe(http, "http://127.0.0.1:1", []),
        ):
            with pytest.raises(ServerUnreachable):
                await probe()


async def test_each_question_is_bounded_as_a_whole_however_slowly_it_drips() -> None:
    drip = Reply(b"HTTP/1.1 200 \r\ncontent-length: 100\r\n\r\n{")
    async with serving(always(drip)) as server, client(seconds=60) as http, asyncio.timeout(5):
        with pytest.raises(ServerTimeout):
            await TorchServeManagement(http, server.url, seconds=0.05)()


async def test_management_is_asked_with_its_own_key(tmp_path: Path) -> None:
    frontend = Frontend(tmp_path / "key_file.json", Clock())
    frontend.start()

    async def answer(request: Received) -> Reply:
        if "/token" in request.line:
            return await frontend(request)
        right = request.headers["authorization"] == f"Bearer {frontend.keys['management'][0]}"
        return listing() if right else captured("refused_key")

    async with serving(answer) as server, client() as http:
        keys = keys_of(frontend, http, server.url)
        assert await TorchServeManagement(http, server.url, keys=keys)() == ()
        frontend.make("management")
        assert await TorchServeManagement(http, server.url, keys=keys)() == ()

    assert frontend.renewed == 1


async def test_a_ping_believes_the_models_it_was_told() -> None:
    async with serving(paths({"/ping": captured("ping")})) as server, client() as http:
        probe: ServerProbe = PingProbe(http, server.url, ["a", "b"])
        assert await probe() == (ServedModel("a", None), ServedModel("b", None))


async def test_a_server_that_calls_itself_unhealthy_is_at_fault() -> None:
    unhealthy = Reply(b"HTTP/1.1 500 \r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}", "rst")
    async with serving(always(unhealthy)) as server, client() as http:
        with pytest.raises(ServerFault, match="not healthy"):
            await PingProbe(http, server.url, ["a"])()


async def test_a_server_whose_management_port_alone_is_alive_is_unreachable() -> None:
    async with (
        serving(paths({"/models?limit=100&next_page_token=0": listing()})) as management,
        client() as http,
    ):
        inner = TorchServeManagement(http, management.url)
        assert await inner() == ()
        with pytest.raises(ServerUnreachable):
            await Reachable(inner, http, "http://127.0.0.1:1")()


async def test_a_server_that_calls_itself_unhealthy_is_asked_for_its_models_all_the_same() -> None:
    unhealthy = Reply(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
    replies = {"/ping": unhealthy, "/models?limit=100&next_page_token=0": listing()}
    async with serving(paths(replies)) as server, client() as http:
        assert await Reachable(TorchServeManagement(http, server.url), http, server.url)() == ()
