"""Send one chat completion request over HTTP and classify its outcome.

Any status other than 200 is a refusal (`rejected`), and so is an error inside a 200, with its own
status (`response_body.py`). Without a complete body the outcome is `not_sent` if there was no
connection, else `uncertain`: the provider may bill it. Bodies are stored as received.
"""

import asyncio
import email.utils
import math
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp

from nexa_distill.collection.requests.connections import LostConnection, open_session, read_at_most
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.collection.requests.response_body import hidden_error
from nexa_distill.journal.journal import Outcome

ABANDONED = "abandoned at the stop"
REFUSED_CONNECTION = "connection refused"
MAX_BODY_BYTES = 64 * 2**20  # after decompression
DEFAULT_PAUSE_SECONDS = 2.0
MAX_PAUSE_SECONDS = 600.0
NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
LOST_SENDS = 8  # connections lost in a row before the server counts as unreachable
# A pause in the body: Gemini's retryDelay, Hugging Face's estimated_time, "Please try again in
# 1m7.5s", "retry after 20 seconds", "in 2 minutes". Groups: field in seconds; h, m, ms or s, of
# which at least one is present.
_PAUSE = re.compile(
    r'"(?:retry_?delay|retry_?after(?:_seconds)?|estimated_time)"\s*:\s*"?(\d+(?:\.\d+)?)'
    r"|(?:try again|retry|wait|reset)\D{0,20}?"
    r"(?=\d+(?:\.\d+)?\s*(?:ms|[hms]|hours?|hrs?|min(?:ute)?s?|sec\w*|milliseconds?)(?![a-z]))"
    r"(?:(\d+)\s*h(?:ours?|rs?)?(?![a-z])\s*)?(?:(\d+)\s*m(?:in(?:ute)?s?)?(?![a-z])\s*)?"
    r"(?:(\d+(?:\.\d+)?)\s*(ms|milliseconds?|s(?:ec\w*)?)(?![a-z]))?",
    re.IGNORECASE,
)


class SendResult(NamedTuple):
    """The result of one send."""

    outcome: Outcome
    pause: float | None = None  # seconds that the provider asks us to wait
    is_hidden: bool = False  # the status is that of an error inside a 200: the server itself is up


class Transport:
    """Connections to one endpoint. Use as an async context manager."""

    def __init__(self, endpoint: Endpoint, timeout_seconds: float) -> None:
        self.endpoint, self.url = endpoint, endpoint.build_url("/chat/completions")
        self._limit = aiohttp.ClientTimeout(total=timeout_seconds)

    async def __aenter__(self) -> "Transport":
        self._session = open_session(self.endpoint, self._limit, {"Content-Type": "application/json"})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post_request(self, data: bytes) -> SendResult:
        """Send `data`. Never raises: a cancelled send is uncertain."""
        # Only sends over a connection that the server had closed are repeated here: they were
        # certainly not served (`connections.py`).
        for _ in range(LOST_SENDS):
            try:
                return await self._post_once(data)
            except LostConnection as error:
                lost = f"{type(error).__name__}: {error}"
            except NOT_CONNECTED as error:
                return SendResult(Outcome("not_sent", error=_connection_error(error)))
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                return SendResult(Outcome("uncertain", error=f"{type(error).__name__}: {error}"))
            except asyncio.CancelledError:
                return SendResult(Outcome("uncertain", error=ABANDONED))
        return SendResult(Outcome("not_sent", error=lost))

    async def _post_once(self, data: bytes) -> SendResult:
        start = time.monotonic()
        async with self._session.post(self.url, data=data, allow_redirects=False) as response:
            raw = await _read_body(response)
            elapsed = (time.monotonic() - start) * 1000
            return self._read_result(response, raw, elapsed)

    def _read_result(self, response: aiohttp.ClientResponse, raw: bytes | None, elapsed: float) -> SendResult:
        status = response.status
        if raw is None:
            return SendResult(Outcome("uncertain", status, error=f"body over {MAX_BODY_BYTES} bytes"))
        raw = self.endpoint.without_key(raw)
        outcome = classify_response(status, raw, elapsed)
        if outcome.outcome == "answered":
            return SendResult(outcome)
        pause = retry_after_seconds(response.headers)
        return SendResult(outcome, pause_in_body(raw) if pause is None else pause, status == 200)


def classify_response(status: int | None, raw: bytes, elapsed: float | None = None) -> Outcome:
    """The outcome of a complete response. An error after a part of an answer may be billed."""
    if status != 200:
        return Outcome("rejected", status, raw, None, elapsed)
    error = hidden_error(raw)
    if error is None:
        return Outcome("answered", status, raw, None, elapsed)
    if error.is_billed:
        return Outcome("uncertain", error.status, None, f"an error in a 200: {error.words}")
    return Outcome("rejected", error.status, raw, None, elapsed)


def _connection_error(error: Exception) -> str:
    # The system's message for a refused connection varies: mark it in our own words.
    kind = f"{type(error).__name__}: {error}"
    refused = isinstance(getattr(error, "os_error", error), ConnectionRefusedError)
    refused = refused and not isinstance(error, aiohttp.ClientProxyConnectionError)
    return f"{REFUSED_CONNECTION}: {kind}" if refused else kind


async def _read_body(response: aiohttp.ClientResponse) -> bytes | None:
    length = response.content_length
    # The length of a compressed body says nothing about its size in memory.
    if length is not None and "Content-Encoding" not in response.headers:
        return await response.read() if length <= MAX_BODY_BYTES else None
    return await read_at_most(response, MAX_BODY_BYTES)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` (OpenAI) or `Retry-After` (RFC 9110 10.2.3), or None.

    Negative or invalid values give `DEFAULT_PAUSE_SECONDS`; at most `MAX_PAUSE_SECONDS`.
    """
    milliseconds, value = headers.get("retry-after-ms"), headers.get("Retry-After")
    if milliseconds is None and value is None:
        return None
    try:
        seconds = float(value or "") if milliseconds is None else float(milliseconds) / 1000
    except ValueError:
        seconds = _seconds_until(value or "", headers.get("Date"))
    # Also true for NaN.
    if not 0 <= seconds < math.inf:
        seconds = DEFAULT_PAUSE_SECONDS
    return min(seconds, MAX_PAUSE_SECONDS)


def pause_in_body(raw: bytes) -> float | None:
    """Seconds to wait by the body of a refusal, or None; at most `MAX_PAUSE_SECONDS`."""
    # The message is at the beginning; a whole body may have megabytes.
    match = _PAUSE.search(raw[:4000].decode("utf-8", "replace"))
    if match is None:
        return None
    field, hours, minutes, number, unit = match.groups()
    # An `m` here is `ms`: minutes have their own group.
    seconds = float(field or number or 0) / (1000 if (unit or "").lower()[:1] == "m" else 1)
    return min(seconds + 3600 * int(hours or 0) + 60 * int(minutes or 0), MAX_PAUSE_SECONDS)


def _seconds_until(date: str, now: str | None) -> float:
    """Seconds from one HTTP date to another; -1 if `date` is invalid."""
    try:
        end = email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return -1.0
    try:  # the response's own `Date` is preferred: this machine's clock may be wrong
        start = email.utils.parsedate_to_datetime(now or "").timestamp()
    except ValueError:
        start = time.time()
    return max(0.0, end - start)
