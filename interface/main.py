"""The gateway as an ASGI application: `uvicorn interface.main:app`."""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match

from bootstrap.gateway import build
from bootstrap.settings import SettingsError, load
from domain.errors import DispatchError
from interface.http import dispatch, health, job_streams, jobs, metrics, models, openapi, predict, problems
from interface.http.exchange import CLIENT_CLOSED_REQUEST, ExchangeMiddleware, exchange_of
from interface.http.problem import plain_problem, problem_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI, Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from bootstrap.gateway import Gateway

GARBAGE = 50_000  # objects more than were freed, before the young ones are looked at; Python's own is 700
NOUNS = (dispatch, predict, jobs, job_streams, models, health, metrics, problems)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Gateway]]:
    """Runs the gateway that the settings describe while the application runs. Raises SettingsError."""
    async with build(load()) as gateway:
        app.state.gateway = gateway
        _calm_the_collector()
        yield {"gateway": gateway}  # uvicorn hands it to GatewayProtocol


class PlainStartMiddleware:
    """Lets a start that fails for the settings say so, without the traceback which a mistake of ours has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failures: list[Message] = []

        async def send_but_failures(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                failures.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, send_but_failures)
        except SettingsError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        except BaseException:
            for each in failures:
                await send(each)
            raise


def _calm_the_collector() -> None:
    """Let the garbage collector walk only what requests leave behind, and less often.

    What is there now stays, and a request leaves nothing behind that only the collector could free.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 50, 100)


def create_app() -> FastAPI:
    app: FastAPI = FastAPIOffline(
        title="Model Dispatcher",
        version=_version(),
        description=openapi.DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]  # FastAPI's documented way
    for noun in NOUNS:
        app.include_router(noun.router)
    app.add_api_route("/", _front_page, include_in_schema=False)
    app.exception_handler(DispatchError)(_dispatch_error)
    app.exception_handler(HTTPException)(_http_exception)
    app.exception_handler(ClientDisconnect)(_disconnect)
    app.add_middleware(ExchangeMiddleware)
    app.add_middleware(PlainStartMiddleware)
    return app


async def _front_page() -> Response:
    return RedirectResponse("docs")


async def _dispatch_error(request: Request, error: DispatchError) -> Response:
    return problem_answer(error, exchange_of(request).request_id).response()


async def _http_exception(request: Request, error: HTTPException) -> Response:
    request_id = exchange_of(request).request_id
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return plain_problem(error.status_code, error.detail, request_id, headers).response()


def _methods(request: Request) -> set[str]:
    """Those of every route of this path; the framework names those of one."""
    found: set[str] = set()
    for route in [*request.app.routes, *(route for noun in NOUNS for route in noun.router.routes)]:
        methods = getattr(route, "methods", None)
        if methods and route.matches(request.scope)[0] is not Match.NONE:
            found |= methods
    return found | {"HEAD"} if "GET" in found else found


async def _disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    """The caller left while sending; nobody reads this."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _version() -> str:
    try:
        return version("model-dispatcher")
    except PackageNotFoundError:
        return "0.0.0+source"


app = create_app()
