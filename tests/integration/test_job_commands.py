"""`model-dispatcher jobs`: the dead letters of a real gateway, from a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx

from tests.conftest import settings_for
from tests.integration.processes import ROOT, until

if TYPE_CHECKING:
    from tests.conftest import StartGateway
    from tests.integration.processes import RunningGateway, RunningTorchServe

BROKEN = {"do": "raise"}


def jobs(gateway_url: str, *arguments: str) -> tuple[int, list[list[str]], str]:
    """Exit status, the fields of each line, and what it complains of."""
    done = subprocess.run(
        [sys.executable, "-m", "interface.cli", "jobs", *arguments],
        cwd=ROOT,
        env=os.environ | {"DISPATCHER_URL": gateway_url},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [line.split("\t") for line in done.stdout.splitlines()], done.stderr


def submit(gateway: RunningGateway, *instances: Any) -> str:
    body = {"model_name": "faulty", "instances": instances}
    accepted = httpx.post(f"{gateway.url}/jobs", json=body).raise_for_status()
    job_id: str = accepted.json()["id"]
    return job_id


def ended(gateway: RunningGateway, *ids: str) -> None:
    over = {"failed", "succeeded"}
    until(lambda: all(gateway.get(f"/jobs/{each}").json()["status"] in over for each in ids), "the end")


def test_what_failed_is_listed_with_its_reason_and_replayed_one_by_one_or_all(
    start_gateway: StartGateway, torchserve: RunningTorchServe
) -> None:
    gateway = start_gateway(**settings_for(torchserve))
    failed, well = submit(gateway, BROKEN, BROKEN), submit(gateway, {"do": "echo"})
    ended(gateway, failed, well)

    code, lines, _ = jobs(gateway.url, "failed")
    assert code == 0
    (line,) = lines
    assert (line[0], line[1], line[3], line[4]) == (failed, "failed", "faulty", "0+2/2")
    assert "handler failed" in line[5]
    assert {each[0] for each in jobs(gateway.url, "list")[1]} == {failed, well}
    assert jobs(gateway.url, "failed", "--model", "sentiment")[1] == []

    code, lines, _ = jobs(gateway.url, "replay", failed)
    assert (code, lines[0][:2]) == (0, [failed, "queued"])
    ended(gateway, failed)
    assert jobs(gateway.url, "replay", "--all")[1] == [["1 queued again."]]
    ended(gateway, failed)

    code, _, complaint = jobs(gateway.url, "replay", well)
    assert (code, "Only a failed job can be replayed" in complaint) == (1, True)
    assert jobs(gateway.url, "replay")[0] == 2
    assert jobs(gateway.url, "replay", "unknown")[2].startswith("unknown: The gateway answers 404.")
    code, lines, complaint = jobs(gateway.url, "replay", "a/b", failed)
    assert (code, lines[0][0], complaint[:30]) == (1, failed, "a/b: The gateway answers 404. ")
    code, _, complaint = jobs(f"{gateway.url}/docs?", "failed")
    assert (code, "not a Model Dispatcher" in complaint) == (1, True)


def test_a_gateway_that_is_not_there_is_told() -> None:
    assert jobs("http://127.0.0.1:9", "failed") == (
        *(1, []),
        "http://127.0.0.1:9 does not answer (ConnectError).\n",
    )
    code, _, complaint = jobs("127.0.0.1:9", "failed")
    assert (code, "--url: should be like http://" in complaint) == (2, True)


def test_whoever_reads_the_list_may_stop_reading(gateway: RunningGateway) -> None:
    submit(gateway, {"do": "echo"})
    ours, theirs = os.pipe()
    os.close(ours)
    listing = subprocess.run(
        [sys.executable, "-m", "interface.cli", "jobs", "list"],
        cwd=ROOT,
        env=os.environ | {"DISPATCHER_URL": gateway.url},
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(theirs)

    assert (listing.returncode, listing.stderr) == (0, b"")
