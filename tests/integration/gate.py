"""Requests that a real model holds until the test lets them go, instead of sleeping for so many seconds."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from tests.integration.processes import until

if TYPE_CHECKING:
    from pathlib import Path


class Gate:
    """The faulty model answers what is `held()` once the gate is open."""

    def __init__(self, folder: Path) -> None:
        self._opened, self._begun = folder / "gate-opened", folder / "gate-begun"

    def held(self) -> dict[str, Any]:
        """An instance that nobody else asks for."""
        files = {"until": str(self._opened), "begun": str(self._begun)}
        return {"do": "hold", "key": secrets.token_hex(8), **files}

    def until_begun(self) -> int:
        """Return when the model holds something: the pid of the worker that does."""
        until(self._begun.exists, "the model's work")
        return int(self._begun.read_text())

    def open(self) -> None:
        """Let everything go, now and later."""
        self._opened.touch()
