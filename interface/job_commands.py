"""`model-dispatcher jobs`: what became of jobs, and working again what failed, through a running gateway."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from interface.gateway_address import add_url

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 100
TIMEOUT = 60.0  # seconds for one answer
INTERRUPTED = 130  # exit status; 128 + SIGINT, as shells count


class JobCommandError(Exception):
    """It could not be done; the message says why."""

    exit_code = 1


class Unclear(JobCommandError):
    """It has not been said what to do; the message says what to change."""

    exit_code = 2


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `jobs` to the commands of a parser; what it parses is for `run`."""
    parser = commands.add_parser("jobs", help="see jobs, and replay those that failed")
    add_url(parser)
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser(
        "list", help="jobs, the newest first: id, status, time, model, counts, reason"
    )
    listing.add_argument("--status", help="queued, running, succeeded, failed, canceled or expired")
    listing.add_argument("--model")
    failed = actions.add_parser("failed", help="the dead letters: jobs that failed, and why")
    failed.add_argument("--model")
    failed.set_defaults(status="failed")
    replay = actions.add_parser("replay", help="work failed jobs once more")
    replay.add_argument("id", nargs="*")
    replay.add_argument("--all", action="store_true", help="all that failed")
    replay.add_argument("--model", help="with --all: those of this model")
    for action in (listing, failed, replay):
        add_url(action, default=argparse.SUPPRESS)  # what stood before the action holds


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status is 1 where the gateway refuses any of it or does not answer, 2 where Unclear."""
    try:
        with httpx.Client(base_url=options.url, timeout=TIMEOUT) as client:
            if options.action == "replay":
                return _replay(client, options)
            for job in _jobs(client, options.status, options.model):
                sys.stdout.write(f"{_line(job)}\n")
            sys.stdout.flush()
    except JobCommandError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except httpx.HTTPError as error:
        sys.stderr.write(f"{options.url} does not answer ({type(error).__name__}).\n")
        return 1
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes in the end
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _replay(client: httpx.Client, options: argparse.Namespace) -> int:
    if options.all == bool(options.id):
        raise Unclear("Say which jobs: their ids, or --all.")
    if options.id and options.model is not None:
        raise Unclear("--model goes with --all; an id is of one job, whatever its model.")
    if options.all:
        parameters = {} if options.model is None else {"model_name": options.model}
        answer = _checked(client.post("/jobs/replay", params=parameters))
        sys.stdout.write(f"{answer['replayed']} queued again.\n")
    status = 0
    for job_id in options.id:
        try:
            job = _checked(client.post(f"/jobs/{quote(job_id, safe='')}/replay"))
        except JobCommandError as error:
            sys.stderr.write(f"{job_id}: {error}\n")
            status = 1
        else:
            sys.stdout.write(f"{_line(job)}\n")
    return status


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
    # What a model said must not command a terminal.
    one_line = "".join(each if each.isprintable() else "?" for each in " ".join(reason.split()))
    return "\t".join(
        (job["id"], job["status"], job["created_at"], job["model_name"], counts, one_line)
    ).rstrip()


def _checked(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of the answer. Raises JobCommandError where it is a refusal, or not a gateway's."""
    try:
        said: dict[str, Any] = dict(answer.json())
    except (ValueError, TypeError):
        said = {}
    if answer.is_error:
        raise JobCommandError(f"The gateway answers {answer.status_code}. {said.get('detail', '')}".rstrip())
    if not said:
        raise JobCommandError("What answers there is not a Model Dispatcher; --url says where one is.")
    return said
