"""Seams between policies that only a real model's failure shows."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx

from tests.conftest import settings_for

if TYPE_CHECKING:
    from tests.conftest import StartGateway
    from tests.integration.processes import RunningTorchServe

GUILTY = 13


async def test_one_poison_text_among_32_callers_fails_only_its_caller(
    start_gateway: StartGateway, torchserve: RunningTorchServe
) -> None:
    gateway = start_gateway(**settings_for(torchserve), MODELS__FAULTY__CACHING="true")
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

        async def ask(instance: dict[str, Any]) -> httpx.Response:
            body = {"model_name": "faulty", "instances": [instance]}
            return await client.post("/dispatch_model", json=body)

        keys = [secrets.token_hex(8) for _ in range(32)]
        orders: list[dict[str, Any]] = [
            {"do": "raise" if i == GUILTY else "count", "key": key} for i, key in enumerate(keys)
        ]
        # While it is being answered the others gather; it may also come late and travel with them.
        holder: dict[str, Any] = {"do": "count", "key": "holder", "seconds": 1.0}
        _, *answers = await asyncio.gather(*map(ask, [holder, *orders]))

    assert Counter(each.status_code for each in answers) == {200: 31, 502: 1}
    assert answers[GUILTY].json()["detail"] == "The model's handler failed on this request."
    others = [each.json()["predictions"][0] for each in answers if each.status_code == 200]
    assert [each["key"] for each in others] == [key for i, key in enumerate(keys) if i != GUILTY]
    assert max(each["together"] for each in others) > 1, "they did not travel together"
