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

from nexa_distill.collection.answers.billing import UNREADABLE, bill_unbilled, settle_attempt
from nexa_distill.collection.answers.completions import Answer, parse_answer
from nexa_distill.collection.first_answers import AnswerRequirement, FirstAnswers, FirstRefusals
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.busy_notice import BusyNotice
from nexa_distill.collection.requests.connections import fetch_models, model_ids
from nexa_distill.collection.requests.model_run import ModelRun
from nexa_distill.collection.requests.rate_limiter import RateLimiter
from nexa_distill.collection.requests.startup import Startup
from nexa_distill.collection.requests.transport import ABANDONED, DEFAULT_PAUSE_SECONDS, SendResult, Transport
from nexa_distill.console import cli
from nexa_distill.console.cli import StopSignal
from nexa_distill.errors import NexaError, StorageFailed
from nexa_distill.journal.journal import Outcome, PendingRequest
from nexa_distill.storage import failpoints

GRACE_SECONDS = 10.0  # for the requests in flight, after a signal
MIN_PAUSE_SECONDS = 0.05
SHOWN_MODELS = 12


@dataclass(slots=True)
class _QueuedRequest:
    """One attempt of a request, waiting or in flight."""

    asking: PendingRequest
    attempt: int
    tries: int = 0  # attempts of this run that count against the request
    sent_at: float = 0.0


