"""The main job, from a caller to the real model and back."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.integration.processes import RunningGateway, RunningTorchServe


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I loved every minute of it.", "positive"),
        ("Utterly boring.", "negative"),
        ("What's new?", "neutral"),
    ],
)
def test_a_text_has_a_sentiment(gateway: RunningGateway, text: str, label: str) -> None:
    answer = gateway.ask("sentiment", text).raise_for_status().json()

    (prediction,) = answer["predictions"]
    assert (answer["model_name"], answer["model_version"]) == ("sentiment", "1.0")
    assert prediction["label"] == label
    assert prediction["score"] == max(prediction["scores"].values())
    assert sum(prediction["scores"].values()) == pytest.approx(1.0, abs=1e-3)
    assert sorted(prediction["scores"]) == ["negative", "neutral", "positive"]


def test_many_texts_are_answered_in_order(gateway: RunningGateway) -> None:
    texts = ["I loved every minute of it.", "Utterly boring.", "What's new?"] * 40

    answer = gateway.ask("sentiment", *texts).raise_for_status().json()

    assert [each["label"] for each in answer["predictions"]] == ["positive", "negative", "neutral"] * 40


async def test_callers_who_come_together_each_get_their_own_answer(gateway: RunningGateway) -> None:
    texts = {
        "I loved every minute of it.": "positive",
        "Utterly boring.": "negative",
        "What's new?": "neutral",
    }

    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

        async def label(text: str) -> str:
            answer = await client.post(
                "/dispatch_model", json={"model_name": "sentiment", "instances": [text]}
            )
            found: str = answer.raise_for_status().json()["predictions"][0]["label"]
            return found

        found = await asyncio.gather(*(label(text) for text in list(texts) * 8))

    assert found == list(texts.values()) * 8


def test_a_version_can_be_asked_for(gateway: RunningGateway) -> None:
    known, unknown = [gateway.ask("sentiment", "Fine.", model_version=v) for v in ("1.0", "9.9")]

    assert known.json()["model_version"] == "1.0"
    assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/version-not-found")


def test_an_unknown_model_is_told_what_there_is(gateway: RunningGateway) -> None:
    answer = gateway.ask("nope", "x")

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/model-not-found")
    assert answer.json()["detail"].endswith("Served: faulty, sentiment.")


def test_the_instances_a_model_refuses_are_pointed_at(gateway: RunningGateway) -> None:
    answer = gateway.ask("sentiment", "Fine.", "", 17, {"text": "Good."}, {"txt": "x"})

    assert answer.status_code == 422
    pointers = [error["pointer"] for error in answer.json()["errors"]]
    assert pointers == ["#/instances/1", "#/instances/2", "#/instances/4"]


def test_the_callers_host_is_never_connected_to(gateway: RunningGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0)
        host, port = trap.getsockname()

        answer = gateway.ask("sentiment", "x", host=host, port=port)

        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/host")
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_the_configured_servers_own_address_is_accepted(
    gateway: RunningGateway, torchserve: RunningTorchServe
) -> None:
    answer = gateway.ask("sentiment", "Fine.", host="127.0.0.1", port=torchserve.server.ports.inference)

    assert answer.status_code == 200


def test_what_is_served_is_listed(gateway: RunningGateway) -> None:
    model = gateway.get("/models/sentiment").json()

    assert (model["default_version"], model["ready"]) == ("1.0", True)
    assert model["versions"][0]["servers"] == {"local": "ready"}
    assert {each["name"] for each in gateway.get("/models").json()["models"]} == {"faulty", "sentiment"}


def test_the_gateway_is_ready_while_the_model_answers(gateway: RunningGateway) -> None:
    answer = gateway.get("/health/ready")

    assert (answer.status_code, answer.json()["models"]) == (200, {"faulty": True, "sentiment": True})
