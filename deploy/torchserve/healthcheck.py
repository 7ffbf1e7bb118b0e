"""Exit code 0 when TorchServe has a ready worker for a model, else 1 and the reason.

    python healthcheck.py MODEL KEY_FILE

Asks the management API: `/ping` says Healthy while a model is loading or its worker keeps crashing.
Standard library only.
"""

from __future__ import annotations

import http.client
import json
import sys
from http import HTTPStatus
from pathlib import Path

PORT = 8081
TIMEOUT = 4.0  # seconds


class UnhealthyError(Exception):
    """The message says what is wrong."""


def check(model: str, key_file: Path) -> None:
    """Raise UnhealthyError unless `model` has a ready worker."""
    status, body = get(f"/models/{model}", key(key_file, "management"))
    if status == HTTPStatus.BAD_REQUEST:  # TorchServe's 401; keys expire after an hour
        get("/token?type=management", key(key_file, "API"))
        status, body = get(f"/models/{model}", key(key_file, "management"))
    if status != HTTPStatus.OK:
        raise UnhealthyError(f"TorchServe answers {status} for {model}")
    states = [worker["status"] for version in json.loads(body) for worker in version["workers"]]
    if "READY" not in states:
        raise UnhealthyError(f"workers of {model}: {', '.join(states) or 'none'}")


def key(key_file: Path, kind: str) -> str:
    """The key of that kind, as TorchServe last wrote it."""
    return str(json.loads(key_file.read_text(encoding="utf-8"))[kind]["key"])


def get(path: str, bearer: str) -> tuple[int, bytes]:
    """The status and body of the management API's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {bearer}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def main() -> None:
    """Check what the command line names."""
    model, key_file = sys.argv[1:]
    try:
        check(model, Path(key_file))
    except UnhealthyError as error:
        sys.exit(str(error))
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"TorchServe does not answer: {error}")
    except (ValueError, KeyError) as error:
        sys.exit(f"TorchServe's answer or its key file makes no sense: {error!r}")


if __name__ == "__main__":
    main()
