"""Client of a model API: sends requests concurrently and records each one in the journal.

Its parts are in `requests/`; `first_answers.py` stops a run early. Batch mode: `batch/client.py`.
"""

import asyncio
import contextlib
import functools
import json
import math
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import uvloop

from nexa_distill.collection.answers.billing import UNREAD, bill_the_unbilled, settle_attempt
from nexa_distill.collection.answers.completions import Answer, parse_answer
from nexa_distill.collection.first_answers import FirstAnswers, FirstRefusals, Usable
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.budget import Tally
from nexa_distill.collection.requests.busy_notice import BusyNotice
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.collection.requests.rate_limiter import Pacer
from nexa_distill.collection.requests.startup import Startup
from nexa_distill.collection.requests.transport import (
    ABANDONED,
    DEFAULT_PAUSE_SECONDS,
    Reply,
    Transport,
)
from nexa_distill.console import cli
from nexa_distill.console.cli import Stopped
from nexa_distill.console.progress import Progress
from nexa_distill.errors import NexaError, StorageFailed
from nexa_distill.journal.journal import Asking, Journal, Outcome
from nexa_distill.settings.pipeline import Collection, Provider
from nexa_distill.storage import failpoints

GRACE_SECONDS = 10.0  # for the requests in flight, after a signal
MIN_PAUSE_SECONDS = 0.05


@dataclass(slots=True)
class _Sending:
    """One attempt of a request, waiting or in flight."""

    asking: Asking
    attempt: int
    tries: int = 0  # attempts of this run that count against the request
    sent_at: float = 0.0


