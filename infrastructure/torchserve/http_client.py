"""httpx as we use it: to ask servers how they are and for their keys. Predictions go by channel.Channel."""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx


def http_client(*, timeout: httpx.Timeout, tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """The client that is shared by all who ask TorchServe servers; whoever makes it closes it.

    It uses no proxy of the environment, follows no redirect and keeps no cookie. It keeps no connection
    either: these are few questions, and none can then meet a connection that its server closed while idle.
    """
    return httpx.AsyncClient(
        limits=httpx.Limits(max_keepalive_connections=0),
        timeout=timeout,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        verify=tls or ssl.create_default_context(),
        trust_env=False,
    )
