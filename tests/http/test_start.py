"""What the application tells the server when it cannot start."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from bootstrap.settings import SettingsError
from interface import main
from interface.main import create_app

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

    import pytest


async def test_settings_that_are_not_usable_are_told_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = await told_at_start(SettingsError("jobs.path: no"), monkeypatch)

    assert told == [{"type": "lifespan.startup.failed", "message": "jobs.path: no"}]


async def test_a_mistake_of_ours_is_told_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = await told_at_start(RuntimeError("a mistake"), monkeypatch)

    assert told["type"] == "lifespan.startup.failed"
    assert "Traceback" in told["message"]
    assert "RuntimeError: a mistake" in told["message"]


async def told_at_start(error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[MutableMapping[str, Any]]:
    """What the server hears when loading the settings raises `error`."""
    told: list[MutableMapping[str, Any]] = []

    def load() -> None:
        raise error

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: MutableMapping[str, Any]) -> None:
        told.append(message)

    monkeypatch.setattr(main, "load", load)
    with suppress(RuntimeError):
        await create_app()({"type": "lifespan", "state": {}}, receive, send)
    return told
