"""Sessions with an endpoint: its headers, its proxy, and which connections are used again.

A server may close a connection whenever no answer is due on it. If that crosses a request on its
way, the request was not served, and the client cannot know (RFC 9112, 9.3.1). Three rules keep such
sends out of the ledger's "perhaps billed" (docs/adr/0020):

- an idle connection is kept for less time than servers keep theirs (1 s or more);
- the first connections are watched after their first answer before any is used again: a server
  that closes each without announcing it gets a new connection for every request;
- a reused connection that is closed within `LOST_SECONDS` without one byte did not serve the
  request. Later than that it may have: an answer could have been made and billed.
"""

import asyncio
import ipaddress
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.errors import ProviderUnusable

KEEP_ALIVE_SECONDS = 0.75  # the shortest idle limit met in servers is 1 s
WATCH_SECONDS = 0.05  # after the first answer; a server that closes does so at once
WATCHED = 16  # connections
LOST_SECONDS = 0.25  # longer than a round trip around the world, shorter than an answer
MOST_LOST = 3  # reused connections that may be lost before none is used again


class LostConnection(aiohttp.ClientConnectionError):
    """A reused connection was closed without one byte: the request was not served."""


class _Response(aiohttp.ClientResponse):
    """Tells a lost connection from other broken ones: the first answer of each is noted on it."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Read the head of the response. Raises LostConnection."""
        protocol, begun = connection.protocol, time.monotonic()
        connector: _Connector = connection._connector
        try:
            found = await super().start(connection)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if connector.is_reused(protocol) and time.monotonic() - begun < LOST_SECONDS:
                connector.note_lost()
                raise LostConnection(str(error)) from error
            raise
        connector.note_answer(protocol, is_good=found.status == 200)
        return found


class _Connector(aiohttp.TCPConnector):
    """Hands out an idle connection only while the server is known to keep them open."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self.may_reuse = False
        self._watched: list[Any] = []
        self._lost = 0

    async def _get(self, key: Any, traces: Any) -> Any:
        """aiohttp's own hook: an idle connection, or None for a new one."""
        return await super()._get(key, traces) if self.may_reuse else None

    def is_reused(self, protocol: Any) -> bool:
        """Whether an answer came by this connection before."""
        return bool(getattr(protocol, "has_answered", False))

    def note_answer(self, protocol: Any, *, is_good: bool) -> None:
        """A response has begun. The first good ones begin the watch: refusals often close."""
        protocol.has_answered = True
        if is_good and len(self._watched) < WATCHED and not self.may_reuse:
            if not self._watched:
                asyncio.get_running_loop().call_later(WATCH_SECONDS, self._end_watch)
            self._watched.append(protocol)

    def _end_watch(self) -> None:
        """A server that closed most of the first connections closes them all."""
        opened = sum(protocol.is_connected() for protocol in self._watched)
        self.may_reuse = opened * 2 > len(self._watched)
        self._watched = self._watched[:0] if self.may_reuse else [None] * WATCHED

    def note_lost(self) -> None:
        """One more reused connection was closed under a request."""
        self._lost += 1
        if self._lost >= MOST_LOST:
            self.may_reuse, self._watched = False, [None] * WATCHED


class ProxyChoice(NamedTuple):
    """The arguments of a request that goes by a proxy; both None when it does not."""

    proxy: URL | None = None
    proxy_auth: aiohttp.BasicAuth | None = None


def proxy_of(endpoint: Endpoint) -> ProxyChoice:
    """From the provider's `proxy`, else the environment's. This machine is never asked by one.

    aiohttp's own `trust_env` would look both it and ~/.netrc up for every request.
    """
    address = URL(endpoint.base_url)
    text = endpoint.proxy
    if text is None:
        text = _environment_proxy(address)
    if not text:
        return ProxyChoice()
    proxy = URL(text if "://" in text else f"http://{text}")
    if proxy.scheme not in ("http", "https"):
        raise ProviderUnusable(
            f"provider {endpoint.provider}: the proxy is {proxy.scheme}://..., expected http:// or "
            'https://; set providers.NAME.proxy to one, or to "" for none'
        )
    auth = aiohttp.BasicAuth(proxy.user, proxy.password or "") if proxy.user else None
    return ProxyChoice(proxy.with_user(None), auth)


def _environment_proxy(address: URL) -> str | None:
    host = address.host or ""
    if is_this_machine(host) or proxy_bypass(f"{host}:{address.port}") or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(address.scheme) or _if_http(proxies.get("all"))


def _if_http(text: str | None) -> str | None:
    """`all_proxy` is often a SOCKS proxy, meant for other programs."""
    return text if text and text.startswith(("http://", "https://")) else None


def is_this_machine(host: str) -> bool:
    """Whether a host name or address is of the loopback interface."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_session(
    endpoint: Endpoint, timeout: aiohttp.ClientTimeout, more: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    """A session with the endpoint's headers and `more`. Bodies come as they are, uncompressed."""
    return aiohttp.ClientSession(
        connector=_Connector(), response_class=_Response, timeout=timeout,
        headers={"Accept-Encoding": "identity", **(more or {}), **endpoint.headers},
        cookie_jar=aiohttp.DummyCookieJar(),
    )  # fmt: skip
