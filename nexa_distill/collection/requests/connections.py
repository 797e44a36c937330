"""HTTP sessions with an endpoint: its headers, its proxy, and the reuse of connections.

A server may close an idle connection while a request is on its way: the request was not served, but
the client cannot know (RFC 9112, 9.3.1). Three rules prevent that such sends are recorded as
perhaps billed (docs/adr/0020); the constants below are theirs.
"""

import asyncio
import ipaddress
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.errors import ProviderUnusable

MODELS_BYTES, MODELS_SECONDS = 8 * 2**20, 30.0
# 1. An idle connection is kept for less time than servers keep theirs: 1 s or more.
KEEP_ALIVE_SECONDS = 0.75
# 2. The first connections are watched after their first answer, before any is reused: a server that
#    closes each of them gets a new connection for every request.
WATCH_SECONDS = 0.05
WATCHED_CONNECTIONS = 16  # connections
# 3. A reused connection that is closed so soon without one byte did not serve the request. It is
#    longer than a round trip around the world and shorter than an answer takes.
LOST_SECONDS = 0.25
MAX_LOST = 3  # after so many lost connections none is reused


class LostConnection(aiohttp.ClientConnectionError):
    """A reused connection was closed without one byte: the request was not served."""


class _Response(aiohttp.ClientResponse):
    """Detects lost connections: marks a connection at its first answer."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Raises LostConnection."""
        protocol, begun = connection.protocol, time.monotonic()
        connector: _Connector = connection._connector
        try:
            response = await super().start(connection)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if connector.is_reused(protocol) and time.monotonic() - begun < LOST_SECONDS:
                connector.note_lost()
                raise LostConnection(str(error)) from error
            raise
        connector.note_answer(protocol, is_good=response.status == 200)
        return response


class _Connector(aiohttp.TCPConnector):
    """Reuses idle connections only if the server keeps them open."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self.may_reuse = False
        self._watched: list[Any] = []
        self._lost = 0

    async def _get(self, key: Any, traces: Any) -> Any:
        """Override of aiohttp: an idle connection, or None for a new one."""
        return await super()._get(key, traces) if self.may_reuse else None

    def is_reused(self, protocol: Any) -> bool:
        return bool(getattr(protocol, "has_answered", False))

    def note_answer(self, protocol: Any, *, is_good: bool) -> None:
        protocol.has_answered = True
        # Only good responses are watched: servers often close a connection after a refusal.
        if is_good and len(self._watched) < WATCHED_CONNECTIONS and not self.may_reuse:
            if not self._watched:
                asyncio.get_running_loop().call_later(WATCH_SECONDS, self._end_watch)
            self._watched.append(protocol)

    def _end_watch(self) -> None:
        # A server that closed most of the first connections closes them all.
        opened = sum(protocol.is_connected() for protocol in self._watched)
        self.may_reuse = opened * 2 > len(self._watched)
        # A full list ends the watch: nothing is added to it any more.
        self._watched = self._watched[:0] if self.may_reuse else [None] * WATCHED_CONNECTIONS

    def note_lost(self) -> None:
        self._lost += 1
        if self._lost >= MAX_LOST:
            self.may_reuse, self._watched = False, [None] * WATCHED_CONNECTIONS


def choose_proxy(endpoint: Endpoint) -> tuple[URL | None, aiohttp.BasicAuth | None]:
    """The provider's `proxy`, else the environment's; never one for this machine itself. And its login."""
    # Not aiohttp's `trust_env`, which reads the environment and ~/.netrc for every request.
    text = endpoint.proxy
    if text is None:
        text = _environment_proxy(URL(endpoint.base_url))
    if not text:
        return None, None
    proxy = URL(text if "://" in text else f"http://{text}")
    if proxy.scheme not in ("http", "https"):
        raise ProviderUnusable(
            f"provider {endpoint.provider}: the proxy is {proxy.scheme}://..., expected http:// or "
            'https://; set providers.NAME.proxy to one, or to "" for none'
        )
    auth = aiohttp.BasicAuth(proxy.user, proxy.password or "") if proxy.user else None
    return proxy.with_user(None), auth


def _environment_proxy(address: URL) -> str | None:
    host = address.host or ""
    if is_this_machine(host) or proxy_bypass(f"{host}:{address.port}") or proxy_bypass(host):
        return None
    proxies = getproxies()
    every = proxies.get("all", "")
    if not every.startswith(("http://", "https://")):
        every = ""  # often a SOCKS proxy for other programs
    return proxies.get(address.scheme) or every


def is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_session(
    endpoint: Endpoint, timeout: aiohttp.ClientTimeout, more: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    proxy, proxy_auth = choose_proxy(endpoint)
    return aiohttp.ClientSession(
        proxy=proxy,
        proxy_auth=proxy_auth,
        connector=_Connector(),
        response_class=_Response,
        timeout=timeout,
        # Uncompressed, because the length of a body is checked before it is read.
        headers={"Accept-Encoding": "identity", **(more or {}), **endpoint.headers},
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def read_at_most(response: aiohttp.ClientResponse, size: int) -> bytes | None:
    """The body, or None if it is longer than `size`."""
    body = bytearray()
    # Counted while it is read, so that an endless body does not fill the memory.
    async for part in response.content.iter_any():
        body += part
        if len(body) > size:
            return None
    return bytes(body)


async def fetch_models(endpoint: Endpoint) -> tuple[int | None, bytes]:
    """(HTTP status, body) of GET /models; the status is None when there was no response."""
    limit, body = aiohttp.ClientTimeout(total=MODELS_SECONDS), bytearray()
    try:
        async with (
            open_session(endpoint, limit) as session,
            session.get(endpoint.build_url("/models"), allow_redirects=False) as response,
        ):
            async for part in response.content.iter_any():
                body += part
                if len(body) > MODELS_BYTES:
                    break
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        return None, f"{type(error).__name__}: {error}".encode(errors="replace")
    return response.status, endpoint.without_key(bytes(body))


def model_ids(body: bytes) -> list[str] | None:
    """The ids in a reply to GET /models; None if it is no list of models."""
    try:
        return [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
