from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from domain.error_response import kind
from interface.http.dispatch_body import decode
from interface.http.job_body import decode as decode_job
from interface.http.ndjson import chunks
from interface.http.problem import STATUS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_documentation_needs_nothing_from_the_internet(
    client: httpx.AsyncClient, path: str
) -> None:
    page = await client.get(path)

    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    for url in loaded:
        assert url.startswith("/")
        assert (await client.get(url)).status_code == 200


async def test_the_front_page_leads_to_the_documentation(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", follow_redirects=True)

    assert (answer.status_code, answer.url.path) == (200, "/docs")


async def test_the_document_shows_every_error_of_the_main_route(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    operation = document["paths"]["/dispatch_model"]["post"]
    shown = {
        example["value"]["type"]
        for response in operation["responses"].values()
        for content in response["content"].values()
        for example in content.get("examples", {}).values()
    }
    assert shown == {f"/problems/{kind(error)}" for error in STATUS}


async def test_every_reference_in_the_document_can_be_followed(client: httpx.AsyncClient) -> None:
    answer = await client.get("/openapi.json")

    schemas = answer.json()["components"]["schemas"]
    referenced = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.text))
    assert referenced <= set(schemas)
    assert "HTTPValidationError" not in referenced


async def test_the_examples_are_requests_we_take(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    content = document["paths"]["/dispatch_model"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert decode(json.dumps(example["value"]).encode(), 100).model_name == "sentiment"


async def test_the_examples_of_jobs_are_jobs_we_take(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    content = document["paths"]["/jobs"]["post"]["requestBody"]["content"]
    body = decode_job(json.dumps(content["application/json"]["example"]).encode(), 100)
    lines = chunks(_once(content["application/x-ndjson"]["example"]), max_line=100, max_instances=2)
    assert (body.model_name, [size async for size, _ in lines]) == ("sentiment", [2])


async def _once(text: str) -> AsyncIterator[bytes]:
    yield text.encode()
