"""`model-dispatcher jobs`: what became of jobs, and working again what failed, through a running gateway."""

from __future__ import annotations

import os
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

URL_VARIABLE = "DISPATCHER_URL"
LOCAL = "http://127.0.0.1:8000"
PAGE = 100
TIMEOUT = 60.0  # seconds for one answer


class JobCommandError(Exception):
    """It could not be done; the message says why."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `jobs` to the commands of a parser; what it parses is for `run`."""
    parser = commands.add_parser("jobs", help="see jobs, and replay those that failed")
    url = os.environ.get(URL_VARIABLE, LOCAL)
    parser.add_argument("--url", default=url, help=f"of the gateway; else ${URL_VARIABLE}, else {LOCAL}")
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="jobs, the newest first: id, status, model, progress, reason")
    listing.add_argument("--status", help="queued, running, succeeded, failed, canceled or expired")
    listing.add_argument("--model")
    failed = actions.add_parser("failed", help="the dead letters: jobs that failed, and why")
    failed.add_argument("--model")
    failed.set_defaults(status="failed")
    replay = actions.add_parser("replay", help="work failed jobs once more")
    replay.add_argument("id", nargs="*")
    replay.add_argument("--all", action="store_true", help="all that failed")
    replay.add_argument("--model", help="with --all: those of this model")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status is 1 where the gateway refused, or does not answer."""
    try:
        with httpx.Client(base_url=options.url, timeout=TIMEOUT) as client:
            if options.action == "replay":
                _replay(client, options)
            else:
                for job in _jobs(client, options.status, options.model):
                    sys.stdout.write(f"{_line(job)}\n")
    except (JobCommandError, httpx.HTTPError) as error:
        sys.stderr.write(f"{error or type(error).__name__}\n")
        return 1
    return 0


def _replay(client: httpx.Client, options: argparse.Namespace) -> None:
    if options.all == bool(options.id):
        raise JobCommandError("Say which jobs: their ids, or --all.")
    if options.all:
        parameters = {} if options.model is None else {"model_name": options.model}
        answer = _checked(client.post("/jobs/replay", params=parameters))
        sys.stdout.write(f"{answer['replayed']} jobs are queued again.\n")
    for job_id in options.id:
        job = _checked(client.post(f"/jobs/{job_id}/replay"))
        sys.stdout.write(f"{_line(job)}\n")


def _jobs(client: httpx.Client, status: str | None, model: str | None) -> Iterator[dict[str, Any]]:
    wanted = {"status": status, "model_name": model, "limit": str(PAGE)}
    answer = _checked(
        client.get("/jobs", params={name: value for name, value in wanted.items() if value is not None})
    )
    while True:
        yield from answer["jobs"]
        if answer["next"] is None:
            return
        answer = _checked(client.get(answer["next"]))


def _line(job: dict[str, Any]) -> str:
    progress = job["progress"]
    counts = f"{progress['done']}+{progress['failed']}/{progress['total']}"
    reason = "" if job["error"] is None else f"{job['error']['title']}: {job['error']['detail']}"
    return "\t".join(
        (job["id"], job["status"], job["created_at"], job["model_name"], counts, reason)
    ).rstrip()


def _checked(answer: httpx.Response) -> Any:  # noqa: ANN401  (any JSON)
    if answer.status_code >= HTTPStatus.BAD_REQUEST:
        try:
            detail = answer.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = ""
        raise JobCommandError(f"The gateway answers {answer.status_code}. {detail}".rstrip())
    return answer.json()
