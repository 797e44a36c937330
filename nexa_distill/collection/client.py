"""The only code that talks to a model API: connections kept full, each request in the journal.

Requests are journaled ahead of their turn, so that a send waits for no fsync; a worker hands its
answer to the journal and takes the next request at once. An answer is parsed when it is on disk.

In `requests/`: what an attempt without an answer means is `retry_policy.py`, how fast is
`rate_limiter.py`, one send is `transport.py`, a server that is still loading `startup.py`. Batch
mode is `batch/client.py`. What ends a run early: `first_answers.py`.
"""

import asyncio
import contextlib
import functools
import json
import math
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import uvloop

from nexa_distill.collection.answers.billing import UNREAD, bill, bill_the_unbilled
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
from nexa_distill.errors import BudgetReached, NexaError, StorageFailed
from nexa_distill.journal.journal import Asking, Journal, Outcome
from nexa_distill.settings.pipeline import Collection, Provider
from nexa_distill.storage import failpoints

GRACE_SECONDS = 10.0
MIN_PAUSE_SECONDS = 0.05
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0


@dataclass(slots=True)
class _Sending:
    """One request on its way. `tries`: attempts of this run that count against it."""

    asking: Asking
    attempt: int
    tries: int = 0
    sent_at: float = 0.0


class Gateway:
    """Asks one endpoint. One instance per run; `ask_all` once. `usable`: what answers must be."""

    def __init__(
        self, endpoint: Endpoint, provider: Provider, settings: Collection, model: str,
        journal: Journal, tally: Tally, usable: Usable | None = None,
    ) -> None:  # fmt: skip
        self.endpoint, self.settings, self.model = endpoint, settings, model
        self.price = provider.prices.get(model)
        self.journal, self.tally = journal, tally
        self.pacer = Pacer(
            settings.concurrency, provider.requests_per_minute, provider.tokens_per_minute
        )
        self.models: Counter[tuple[str | None, str | None]] = Counter()  # and fingerprint
        # A server that we started is ready: what it refuses is a failure.
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
        """`ask_all` on an event loop of its own; the signal handlers are put back after it."""
        try:
            uvloop.run(self.ask_all(batches, progress))
        finally:
            cli.handle_signals()

    async def ask_all(self, batches: Iterator[list[Asking]], progress: Progress) -> None:
        """Send every request until each is decided.

        Raises ProviderUnusable (69), BudgetReached (77), StorageFailed (74), Stopped or
        KeyboardInterrupt, always after the answers in flight are stored (or their grace is over).
        """
        self._stop, self._changed, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._door, self._progress = asyncio.Lock(), progress
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

    # ---- requests come in, ahead of their turn

    async def _fill(self, batches: Iterator[list[Asking]]) -> None:
        try:
            while not self._stop.is_set():
                if len(self._ready) >= self._ahead:
                    self._room.clear()
                    await self._room.wait()
                elif batch := next(batches, None):
                    await self._begin(batch)
                else:
                    break
        except Exception as error:  # noqa: BLE001  even after a bug, what is in flight ends well
            self._end_run(error)
        self._filled = True
        self._changed.set()

    async def _begin(self, batch: list[Asking]) -> None:
        attempts = await self.journal.begin(batch)
        self._ready.extend(_Sending(a, n) for a, n in zip(batch, attempts, strict=True))
        self._changed.set()

    # ---- one worker

    async def _work(self, transport: Transport) -> None:
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
        """A server that we start goes by a name of its own (a path)."""
        if self.endpoint.model == self.model:
            return body
        return json.dumps({**json.loads(body), "model": self.endpoint.model}).encode()

    def _take(self) -> _Sending | None:
        """The next request, if it may be sent at once and nobody waits for it at the door."""
        if not self._ready or self._door.locked() or self._stop.is_set():
            return None
        now = time.monotonic()
        return None if self._wait(now, self._ready[0].asking) else self._send(now)

    async def _next(self) -> _Sending | None:
        """The next request to send, when it may be sent; None when there is no more."""
        async with self._door:  # one at a time looks and waits; the others queue here
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
        """Seconds until this may be sent; infinity = until something in flight has ended."""
        if wait := self.pacer.wait(now, self._flying):
            return wait
        if self.journal.wire.full or (self.startup.is_waiting and self._flying):
            return math.inf
        broken = self.tally.over(asking.most_tokens, asking.most_usd)
        if broken and self.tally.idle:
            raise BudgetReached(
                f"{broken} (all runs together). {self.tally.answered} answers of this run are "
                "stored; raise it and run the same command to go on"
            )
        return math.inf if broken else 0.0

    def _send(self, now: float) -> _Sending:
        """Take the next request from the queue: from here on it counts as sent."""
        sending = self._ready.popleft()
        if len(self._ready) < self._ahead:
            self._room.set()
        asking = sending.asking
        sending.sent_at = now
        self._flying += 1
        self.journal.wire.add(sending.attempt)
        self.tally.reserve(asking.most_tokens, asking.most_usd)
        self.pacer.sent(now, asking.most_tokens)
        return sending

    # ---- what an attempt's end means

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
        """`asked`: seconds that the provider asks us to wait."""
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
        """Again, refused, or given up."""
        if outcome.status == 429:
            self._retry(sending, 0.0)
            return
        if outcome.outcome == "uncertain" and self.settings.on_uncertain == "hold":
            self._progress.add(1)
            return
        sending.tries += 1
        if retry_policy.again(outcome.status) and sending.tries < self.settings.max_attempts:
            backoff = min(FIRST_BACKOFF_SECONDS * 2 ** (sending.tries - 1), MAX_BACKOFF_SECONDS)
            self._retry(sending, max(backoff, pause) * random.uniform(0.7, 1.0))  # noqa: S311
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
            (known,) = self.journal.known([sending.asking.key]).values()
            (attempt,) = await self.journal.begin([sending.asking._replace(request_id=known.id)])
        except NexaError as error:
            self._end_run(error)
        else:
            self._ready.appendleft(_Sending(sending.asking, attempt, sending.tries))

    # ---- what is on disk is read

    def _stored(self, sending: _Sending, outcome: Outcome, error: StorageFailed | None) -> None:
        """The end of an attempt is on disk, or the disk has failed."""
        try:
            if error:
                raise error
            self._count(sending, outcome)
        except Exception as failed:  # noqa: BLE001  the loop would log it, and the run would hang
            self._end_run(failed)
        self._changed.set()

    def _count(self, sending: _Sending, outcome: Outcome) -> None:
        asking = sending.asking
        self.journal.wire.remove(sending.attempt)
        billed = None
        if outcome.outcome == "answered":
            raw = outcome.raw or b""
            answer, usd = bill(self.journal, self.price, sending.attempt, raw)
            tokens = asking.most_tokens if answer.total_tokens is None else answer.total_tokens
            billed = (tokens, asking.most_usd if usd is None else usd)
            self.tally.answered += 1
            if answer is not UNREAD:
                self._look_at(answer, raw)
        elif outcome.outcome == "uncertain":  # perhaps billed: count what it could have cost
            billed = (asking.most_tokens, asking.most_usd)
        self.tally.release(asking.most_tokens, asking.most_usd, billed=billed)
        if outcome.outcome == "answered":
            self._progress.add(1, self.tally.spend)

    def _remember_model(self) -> None:
        """The model of the first answer stored, for `stop_on_model_change`: a rerun stops again."""
        for raw in self.journal.answers_of(self.model):
            with contextlib.suppress(Exception):  # what cannot be read says nothing
                first = parse_answer(raw)
                if first.flag != "malformed":
                    self.models[first.model, first.fingerprint] += 1
                    return

    def _look_at(self, answer: Answer, raw: bytes) -> None:
        """Stop early at what is no such API, or, if asked to, at a change of the model."""
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

    # ---- the end

    async def _let_go(self) -> None:
        """Nothing is in flight: end what was never sent, and wait for the disk."""
        for task in list(self._retries):
            task.cancel()
        if self.journal.broken:
            return
        never = Outcome("not_sent", error="the run was stopping")
        for sending in self._ready:
            self.journal.end(sending.attempt, never, lambda _: None)
        try:
            await self.journal.on_disk()  # the ends; what they cost is recorded after that
            await self.journal.on_disk()
        except StorageFailed as error:
            self._end_run(error)

    def _end_run(self, error: BaseException) -> None:
        self._fatal = self._fatal or error
        for event in (self._stop, self._changed, self._room):
            event.set()

    async def _change(self, seconds: float = math.inf) -> None:
        """Wait until something has changed, at most so long."""
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
                file=sys.stderr, flush=True,
            )  # fmt: skip

        loop.add_signal_handler(signal.SIGINT, stop, KeyboardInterrupt())
        loop.add_signal_handler(signal.SIGTERM, stop, Stopped())
        loop.add_signal_handler(signal.SIGHUP, stop, Stopped())
