"""Where the gateway is that a command asks."""

from __future__ import annotations

import argparse
import os

import httpx

URL_VARIABLE = "DISPATCHER_URL"
LOCAL = "http://127.0.0.1:8000"


def add_url(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Let the parser take `--url`; where it is left out, and `default` too, the environment says it."""
    url = os.environ.get(URL_VARIABLE, LOCAL) if default is None else default
    parser.add_argument(
        "--url", type=_url, default=url, help=f"of the gateway; else ${URL_VARIABLE}, else {LOCAL}"
    )


def _url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host:
        raise argparse.ArgumentTypeError(f"should be like {LOCAL}")
    return text
