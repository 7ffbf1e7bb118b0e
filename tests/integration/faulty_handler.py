"""A TorchServe handler that does what its input says, to fail on demand. Archived by the tests."""

from __future__ import annotations

import os
import time
from typing import Any


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
            case "echo":
                return {"predictions": instances}
            case "sleep":
                time.sleep(order["seconds"])
                return {"predictions": instances}
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

    def count(self, instance: dict[str, Any], together: int) -> dict[str, Any]:
        """How many times this one was asked for, and with how many others this time."""
        time.sleep(instance.get("seconds", 0.0))
        key = instance["key"]
        self.times[key] = self.times.get(key, 0) + 1
        return {"key": key, "times": self.times[key], "together": together}