class ApiClient:
    """Sends the requests of one run to one endpoint; call `send_all` once."""

    def __init__(self, run: ModelRun, usable: AnswerRequirement | None = None) -> None:
        self.endpoint, self.settings = run.endpoint, run.config.collection
        self.model, self.price = run.model, run.model_price
        self.journal, self.tally, self._progress = run.journal, run.tally, run.progress
        provider, settings = run.provider_settings, run.config.collection
        self.pacer = RateLimiter(settings.concurrency, provider.requests_per_minute, provider.tokens_per_minute)
        self.models: Counter[tuple[str | None, str | None]] = Counter()  # and fingerprint
        # A server that we started is ready: its refusals are failures.
        self.startup = Startup(self.endpoint, 0.0 if provider.start else provider.startup_wait_seconds)
        self.busy = BusyNotice(self.endpoint)
        self.first_refusals, self.first_answers = FirstRefusals(self.endpoint), FirstAnswers(self.endpoint, usable)
        self._malformed = 0
        # Every worker has a request ready while the next batch is written to the journal.
        self._ahead = max(settings.batch_size, settings.concurrency)
        self._ready: deque[_QueuedRequest] = deque()
        self._flying = 0
        self._filled = False
        self._retries: set[asyncio.Task[None]] = set()
        self._fatal: BaseException | None = None

    def run(self, batches: Iterator[list[PendingRequest]]) -> None:
        try:
            uvloop.run(self.send_all(batches))
        finally:
            # The loop has replaced the handlers of SIGTERM and SIGHUP; the rest of the command needs them.
            cli.handle_signals()

    async def send_all(self, batches: Iterator[list[PendingRequest]]) -> None:
        """Send all requests until each has an answer, is refused or is given up.

        Raises ProviderUnusable (69), BudgetReached (77), StorageFailed (74), StopSignal or
        KeyboardInterrupt, always after the answers in flight are stored or GRACE_SECONDS are over.
        """
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        self._queue_has_space, self._dispatch_lock = asyncio.Event(), asyncio.Lock()
        bill_unbilled(self.journal, self.model, self.price)
        if self.settings.stop_on_model_change:
            self._load_first_model()
        async with Transport(self.endpoint, self.settings.timeout_seconds) as transport:
            filler = asyncio.create_task(self._fill_queue(batches))
            workers = [asyncio.create_task(self._run_worker(transport)) for _ in range(self.settings.concurrency)]
            self._handle_signals(workers)
            for task in (filler, *workers):
                await task
            await self._drain_queue()
        if isinstance(self._fatal, retry_policy.ModelNotFound):
            _, models = await fetch_models(self.endpoint)
            if names := model_ids(models):
                raise type(self._fatal)(f"{self._fatal}. The server has: {', '.join(names[:SHOWN_MODELS])}")
        if self._fatal:
            raise self._fatal

    # ---- queue of journaled requests

    async def _fill_queue(self, batches: Iterator[list[PendingRequest]]) -> None:
        # Requests are journaled ahead of their turn, so that no send waits for an fsync.
        try:
            while not self._stop.is_set():
                if len(self._ready) >= self._ahead:
                    self._queue_has_space.clear()
                    await self._queue_has_space.wait()
                elif batch := next(batches, None):
                    await self._begin_batch(batch)
                else:
                    break
        except Exception as error:  # noqa: BLE001  requests in flight are finished after a bug too
            self._end_run(error)
        self._filled = True
        self._changed.set()

    async def _begin_batch(self, batch: list[PendingRequest]) -> None:
        attempts = await self.journal.begin_attempts(batch)
        self._ready.extend(_QueuedRequest(a, n) for a, n in zip(batch, attempts, strict=True))
        self._changed.set()

    # ---- workers

    async def _run_worker(self, transport: Transport) -> None:
        # A worker hands its outcome to the journal and takes the next request without waiting;
        # the answer is parsed when it is on disk (`_on_stored`).
        try:
            while sending := self._take_ready() or await self._wait_for_next():
                reply = await transport.post_request(self._body_to_send(sending.asking.body))
                failpoints.hit_failpoint("after_recv")
                self._flying -= 1
                self._handle_result(sending, reply)
                self._changed.set()
        except Exception as error:  # noqa: BLE001  as above
            self._end_run(error)
        # Only `abandon_requests` cancels a worker; without a stop it is a bug.
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise

    def _body_to_send(self, body: bytes) -> bytes:
        if self.endpoint.model == self.model:
            return body
        # A server that we start expects its own model name (a path).
        return json.dumps({**json.loads(body), "model": self.endpoint.model}).encode()

    def _take_ready(self) -> _QueuedRequest | None:
        # The worker that waits for its turn has the lock: nobody may overtake it.
        if not self._ready or self._dispatch_lock.locked() or self._stop.is_set():
            return None
        now = time.monotonic()
        return None if self._seconds_until_send(now, self._ready[0].asking) else self._dispatch_next(now)

    async def _wait_for_next(self) -> _QueuedRequest | None:
        async with self._dispatch_lock:  # one worker waits; the others queue here
            while not self._stop.is_set():
                if not self._ready:
                    # Nothing is queued, in flight or to be retried: no further request can come.
                    if self._filled and not self._flying and not self._retries:
                        return None
                    await self._wait_for_change()
                    continue
                now = time.monotonic()
                if wait := self._seconds_until_send(now, self._ready[0].asking):
                    await self._wait_for_change(wait)
                    continue
                return self._dispatch_next(now)
        return None

    def _seconds_until_send(self, now: float, asking: PendingRequest) -> float:
        """Seconds until it may be sent; infinity = until a request in flight has ended."""
        if wait := self.pacer.wait_seconds(now, self._flying):
            return wait
        # While the server loads its model, one request polls it.
        if self.journal.in_flight.is_full or (self.startup.is_waiting and self._flying):
            return math.inf
        # A request in flight may cost less than its reservation: the run ends only if nothing is reserved.
        limit = self.tally.exceeded_limit(asking.most_tokens, asking.most_usd)
        if limit and self.tally.has_no_reservations:
            raise self.tally.reached_error(limit)
        return math.inf if limit else 0.0

    def _dispatch_next(self, now: float) -> _QueuedRequest:
        sending = self._ready.popleft()
        if len(self._ready) < self._ahead:
            self._queue_has_space.set()
        asking = sending.asking
        sending.sent_at = now
        # From here on it counts as sent, and a crash leaves it perhaps billed.
        self._flying += 1
        self.journal.in_flight.add_attempt(sending.attempt)
        self.tally.reserve_request(asking.most_tokens, asking.most_usd)
        self.pacer.note_sent(now, asking.most_tokens)
        return sending

    # ---- results of attempts

    def _handle_result(self, sending: _QueuedRequest, reply: SendResult) -> None:
        now, outcome = time.monotonic(), reply.outcome
        loading = self.startup.is_loading(outcome, is_hidden=reply.is_hidden)
        if loading:
            outcome = outcome._replace(error=f"{retry_policy.LOADING}: {retry_policy.provider_message(outcome)}")
        # Recorded first: whatever is raised below, the outcome is on its way to the disk.
        self.journal.record_outcome(sending.attempt, outcome, functools.partial(self._on_stored, sending, outcome))
        if outcome.outcome == "answered":
            self._note_answer(sending, now)
        elif loading:
            pause = self.startup.next_poll_seconds(now, reply.outcome, reply.pause, self._progress)
            self.pacer.pause_sends(now, pause)
            self._schedule_retry(sending, 0.0)
        else:
            self._handle_failure(sending, outcome, reply.pause, now)

    def _note_answer(self, sending: _QueuedRequest, now: float) -> None:
        self.startup.note_answer(now, self._progress)
        self.first_refusals.stop_counting()
        self.busy.note_answer(self._progress)
        self.pacer.note_answer(now, now - sending.sent_at)

    def _handle_failure(self, sending: _QueuedRequest, outcome: Outcome, asked: float | None, now: float) -> None:
        """Stop, slow down or retry. `asked`: seconds that the provider asks us to wait."""
        if retry_policy.is_fatal(outcome):
            raise retry_policy.refusal_error(self.endpoint, outcome)
        if outcome.status in retry_policy.OVERLOADED:
            self._slow_down(sending, outcome, asked, now)
        self.first_refusals.count_outcome(outcome)
        # An abandoned request is left to the next run.
        if outcome.error != ABANDONED:
            self._decide_retry(sending, outcome, asked or 0.0)

    def _slow_down(self, sending: _QueuedRequest, outcome: Outcome, asked: float | None, now: float) -> None:
        pause = asked or 0.0
        if outcome.status == 429:
            pause = max(DEFAULT_PAUSE_SECONDS if asked is None else asked, MIN_PAUSE_SECONDS)
            self.busy.note_refusal(now, outcome, pause, self._progress)
        self.pacer.pause_sends(now, pause)
        self.pacer.note_refusal(now, sending.sent_at)

    def _decide_retry(self, sending: _QueuedRequest, outcome: Outcome, pause: float) -> None:
        if outcome.status == 429:  # never counts against the request
            self._schedule_retry(sending, 0.0)
            return
        # Perhaps billed: with `hold` a person decides whether it is sent again.
        if outcome.outcome == "uncertain" and self.settings.on_uncertain == "hold":
            self._progress.add(1)
            return
        sending.tries += 1
        attempts = self.settings.max_attempts
        if outcome.outcome == "not_sent" and not self.models and not self._flying:
            # No request has reached the server, and none is waiting for its answer.
            attempts = min(attempts, retry_policy.FIRST_CONNECTIONS)
        if retry_policy.is_retryable(outcome.status) and sending.tries < attempts:
            self._schedule_retry(sending, retry_policy.backoff_seconds(sending.tries - 1, pause))
        # No connection in all its attempts: the other requests would fail too.
        elif outcome.outcome == "not_sent":
            raise retry_policy.unreachable_error(self.endpoint, attempts, outcome.error)
        else:
            self._progress.add(1)

    def _schedule_retry(self, sending: _QueuedRequest, seconds: float) -> None:
        task = asyncio.create_task(self._retry_after(seconds, sending))
        # The loop has only weak references to tasks; the workers also see here that a retry is to come.
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)
        task.add_done_callback(lambda _: self._changed.set())

    async def _retry_after(self, seconds: float, sending: _QueuedRequest) -> None:
        # A stop ends the pause.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        if self._stop.is_set():
            return
        try:
            # The request may have been new when it was queued; the journal has given it an id since.
            (state,) = self.journal.load_states([sending.asking.key]).values()
            (attempt,) = await self.journal.begin_attempts([sending.asking._replace(request_id=state.id)])
        except NexaError as error:
            self._end_run(error)
        else:
            # To the front, because it is older than the rest of the queue.
            self._ready.appendleft(_QueuedRequest(sending.asking, attempt, sending.tries))

    # ---- outcomes on disk

    def _on_stored(self, sending: _QueuedRequest, outcome: Outcome, error: StorageFailed | None) -> None:
        try:
            if error:
                raise error
            self._count_outcome(sending, outcome)
        except Exception as failed:  # noqa: BLE001  the loop would log it, and the run would hang
            self._end_run(failed)
        self._changed.set()

    def _count_outcome(self, sending: _QueuedRequest, outcome: Outcome) -> None:
        self.journal.in_flight.remove_attempt(sending.attempt)
        answer = settle_attempt(self.journal, self.tally, self.price, sending.attempt, sending.asking, outcome)
        if outcome.outcome == "answered":
            self._progress.add(1, self.tally.spend_text)
        if answer is not UNREADABLE:
            self._check_model(answer, outcome.raw or b"")

    def _load_first_model(self) -> None:
        # Of the first stored answer, so that a rerun stops at a change of the model too.
        for raw in self.journal.answers_of_model(self.model):
            with contextlib.suppress(Exception):  # an unreadable answer is skipped
                first = parse_answer(raw)
                if first.flag != "malformed":
                    self.models[first.model, first.fingerprint] += 1
                    return

    def _check_model(self, answer: Answer, raw: bytes) -> None:
        """Raises ProviderUnusable if this is not a chat completions API, or at a change of the model."""
        if answer.flag == "malformed":
            self._malformed += 1
            if self._malformed >= retry_policy.NO_ANSWERS and not self.models:
                raise retry_policy.no_such_api_error(self.endpoint, raw)
            return
        self.models[answer.model, answer.fingerprint] += 1
        self.first_answers.count_answer(answer)
        if self.settings.stop_on_model_change and len(self.models) > 1:
            raise retry_policy.model_changed_error(self.endpoint, self.models)

    # ---- end of the run

    async def _drain_queue(self) -> None:
        for task in list(self._retries):
            task.cancel()
        # Journaled ahead of their turn; left open, they would look like requests that a crash cut off.
        never = Outcome("not_sent", error="the run was stopping")
        for sending in self._ready:
            self.journal.record_outcome(sending.attempt, never, lambda _: None)
        try:
            await self.journal.wait_for_disk()  # the outcomes, whose costs are recorded after that
            await self.journal.wait_for_disk()  # the costs
        except StorageFailed as error:
            self._end_run(error)

    def _end_run(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        for event in (self._stop, self._changed, self._queue_has_space):
            event.set()

    async def _wait_for_change(self, seconds: float = math.inf) -> None:
        # No await since the caller looked at the queue, so no change is missed.
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._changed.wait()

    def _handle_signals(self, workers: list[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()

        def abandon_requests() -> None:
            for worker in workers:
                worker.cancel()

        def request_stop(error: BaseException) -> None:
            if self._stop.is_set():
                # The second signal: nobody wants to wait for the answers in flight.
                abandon_requests()
                return
            self._end_run(error)
            loop.call_later(GRACE_SECONDS, abandon_requests)
            print(
                f"\nstopping: {self._flying} requests in flight, waiting up to "
                f"{GRACE_SECONDS:.0f} s for their answers (once more to abandon them)",
                file=sys.stderr,
                flush=True,
            )

        loop.add_signal_handler(signal.SIGINT, request_stop, KeyboardInterrupt())
        loop.add_signal_handler(signal.SIGTERM, request_stop, StopSignal())
        loop.add_signal_handler(signal.SIGHUP, request_stop, StopSignal())
