"""One HTTP exchange with a TorchServe: its whole answer, or why there is none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import httpx

from domain.errors import ServerError, ServerFault, ServerTimeout, ServerUnreachable
from infrastructure.torchserve import wire

if TYPE_CHECKING:
    from collections.abc import Mapping

MEBIBYTE = 1024 * 1024
BAD_REQUEST = 400

NOT_REACHED = "The model server cannot be reached."
NOT_ACCEPTED = "The model server accepts no connection in time."
CLOSED_BEFORE = "The model server closed the connection before it answered."
NOT_HTTP = "The model server's answer is not HTTP that we can read."
BROKE_OFF = "The model server broke off its answer."

FAILURES: Mapping[type[Exception], tuple[type[ServerError], str]] = {
    httpx.HTTPError: (ServerFault, "The model server could not be asked."),
    httpx.InvalidURL: (ServerFault, "The model server's address is not valid."),
    UnicodeError: (ServerFault, "The model server's address is not valid."),  # httpx lets idna's through
    httpx.StreamError: (ServerFault, "The model server's answer could not be read."),
    httpx.UnsupportedProtocol: (ServerFault, "The model server's protocol is neither http nor https."),
    httpx.ConnectError: (ServerUnreachable, NOT_REACHED),
    httpx.ConnectTimeout: (ServerUnreachable, NOT_ACCEPTED),
    httpx.ProxyError: (ServerUnreachable, "The model server cannot be reached through its proxy."),
    httpx.NetworkError: (ServerUnreachable, CLOSED_BEFORE),
    httpx.PoolTimeout: (ServerTimeout, "No connection to the model server was free in time."),
    httpx.TimeoutException: (ServerTimeout, "The model server did not answer in time."),
    httpx.ProtocolError: (ServerFault, NOT_HTTP),
}


@dataclass(frozen=True, slots=True)
class Complaint:
    """How TorchServe's frontend words an error: `{"code": <status>, "type": …, "message": …}`."""

    type: str
    message: str


class Answer(NamedTuple):  # a third of a frozen dataclass's time to make
    """A complete answer of TorchServe, whatever its status."""

    status: int
    body: bytes

    @property
    def complaint(self) -> Complaint | None:
        """What its frontend complains of; None where the body is not of that form, as a handler's own."""
        match wire.decode_or_none(self.body):
            case {"code": int(code), "type": str(kind), **rest} if code == self.status:
                message = rest.pop("message", "")  # Gson leaves out a null
                if not rest and isinstance(message, str) and kind.endswith("Exception"):
                    return Complaint(kind, message)
        return None

    @property
    def refuses_key(self) -> bool:
        """A wrong, expired or missing key is 400, before anything else is looked at."""
        if self.status != BAD_REQUEST:
            return False
        complaint = self.complaint
        return complaint is not None and complaint.type == "InvalidKeyException"


async def exchange(
    http: httpx.AsyncClient, request: httpx.Request, *, max_answer_bytes: int, seconds: float
) -> Answer:
    """The answer, read to its end within `seconds`.

    Raises ServerUnreachable where no answer began, ServerTimeout, or ServerFault.
    """
    try:
        async with asyncio.timeout(seconds):
            return await _send(http, request, max_answer_bytes)
    except TimeoutError as error:
        raise translated(httpx.ReadTimeout("")) from error


def question(http: httpx.AsyncClient, method: str, url: str, key: str | None) -> httpx.Request:
    """A request with no header but those it needs. Raises ServerFault at a bad URL."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}  # TorchServe minds the case of this
    timeouts = {"timeout": http.timeout.as_dict()}
    try:
        return httpx.Request(method, url, headers=headers, extensions=timeouts)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise translated(error) from error


def translated(error: Exception) -> ServerError:
    """What an exception of httpx is to us; the nearest base class in FAILURES decides."""
    kind, message = next(FAILURES[base] for base in type(error).__mro__ if base in FAILURES)
    return kind(message)


async def _send(http: httpx.AsyncClient, request: httpx.Request, max_answer_bytes: int) -> Answer:
    try:
        response = await http.send(request, stream=True, follow_redirects=False)
    except tuple(FAILURES) as error:
        raise translated(error) from error
    try:
        return Answer(response.status_code, await _body(response, max_answer_bytes))
    except httpx.TimeoutException as error:
        raise translated(error) from error
    except tuple(FAILURES) as error:
        raise ServerFault(BROKE_OFF) from error
    finally:
        await response.aclose()


async def _body(response: httpx.Response, max_answer_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():  # raw: no handler gets us to unpack a bomb
        body += chunk
        if len(body) > max_answer_bytes:
            raise ServerFault(f"The model server's answer is larger than {max_answer_bytes} bytes.")
    return bytes(body)