class Gateway:
    """Sends the requests of one run to one endpoint; call `send_all` once."""

    def __init__(
        self,
        endpoint: Endpoint,
        provider: Provider,
        settings: Collection,
        model: str,
        journal: Journal,
        tally: Tally,
        usable: Usable | None = None,
    ) -> None:
        self.endpoint, self.settings, self.model = endpoint, settings, model
        self.price = provider.prices.get(model)
        self.journal, self.tally = journal, tally
        self.pacer = Pacer(
            settings.concurrency, provider.requests_per_minute, provider.tokens_per_minute
        )
        self.models: Counter[tuple[str | None, str | None]] = Counter()  # and fingerprint
        # A server that we started is ready: its refusals are failures.
        self.startup = Startup(endpoint, 0.0 if provider.start else provider.startup_wait_seconds)
        self.busy = BusyNotice(endpoint)
        self.first_refusals, self.first_answers = FirstRefusals(), FirstAnswers(usable)
        self._malformed = 0
        self._ahead = max(settings.batch_size, settings.concurrency)
        self._ready: deque[_Sending] = deque()
        self._flying = 0
        self._filled = False
        self._retries: set[asyncio.Task[None]] = set()
        self._fatal: BaseException | None = None

    def run(self, batches: Iterator[list[Asking]], progress: Progress) -> None:
        """Run `send_all` on its own event loop, then restore the signal handlers."""
        try:
            uvloop.run(self.ask_all(batches, progress))
        finally:
            cli.handle_signals()

    async def ask_all(self, batches: Iterator[list[Asking]], progress: Progress) -> None:
        """Send all requests until each has an answer, is refused or is given up.

        Raises ProviderUnusable (69), BudgetReached (77), StorageFailed (74), Stopped or
        KeyboardInterrupt, always after the answers in flight are stored or GRACE_SECONDS are over.
        """
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        self._queue_has_space, self._dispatch_lock = asyncio.Event(), asyncio.Lock()
        self._progress = progress
        bill_the_unbilled(self.journal, self.model, self.price)
        if self.settings.stop_on_model_change:
            self._remember_model()
        async with Transport(self.endpoint, self.settings.timeout_seconds) as transport:
            filler = asyncio.create_task(self._fill(batches))
            workers = [
                asyncio.create_task(self._work(transport)) for _ in range(self.settings.concurrency)
            ]
            self._handle_signals(workers)
            for task in (filler, *workers):
                await task
            await self._let_go()
        if self._fatal:
            raise self._fatal

    # ---- queue of journaled requests

    async def _fill(self, batches: Iterator[list[Asking]]) -> None:
        # Requests are journaled ahead of their turn, so that no send waits for an fsync.
        try:
            while not self._stop.is_set():
                if len(self._ready) >= self._ahead:
                    self._queue_has_space.clear()
                    await self._queue_has_space.wait()
                elif batch := next(batches, None):
                    await self._begin(batch)
                else:
                    break
        except Exception as error:  # noqa: BLE001  requests in flight are finished after a bug too
            self._end_run(error)
        self._filled = True
        self._changed.set()

    async def _begin(self, batch: list[Asking]) -> None:
        attempts = await self.journal.begin(batch)
        self._ready.extend(_Sending(a, n) for a, n in zip(batch, attempts, strict=True))
        self._changed.set()

    # ---- workers

    async def _work(self, transport: Transport) -> None:
        # A worker hands its outcome to the journal and takes the next request without waiting;
        # the answer is parsed when it is on disk (`_stored`).
        try:
            while sending := self._take() or await self._next():
                reply = await transport.post(self._as_sent(sending.asking.body))
                failpoints.hit("after_recv")
                self._flying -= 1
                self._settle(sending, reply)
                self._changed.set()
        except Exception as error:  # noqa: BLE001  as above
            self._end_run(error)
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise

    def _as_sent(self, body: bytes) -> bytes:
        if self.endpoint.model == self.model:
            return body
        # A server that we start expects its own model name (a path).
        return json.dumps({**json.loads(body), "model": self.endpoint.model}).encode()

    def _take(self) -> _Sending | None:
        """The next request, if it may be sent now and no other worker waits for it."""
        if not self._ready or self._dispatch_lock.locked() or self._stop.is_set():
            return None
        now = time.monotonic()
        return None if self._wait(now, self._ready[0].asking) else self._send(now)

    async def _next(self) -> _Sending | None:
        """Wait until the next request may be sent and return it; None if there are no more."""
        async with self._dispatch_lock:  # one worker waits; the others queue here
            while not self._stop.is_set():
                if not self._ready:
                    if self._filled and not self._flying and not self._retries:
                        return None
                    await self._change()
                    continue
                now = time.monotonic()
                if wait := self._wait(now, self._ready[0].asking):
                    await self._change(wait)
                    continue
                return self._send(now)
        return None

    def _wait(self, now: float, asking: Asking) -> float:
        """Seconds until it may be sent; infinity = until a request in flight has ended."""
        if wait := self.pacer.wait(now, self._flying):
            return wait
        if self.journal.in_flight.full or (self.startup.is_waiting and self._flying):
            return math.inf
        limit = self.tally.over(asking.most_tokens, asking.most_usd)
        if limit and self.tally.idle:
            raise self.tally.reached_error(limit)
        return math.inf if limit else 0.0

    def _send(self, now: float) -> _Sending:
        """Take the next request from the queue; from now on it counts as sent."""
        sending = self._ready.popleft()
        if len(self._ready) < self._ahead:
            self._queue_has_space.set()
        asking = sending.asking
        sending.sent_at = now
        self._flying += 1
        self.journal.in_flight.add(sending.attempt)
        self.tally.reserve(asking.most_tokens, asking.most_usd)
        self.pacer.sent(now, asking.most_tokens)
        return sending

    # ---- results of attempts

    def _settle(self, sending: _Sending, reply: Reply) -> None:
        now, outcome = time.monotonic(), reply.outcome
        loading = self.startup.is_loading(outcome, is_hidden=reply.is_hidden)
        if loading:
            outcome = outcome._replace(
                error=f"{retry_policy.LOADING}: {retry_policy.said_by(outcome)}"
            )
        self.journal.end(
            sending.attempt, outcome, functools.partial(self._stored, sending, outcome)
        )
        if outcome.outcome == "answered":
            self._note_answer(sending, now)
        elif loading:
            pause = self.startup.wait(now, reply.outcome, reply.pause, self._progress)
            self.pacer.pause(now, pause)
            self._retry(sending, 0.0)
        else:
            self._settle_failure(sending, outcome, reply.pause, now)

    def _note_answer(self, sending: _Sending, now: float) -> None:
        self.startup.end(now, self._progress)
        self.first_refusals.end()
        self.busy.end(self._progress)
        self.pacer.served(now, now - sending.sent_at)

    def _settle_failure(
        self, sending: _Sending, outcome: Outcome, asked: float | None, now: float
    ) -> None:
        """Stop, slow down or retry. `asked`: seconds that the provider asks us to wait."""
        if retry_policy.is_fatal(outcome):
            raise retry_policy.refused(self.endpoint, outcome)
        if outcome.status in retry_policy.OVERLOADED:
            self._slow_down(sending, outcome, asked, now)
        if self.first_refusals.add(outcome):
            raise retry_policy.all_refused(self.endpoint, outcome, self.first_refusals.count)
        if outcome.error != ABANDONED:
            self._decide(sending, outcome, asked or 0.0)

    def _slow_down(
        self, sending: _Sending, outcome: Outcome, asked: float | None, now: float
    ) -> None:
        pause = asked or 0.0
        if outcome.status == 429:
            pause = max(DEFAULT_PAUSE_SECONDS if asked is None else asked, MIN_PAUSE_SECONDS)
            self.busy.add(now, outcome, pause, self._progress)
        self.pacer.pause(now, pause)
        self.pacer.refused(now, sending.sent_at)

    def _decide(self, sending: _Sending, outcome: Outcome, pause: float) -> None:
        if outcome.status == 429:  # never counts against the request
            self._retry(sending, 0.0)
            return
        if outcome.outcome == "uncertain" and self.settings.on_uncertain == "hold":
            self._progress.add(1)
            return
        sending.tries += 1
        if retry_policy.again(outcome.status) and sending.tries < self.settings.max_attempts:
            self._retry(sending, retry_policy.backoff_seconds(sending.tries - 1, pause))
        elif outcome.outcome == "not_sent":
            attempts = self.settings.max_attempts
            raise retry_policy.unreachable(self.endpoint, attempts, outcome.error)
        else:
            self._progress.add(1)

    def _retry(self, sending: _Sending, seconds: float) -> None:
        task = asyncio.create_task(self._again_in(seconds, sending))
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)
        task.add_done_callback(lambda _: self._changed.set())

    async def _again_in(self, seconds: float, sending: _Sending) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        if self._stop.is_set():
            return
        try:
            (state,) = self.journal.known([sending.asking.key]).values()
            (attempt,) = await self.journal.begin([sending.asking._replace(request_id=state.id)])
        except NexaError as error:
            self._end_run(error)
        else:
            self._ready.appendleft(_Sending(sending.asking, attempt, sending.tries))

    # ---- outcomes on disk

    def _stored(self, sending: _Sending, outcome: Outcome, error: StorageFailed | None) -> None:
        """Callback after the commit of an outcome, with the error if it failed."""
        try:
            if error:
                raise error
            self._count(sending, outcome)
        except Exception as failed:  # noqa: BLE001  the loop would log it, and the run would hang
            self._end_run(failed)
        self._changed.set()

    def _count(self, sending: _Sending, outcome: Outcome) -> None:
        self.journal.in_flight.remove(sending.attempt)
        answer = settle_attempt(
            self.journal, self.tally, self.price, sending.attempt, sending.asking, outcome
        )
        if answer is not UNREAD:
            self._look_at(answer, outcome.raw or b"")
        if outcome.outcome == "answered":
            self._progress.add(1, self.tally.spend)

    def _remember_model(self) -> None:
        """Load the model of the first stored answer, so that a rerun stops at a change too."""
        for raw in self.journal.answers_of(self.model):
            with contextlib.suppress(Exception):  # an unreadable answer is skipped
                first = parse_answer(raw)
                if first.flag != "malformed":
                    self.models[first.model, first.fingerprint] += 1
                    return

    def _look_at(self, answer: Answer, raw: bytes) -> None:
        """Stop the run if this is not a chat completions API, or at a change of the model."""
        if answer.flag == "malformed":
            self._malformed += 1
            if self._malformed >= retry_policy.NO_ANSWERS and not self.models:
                self._end_run(retry_policy.no_such_api(self.endpoint, raw))
            return
        self.models[answer.model, answer.fingerprint] += 1
        if self.first_answers.add(answer) and self.first_answers.usable:
            count, hint = self.first_answers.count, self.first_answers.usable.hint
            self._end_run(
                retry_policy.unusable_answers(self.endpoint, count, hint, answer.text or "")
            )
        if self.settings.stop_on_model_change and len(self.models) > 1:
            self._end_run(retry_policy.model_changed(self.endpoint, self.models))

    # ---- end of the run

    async def _let_go(self) -> None:
        """Close the attempts that were never sent, and wait for the disk."""
        for task in list(self._retries):
            task.cancel()
        if self.journal.broken:
            return
        never = Outcome("not_sent", error="the run was stopping")
        for sending in self._ready:
            self.journal.end(sending.attempt, never, lambda _: None)
        try:
            await self.journal.on_disk()  # the outcomes, whose costs are recorded after that
            await self.journal.on_disk()  # the costs
        except StorageFailed as error:
            self._end_run(error)

    def _end_run(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        for event in (self._stop, self._changed, self._queue_has_space):
            event.set()

    async def _change(self, seconds: float = math.inf) -> None:
        """Wait for a change of the queue or the requests in flight, at most `seconds`."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._changed.wait()

    def _handle_signals(self, workers: list[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()

        def abandon() -> None:
            for worker in workers:
                worker.cancel()

        def stop(error: BaseException) -> None:
            if self._stop.is_set():
                abandon()
                return
            self._end_run(error)
            loop.call_later(GRACE_SECONDS, abandon)
            print(
                f"\nstopping: {self._flying} requests in flight, waiting up to "
                f"{GRACE_SECONDS:.0f} s for their answers (once more to abandon them)",
                file=sys.stderr,
                flush=True,
            )

        loop.add_signal_handler(signal.SIGINT, stop, KeyboardInterrupt())
        loop.add_signal_handler(signal.SIGTERM, stop, Stopped())
        loop.add_signal_handler(signal.SIGHUP, stop, Stopped())
