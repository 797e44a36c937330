"""The only code that talks to a model API: many requests in flight, each one in the journal.

A request is sent when its attempt is on disk, and its answer is on disk before anyone reads it.
What is done about an attempt that brought no answer is decided here and nowhere else:

| what happened                                   | then                                          |
|-------------------------------------------------|-----------------------------------------------|
| 3xx, 401 to 404, 429 with insufficient_quota    | the run stops (69); what is in flight ends    |
| no connection, `max_attempts` times             | the run stops (69)                            |
| 429                                             | everyone waits as told; never counted         |
| 5xx, 408, 409, 425, timeout, cut connection     | again with back-off, `max_attempts` in all    |
| any other status                                | this request is refused; the run goes on      |

Not covered here: streaming, batch mode, adaptive concurrency.
"""

import asyncio
import email.utils
import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from nexa_distill.answers import cost_usd, parse_answer
from nexa_distill.budget import Tally
from nexa_distill.cli import Stopped
from nexa_distill.config import Budget, Collection, Price
from nexa_distill.contracts import compact_json, sha256_text
from nexa_distill.endpoint import Endpoint
from nexa_distill.errors import BudgetReached, NexaError, ProviderUnusable
from nexa_distill.journal import DIED, Journal, Outcome
from nexa_distill.progress import Progress

ABANDONED = "abandoned at the stop"
OUR_OWN_STOPS = {ABANDONED, DIED}  # no fault of the provider: they count against no request
STOPS_THE_RUN = {401, 402, 403, 404}
TRY_AGAIN = {408, 409, 425}
MAX_BODY_BYTES = 64 * 2**20
GRACE_SECONDS = 10.0
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.05, 600.0
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
DEFAULT_PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class PromptRequest:
    """One question to a model: `body` is the chat completion's JSON without the model's address."""

    sample_id: str
    attempt: int
    key: str
    body: dict[str, Any]


def request_key(body: dict[str, Any], round_: int = 0, index: int = 0) -> str:
    """What makes two requests the same: endpoint kind, model, messages, decoding, index, round."""
    return sha256_text(compact_json(["chat", body, index, round_]))


def given_up(attempts: list[tuple[str, int | None, str]], max_attempts: int) -> str | None:
    """The reason why a request is not asked again without --retry-failed, or None."""
    if not attempts:
        return None
    outcome, status, _ = attempts[-1]
    if outcome == "rejected" and status is not None and status != 429 and not _again(status):
        return None if _stops(status) else "request_refused"
    counted = [
        a for a in attempts
        if a[0] in ("rejected", "uncertain") and a[1] != 429 and a[2] not in OUR_OWN_STOPS
    ]  # fmt: skip
    return "provider_failed" if len(counted) >= max_attempts else None


def retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header (RFC 9110 10.2.3): a number or an HTTP date.

    Absent, negative or garbage is `DEFAULT_PAUSE_SECONDS`; at most `MAX_PAUSE_SECONDS`.
    """
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value or "")
            seconds = date.timestamp() - time.time()
        except ValueError:
            seconds = -1.0
    if not 0 <= seconds < float("inf"):
        seconds = DEFAULT_PAUSE_SECONDS
    return min(seconds, MAX_PAUSE_SECONDS)


class Gateway:
    """Asks one endpoint. One instance per run; `ask_all` once."""

    def __init__(
        self, endpoint: Endpoint, price: Price | None, settings: Collection, budget: Budget,
        journal: Journal,
    ) -> None:  # fmt: skip
        self.endpoint, self.price, self.settings = endpoint, price, settings
        self.budget, self.journal, self.tally = budget, journal, Tally()
        self._stop, self._settled = asyncio.Event(), asyncio.Event()
        self._fatal: BaseException | None = None
        self._paused_until = 0.0  # monotonic

    async def ask_all(self, requests: Iterator[PromptRequest], progress: Progress) -> None:
        """Send every request, `settings.concurrency` at a time, until each is decided.

        Raises ProviderUnusable (69), BudgetReached (77), StorageFailed (74), Stopped or
        KeyboardInterrupt, always after the answers in flight are stored (or their grace is over).
        """
        limit = aiohttp.ClientTimeout(total=self.settings.timeout_seconds)
        headers = {"Content-Type": "application/json"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=limit, headers=headers
        ) as session:
            workers = [
                asyncio.create_task(self._work(session, requests, progress))
                for _ in range(self.settings.concurrency)
            ]
            self._handle_signals(workers)
            await asyncio.gather(*workers, return_exceptions=False)
        if self._fatal:
            raise self._fatal

    async def _work(
        self, session: aiohttp.ClientSession, requests: Iterator[PromptRequest], progress: Progress
    ) -> None:
        try:
            for request in requests:  # shared: each worker takes the next one
                if self._stop.is_set():
                    return
                if await self._ask(session, request):
                    progress.add(1, f"${self.tally.usd:.4f}" if self.tally.usd else "")
        except NexaError as error:
            self._end_run(error)
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise

    async def _ask(self, session: aiohttp.ClientSession, request: PromptRequest) -> bool:
        """Send until the request is answered, refused or given up (True), or the run stops."""
        body = {**request.body, "model": self.endpoint.model}
        data = json.dumps(body).encode()
        counted = 0
        while not self._stop.is_set():
            await self._sleep(self._paused_until - time.monotonic())
            if self._stop.is_set():
                break
            outcome, pause = await self._attempt(session, request, data)
            if outcome.outcome == "answered":
                return True
            if outcome.status == 429:
                self._paused_until = max(
                    self._paused_until, time.monotonic() + max(pause, MIN_PAUSE_SECONDS)
                )
                continue
            counted += 1
            retryable = outcome.status is None or _again(outcome.status)
            if not retryable or counted >= self.settings.max_attempts:
                self._refuse_dead_provider(outcome)
                return True
            backoff = min(FIRST_BACKOFF_SECONDS * 2 ** (counted - 1), MAX_BACKOFF_SECONDS)
            await self._sleep(max(backoff, pause) * random.uniform(0.7, 1.0))  # noqa: S311
        return False

    async def _attempt(
        self, session: aiohttp.ClientSession, request: PromptRequest, data: bytes
    ) -> tuple[Outcome, float]:
        """One send: reserved, recorded, sent, recorded. Returns outcome and pause asked for."""
        reserve = await self._reserve(request, data)
        try:
            attempt = await self.journal.begin(request.key, data)
            # A spent budget stops what is not reserved yet; what is reserved is sent.
            if self._stop.is_set() and not isinstance(self._fatal, BudgetReached):
                await self.journal.end(attempt, Outcome("not_sent", error="the run was stopping"))
                return Outcome("not_sent"), 0.0
            try:
                outcome, pause = await self._post(session, data)
            except asyncio.CancelledError:
                await self.journal.end(attempt, Outcome("uncertain", error=ABANDONED))
                raise
            await self.journal.end(attempt, outcome)
        finally:
            self.tally.in_flight.pop(request.key, None)
            self._settled.set()
        self._count(outcome, reserve)
        if outcome.status is not None and self._stops(outcome):
            raise ProviderUnusable(self._refusal(outcome))
        return outcome, pause

    async def _post(self, session: aiohttp.ClientSession, data: bytes) -> tuple[Outcome, float]:
        start = time.monotonic()
        url = f"{self.endpoint.base_url}/chat/completions"
        try:
            async with session.post(url, data=data, allow_redirects=False) as response:
                raw = await _body(response)
                if raw is None:
                    too_large = f"body over {MAX_BODY_BYTES} bytes"
                    return Outcome("uncertain", response.status, error=too_large), 0.0
                elapsed = (time.monotonic() - start) * 1000
                if response.status == 200:
                    return Outcome("answered", response.status, raw, None, elapsed), 0.0
                said = raw.replace((self.endpoint.key or "\0").encode(), b"***")
                pause = response.headers.get("Retry-After")
                refused = Outcome("rejected", response.status, said, None, elapsed)
                return refused, retry_after(pause) if pause or response.status == 429 else 0.0
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Outcome("not_sent", error=f"{type(error).__name__}: {error}"), 0.0
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            return Outcome("uncertain", error=f"{type(error).__name__}: {error}"), 0.0

    async def _reserve(self, request: PromptRequest, data: bytes) -> tuple[int, float]:
        """Hold back the most that a request can cost: a token of the prompt is 3 bytes or more.

        While others are in flight it waits for what they really cost.
        """
        prompt, answer = len(data) // 3, self._most_answer_tokens(request)
        usd = self.price.cost(prompt, answer) if self.price else 0.0  # max_usd needs a price
        while broken := self.tally.over(self.budget, prompt + answer, usd):
            if not self.tally.in_flight:
                raise BudgetReached(
                    f"{broken}. {self.tally.answered} answers of this run are stored; a budget "
                    "counts from the start of each run: the same command goes on with a new one"
                )
            self._settled.clear()
            await self._settled.wait()
        self.tally.requests += 1
        self.tally.in_flight[request.key] = (prompt + answer, usd)
        return prompt + answer, usd

    def _most_answer_tokens(self, request: PromptRequest) -> int:
        limits = (request.body.get(key) for key in ("max_completion_tokens", "max_tokens"))
        return next((limit for limit in limits if limit), self.settings.max_tokens)

    def _count(self, outcome: Outcome, reserved: tuple[int, float]) -> None:
        if outcome.outcome == "uncertain":  # perhaps billed: count what it could have cost
            self.tally.tokens += reserved[0]
            self.tally.usd += reserved[1]
        if outcome.outcome != "answered":
            return
        answer = parse_answer(outcome.raw or b"")
        cost = cost_usd(answer, self.price)
        self.tally.answered += 1
        self.tally.tokens += reserved[0] if answer.total_tokens is None else answer.total_tokens
        self.tally.usd += reserved[1] if cost is None else cost

    def _stops(self, outcome: Outcome) -> bool:
        quota = outcome.status == 429 and b"insufficient_quota" in (outcome.raw or b"")
        return quota or _stops(outcome.status or 0)

    def _refusal(self, outcome: Outcome) -> str:
        said = " ".join((outcome.raw or b"").decode("utf-8", "replace").split())[:300]
        address, key = "check base_url", self.endpoint.key_name or "api_key_env"
        hints = {
            401: f"check {key} in .env",
            402: "the account has no credit",
            403: f"the key in {key} may not do this",
            404: f"{address} and model ({self.endpoint.model})",
            429: "the quota is used up",
        }
        return (
            f"provider {self.endpoint.provider} ({self.endpoint.base_url}) refuses with HTTP "
            f"{outcome.status}: {said or '(no text)'}; {hints.get(outcome.status or 0, address)}. "
            f"{self.tally.answered} answers of this run are stored"
        )

    def _refuse_dead_provider(self, outcome: Outcome) -> None:
        if outcome.outcome == "not_sent":
            raise ProviderUnusable(
                f"provider {self.endpoint.provider}: no connection to {self.endpoint.base_url} in "
                f"{self.settings.max_attempts} attempts ({outcome.error}); is the server running?"
            )

    def _end_run(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        self._stop.set()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up when the run stops."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stop.wait(), seconds)
            except TimeoutError:
                return

    def _handle_signals(self, workers: list[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()

        def abandon() -> None:
            for worker in workers:
                worker.cancel()

        def stop(error: BaseException) -> None:
            if self._stop.is_set():
                abandon()
                return
            flying = len(self.tally.in_flight)
            print(
                f"\nstopping: {flying} requests in flight, waiting up to {GRACE_SECONDS:.0f} s for "
                "their answers (once more to abandon them)", file=sys.stderr, flush=True,
            )  # fmt: skip
            self._end_run(error)
            loop.call_later(GRACE_SECONDS, abandon)

        loop.add_signal_handler(signal.SIGINT, stop, KeyboardInterrupt())
        loop.add_signal_handler(signal.SIGTERM, stop, Stopped())
        loop.add_signal_handler(signal.SIGHUP, stop, Stopped())


async def _body(response: aiohttp.ClientResponse) -> bytes | None:
    """The body as received, or None when it is larger than any answer can be."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
    return b"".join(parts)


def _stops(status: int) -> bool:
    """Whether the API as a whole is not usable like this; a redirect is another address's page."""
    return status in STOPS_THE_RUN or 300 <= status < 400


def _again(status: int) -> bool:
    return status in TRY_AGAIN or status >= 500
