"""What a TorchServe is asked with: the key it wants, and paths it can read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from domain.errors import ServerFault
from infrastructure.torchserve.exchange import exchange, question

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx

    from infrastructure.torchserve.exchange import Answer
    from infrastructure.torchserve.key_file import KeyFile, Kind

LONGEST_SEGMENT = 1024  # bytes of a path segment; TorchServe refuses a URI over 4096 bytes with 400
RENEWALS = 2  # of the key, for one question
KEY_REFUSED = "The model server refused our key. Check that the configured key file is this server's own."


class Endpoint:
    """One port of a TorchServe, asked how the server is rather than for predictions.

    `seconds` bounds each exchange as a whole.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: str,
        *,
        keys: KeyFile | None,
        kind: Kind,
        max_answer_bytes: int,
        seconds: float,
    ) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._keys = keys
        self._kind: Kind = kind
        self._max_answer_bytes = max_answer_bytes
        self._seconds = seconds

    async def ask(self, method: str, path: str) -> Answer:
        """The answer, of any status but a refused key.

        Raises ServerUnreachable, ServerTimeout, ServerFault.
        """
        send = partial(self._exchange, method, path)
        key = None if self._keys is None else await self._keys.key(self._kind)
        answer = await send(key)
        return await asked_again(send, self._keys, self._kind, refused=key) if answer.refuses_key else answer

    async def _exchange(self, method: str, path: str, key: str | None) -> Answer:
        request = question(self._http, method, self._url + path, key)
        return await exchange(
            self._http, request, max_answer_bytes=self._max_answer_bytes, seconds=self._seconds
        )


async def asked_again(
    send: Callable[[str | None], Awaitable[Answer]], keys: KeyFile | None, kind: Kind, *, refused: str | None
) -> Answer:
    """The answer that `send` gets with another key of `keys` than the one that was `refused`.

    Twice at most, as a second gateway process may renew it at the same moment, which ends the life of the
    key this one has just got.

    Raises ServerFault where every key is refused, and what `send` and the renewal raise.
    """
    for _ in range(RENEWALS):
        refused = await _other_than(refused, keys, kind)
        answer = await send(refused)
        if not answer.refuses_key:
            return answer
    raise ServerFault(KEY_REFUSED)


async def _other_than(refused: str | None, keys: KeyFile | None, kind: Kind) -> str:
    if keys is None or refused is None:
        raise ServerFault("The model server wants a key. Configure its key file.")
    key = await keys.renewed(kind, refused)
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
