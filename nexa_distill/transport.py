"""One send of one chat completion over HTTP, and what its end means.

Any status other than 200 is a refusal (`rejected`). Without a complete body the outcome is
`not_sent` if there was no connection, else `uncertain`: the provider may bill it. Bodies are kept
as received, up to `MAX_BODY_BYTES` after decompression. Nothing is sent a second time from here.
"""

import asyncio
import email.utils
import math
import time
from typing import NamedTuple

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from nexa_distill.endpoint import Endpoint
from nexa_distill.journal import Outcome

ABANDONED = "abandoned at the stop"
MAX_BODY_BYTES = 64 * 2**20
DEFAULT_PAUSE_SECONDS = 2.0
MAX_PAUSE_SECONDS = 600.0


class Reply(NamedTuple):
    """`pause`: seconds that the provider asks us to wait, or None when it says nothing."""

    outcome: Outcome
    pause: float | None = None


class Transport:
    """Connections to one endpoint. Use as an async context manager."""

    def __init__(self, endpoint: Endpoint, timeout_seconds: float) -> None:
        self._secret = (endpoint.key or "").encode()
        self.url = URL(f"{endpoint.base_url}/chat/completions")
        # Bodies are stored as they come: asking for plain ones keeps the bytes readable.
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if endpoint.key:
            self._headers["Authorization"] = f"Bearer {endpoint.key}"
        self._limit = aiohttp.ClientTimeout(total=timeout_seconds)

    async def __aenter__(self) -> "Transport":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=self._limit, headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, data: bytes) -> Reply:
        """Send `data`. Never raises: a cancelled send is an uncertain one."""
        start = time.monotonic()
        try:
            async with self._session.post(self.url, data=data, allow_redirects=False) as response:
                raw = await _body(response)
                elapsed = (time.monotonic() - start) * 1000
                return self._reply(response, raw, elapsed)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Reply(Outcome("not_sent", error=f"{type(error).__name__}: {error}"))
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            return Reply(Outcome("uncertain", error=f"{type(error).__name__}: {error}"))
        except asyncio.CancelledError:
            return Reply(Outcome("uncertain", error=ABANDONED))

    def _reply(self, response: aiohttp.ClientResponse, raw: bytes | None, elapsed: float) -> Reply:
        status = response.status
        if raw is None:
            return Reply(Outcome("uncertain", status, error=f"body over {MAX_BODY_BYTES} bytes"))
        if self._secret and self._secret in raw:  # some servers repeat the key in their message
            raw = raw.replace(self._secret, b"***")
        if status == 200:
            return Reply(Outcome("answered", status, raw, None, elapsed))
        return Reply(Outcome("rejected", status, raw, None, elapsed), pause_asked(response.headers))


async def _body(response: aiohttp.ClientResponse) -> bytes | None:
    """The body as received, or None when it is larger than any answer can be."""
    length = response.content_length
    if length is not None and "Content-Encoding" not in response.headers:
        return await response.read() if length <= MAX_BODY_BYTES else None
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
    return b"".join(parts)


def pause_asked(headers: CIMultiDictProxy[str]) -> float | None:
    """Seconds to wait by `retry-after-ms` (OpenAI) or `Retry-After` (RFC 9110 10.2.3).

    None when there is neither. A date is compared with the response's own `Date`, for this
    machine's clock may be wrong. Negative or garbage is `DEFAULT_PAUSE_SECONDS`; at most
    `MAX_PAUSE_SECONDS`.
    """
    milliseconds, value = headers.get("retry-after-ms"), headers.get("Retry-After")
    if milliseconds is None and value is None:
        return None
    try:
        seconds = float(value or "") if milliseconds is None else float(milliseconds) / 1000
    except ValueError:
        seconds = _until(value or "", headers.get("Date"))
    if not 0 <= seconds < math.inf:
        seconds = DEFAULT_PAUSE_SECONDS
    return min(seconds, MAX_PAUSE_SECONDS)


def _until(date: str, now: str | None) -> float:
    """Seconds from one HTTP date to another; -1 when `date` is none."""
    try:
        end = email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return -1.0
    try:
        start = email.utils.parsedate_to_datetime(now or "").timestamp()
    except ValueError:
        start = time.time()
    return max(0.0, end - start)
