"""A TorchServe handler that does what its input says, to fail on demand. Archived by the tests."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

HELD_AT_MOST = 50.0  # seconds: TorchServe's response timeout is 60


class Faulty:
    """Each instance is `{"do": …}`; the answer to all of them is what the first one asks for.

    But where any of them is to raise, all fail: one poisons its batch.
    """

    def initialize(self, context: Any) -> None:
        self.context = context
        self.times: dict[str, int] = {}

    def handle(self, data: list[dict[str, Any]], _context: Any) -> list[Any]:
        return [self.answer(entry["body"]["instances"]) for entry in data]

    def answer(self, instances: list[Any]) -> Any:
        order = next((each for each in instances if each["do"] == "raise"), instances[0])
        match order["do"]:
            case "sleep":
                time.sleep(order["seconds"])
            case "hold":
                self.hold(Path(order["until"]), Path(order["begun"]))
            case "count":
                return {"predictions": [self.count(each, len(instances)) for each in instances]}
            case "raise":
                raise ValueError("a secret of the handler")
            case "die":
                os._exit(1)
            case "shorten":
                return {"predictions": instances[1:]}
            case "nan":
                return {"predictions": [float("nan")] * len(instances)}
            case "refuse":
                self.context.set_response_status(order["status"], "Refused", 0)
                return {"error": {"code": order["status"], "message": "the handler's own words"}}
        return {"predictions": instances}

    def hold(self, until: Path, begun: Path) -> None:
        """Say in the file `begun` which process is at work, and wait until there is a file `until`."""
        written = begun.with_suffix(f".{os.getpid()}")
        written.write_text(str(os.getpid()))
        written.rename(begun)
        give_up = time.monotonic() + HELD_AT_MOST
        while not until.exists() and time.monotonic() < give_up:
            time.sleep(0.01)

    def count(self, instance: dict[str, Any], together: int) -> dict[str, Any]:
        """How many times this one was asked for, and with how many others this time."""
        time.sleep(instance.get("seconds", 0.0))
        key = instance["key"]
        self.times[key] = self.times.get(key, 0) + 1
        return {"key": key, "times": self.times[key], "together": together}
