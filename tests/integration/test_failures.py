"""What TorchServe's real failures become."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import settings_for
from tests.integration.processes import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import StartGateway
    from tests.integration.gate import Gate
    from tests.integration.processes import RunningGateway, RunningTorchServe

ECHO = {"do": "echo"}


def recovered(gateway: RunningGateway) -> bool:
    """Whether the model answers, and the gateway has seen that its worker is back."""
    answered = gateway.ask("faulty", ECHO).status_code == 200
    return answered and bool(gateway.get("/models/faulty").json()["ready"])


@pytest.fixture
def well(gateway: RunningGateway) -> RunningGateway:
    """The gateway of all tests, when the model has got over what the last one did to it."""
    until(lambda: recovered(gateway), "a model that is well")
    return gateway


@pytest.mark.parametrize(
    ("order", "status", "kind"),
    [
        ({"do": "raise"}, 502, "server-fault"),
        ({"do": "shorten"}, 502, "server-fault"),
        ({"do": "nan"}, 502, "server-fault"),
        ({"do": "refuse", "status": 400}, 400, "input-rejected-by-model"),
        ({"do": "refuse", "status": 422}, 422, "input-rejected-by-model"),
        ({"do": "die"}, 502, "server-fault"),
    ],
)
def test_a_failing_handler_is_told_apart(
    well: RunningGateway, order: dict[str, Any], status: int, kind: str
) -> None:
    answer = well.ask("faulty", order)

    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}"), answer.text
    assert "secret" not in answer.text
    until(lambda: recovered(well), "an answer after the failure")


def test_a_worker_killed_in_mid_request_is_a_502_and_comes_back(well: RunningGateway, gate: Gate) -> None:
    with ThreadPoolExecutor() as threads:
        victim = threads.submit(well.ask, "faulty", gate.held())
        os.kill(gate.until_begun(), signal.SIGKILL)
        answer = victim.result()

    assert (answer.status_code, answer.json()["detail"]) == (502, "The model's worker died on this request.")
    until(lambda: recovered(well), "an answer after the worker's death")


def test_a_late_answer_is_a_504_and_never_the_next_callers(
    start_gateway: StartGateway, torchserve: RunningTorchServe
) -> None:
    gateway = start_gateway(**settings_for(torchserve), MODELS__FAULTY__ATTEMPT_TIMEOUT="0.5")

    late = gateway.ask("faulty", {"do": "sleep", "seconds": 1.5})
    next_one = gateway.ask("faulty", ECHO, headers={"x-request-timeout": "20"})

    assert (late.status_code, late.json()["type"]) == (504, "/problems/server-timeout")
    assert next_one.status_code in {200, 504}
    until(lambda: gateway.ask("faulty", ECHO).json().get("predictions") == [ECHO], "the next answer")


def test_a_full_queue_is_a_503_with_a_time_to_come_back(
    start_gateway: StartGateway, torchserve: RunningTorchServe, gate: Gate
) -> None:
    none = {f"DEFAULTS__{policy}": "false" for policy in ("COALESCING", "ADMISSION", "BATCHING")}
    gateway = start_gateway(**settings_for(torchserve), **none)  # else the queue is ours
    until(gateway.ready, "a ready gateway")
    with ThreadPoolExecutor() as threads:
        first = [threads.submit(gateway.ask, "faulty", gate.held()) for _ in range(3)]
        until(lambda: torchserve.pending("faulty") == 2, "a full queue")
        refused = gateway.ask("faulty", ECHO)
        gate.open()
        answered = [each.result().status_code for each in first]

    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/server-busy")
    assert refused.headers["retry-after"] == "1"
    assert answered == [200, 200, 200]


def test_a_torchserve_that_stops_and_starts_again_is_found_again(
    start_gateway: StartGateway, own_torchserve: RunningTorchServe, tmp_path: Path
) -> None:
    gateway = start_gateway(**_only_faulty(own_torchserve, tmp_path))
    until(gateway.ready, "a ready gateway")
    assert recovered(gateway)

    own_torchserve.process.stop()
    down = gateway.ask("faulty", ECHO)
    ready = gateway.get("/health/ready")
    assert down.status_code in {502, 503}
    assert gateway.ask("faulty", ECHO).status_code == 503
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert "local: " in ready.json()["reasons"][0]

    own_torchserve.start()  # with other keys
    until(lambda: recovered(gateway), "an answer after the restart", seconds=15)
    assert gateway.ready()


def test_a_torchserve_killed_in_mid_request_is_a_502(
    start_gateway: StartGateway, own_torchserve: RunningTorchServe, tmp_path: Path, gate: Gate
) -> None:
    gateway = start_gateway(**_only_faulty(own_torchserve, tmp_path))
    until(gateway.ready, "a ready gateway")
    with ThreadPoolExecutor() as threads:
        victim = threads.submit(gateway.ask, "faulty", gate.held())
        gate.until_begun()
        own_torchserve.process.stop(signal.SIGKILL)
        answer = victim.result()

    assert (answer.status_code, answer.json()["type"]) == (502, "/problems/server-unreachable")


def test_an_expired_key_is_renewed_and_no_caller_notices(
    start_gateway: StartGateway, forgetful_torchserve: RunningTorchServe, tmp_path: Path
) -> None:
    calm = {"HEALTH__INTERVAL": "3600"}  # nobody renews the key meanwhile
    gateway = start_gateway(**_only_faulty(forgetful_torchserve, tmp_path), **calm)
    until(lambda: recovered(gateway), "a first answer")
    before = forgetful_torchserve.keys()["inference"]
    expires = datetime.fromisoformat(before["expiration time"])

    until(lambda: datetime.now(UTC) > expires, "the key's end", seconds=10)
    answer = gateway.ask("faulty", ECHO)

    assert answer.status_code == 200
    assert forgetful_torchserve.keys()["inference"]["key"] != before["key"]


def test_keys_that_expire_under_load_fail_no_request(
    start_gateway: StartGateway, forgetful_torchserve: RunningTorchServe, tmp_path: Path
) -> None:
    gateway = start_gateway(**_only_faulty(forgetful_torchserve, tmp_path))
    until(gateway.ready, "a ready gateway")
    seen = {forgetful_torchserve.keys()["inference"]["key"]}
    statuses = set()

    def work() -> bool:
        statuses.add(gateway.ask("faulty", ECHO).status_code)
        seen.add(forgetful_torchserve.keys()["inference"]["key"])
        return len(seen) >= 4

    until(work, "three renewals", seconds=30)
    assert statuses == {200}


def test_requests_in_flight_finish_when_the_gateway_is_stopped(
    start_gateway: StartGateway, torchserve: RunningTorchServe, gate: Gate
) -> None:
    gateway = start_gateway(**settings_for(torchserve))
    with ThreadPoolExecutor() as threads:
        last = threads.submit(gateway.ask, "faulty", gate.held())
        gate.until_begun()
        code = threads.submit(gateway.process.stop)
        until(lambda: not gateway.answers(), "an end of new requests")
        gate.open()

    assert last.result().status_code == 200
    assert code.result() == 0


def test_the_log_has_no_key_and_no_payload(
    start_gateway: StartGateway, torchserve: RunningTorchServe
) -> None:
    gateway = start_gateway(**settings_for(torchserve), LOG__LEVEL="debug")

    gateway.ask("faulty", ECHO | {"note": "a very private text"}, headers={"x-request-id": "find-me"})
    gateway.ask("faulty", {"do": "raise", "note": "a very private text"})
    gateway.process.stop()

    log = gateway.process.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["status"] for line in lines if line.get("request_id") == "find-me"] == [200]
    assert "private" not in log
    for key in torchserve.keys().values():
        assert key["key"] not in log


def _only_faulty(torchserve: RunningTorchServe, folder: Path) -> dict[str, str]:
    config = folder / "dispatcher.toml"
    config.write_text("[models.faulty]\n")
    return settings_for(torchserve) | {"CONFIG": str(config)}
