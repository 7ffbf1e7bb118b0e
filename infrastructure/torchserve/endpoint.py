"""One port of a TorchServe, and the key it wants."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from domain.errors import ServerFault
from infrastructure.torchserve.exchange import exchange, question

if TYPE_CHECKING:
    import httpx

    from infrastructure.torchserve.exchange import Answer
    from infrastructure.torchserve.key_file import KeyFile, Kind

LONGEST_SEGMENT = 1024  # bytes of a path segment; TorchServe refuses a URI over 4096 bytes with 400
RENEWALS = 2  # of the key, for one question
KEY_REFUSED = "The model server refused our key. Check that the configured key file is this server's own."


class Endpoint:
    """One port of a TorchServe, asked with the key it wants.

    `seconds` bounds each exchange as a whole; None leaves it to the client's timeouts and the caller.
    Where a key is refused, the question is asked again with another: twice at most, as a second gateway
    process may renew it at the same moment, which ends the life of the key this one has just got.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: str,
        *,
        keys: KeyFile | None,
        kind: Kind,
        max_answer_bytes: int,
        seconds: float | None = None,
    ) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._keys = keys
        self._kind: Kind = kind
        self._max_answer_bytes = max_answer_bytes
        self._seconds = seconds

    async def ask(self, method: str, path: str, content: bytes | None = None) -> Answer:
        """The answer, of any status but a refused key.

        Raises ServerUnreachable, ServerTimeout, ServerFault.
        """
        key = await self._keys.key(self._kind) if self._keys else None
        answer = await self._exchange(method, path, content, key)
        for _ in range(RENEWALS):
            if not answer.refuses_key:
                return answer
            key = await self._other_than(key)
            answer = await self._exchange(method, path, content, key)
        if answer.refuses_key:
            raise ServerFault(KEY_REFUSED)
        return answer

    async def _exchange(self, method: str, path: str, content: bytes | None, key: str | None) -> Answer:
        request = question(self._http, method, self._url + path, key, content)
        return await exchange(
            self._http, request, max_answer_bytes=self._max_answer_bytes, seconds=self._seconds
        )

    async def _other_than(self, refused: str | None) -> str:
        if self._keys is None or refused is None:
            raise ServerFault("The model server wants a key. Configure its key file.")
        key = await self._keys.renewed(self._kind, refused)
        if key == refused:
            raise ServerFault(KEY_REFUSED)
        return key


def segment(name: str) -> str | None:
    """`name` as one segment of a path; None where no TorchServe could be asked for it.

    TorchServe decodes %2F before it splits the path: `m%2F2.0` would be version 2.0 of m.
    """
    if name in {"", ".", ".."} or "/" in name:
        return None
    try:
        quoted = quote(name, safe="")
    except UnicodeEncodeError:
        return None
    return quoted if len(quoted) <= LONGEST_SEGMENT else None
