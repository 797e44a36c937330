"""Batch mode: the requests go to the provider in files, and the answers come within a day.

The same journal as in the gateway, the same budget, the same key of a request (its `custom_id`).
What the journal knows of a batch decides what happens to it, whenever a process ends:

| newest step | meaning                       | the next run                                       |
|-------------|-------------------------------|----------------------------------------------------|
| (no row)    | its file was being written    | its requests were not sent                         |
| (row)       | about to be uploaded          | was never created: its requests were not sent      |
| uploaded    | about to be created           | looks for it by its metadata: as `created`, or not |
| created     | the provider works            | goes on looking; takes the answers when it ends    |
| ended       | every attempt has its outcome | asks again for what has no answer                  |

When a batch has ended, each request is: `answered` or `rejected` as its line says; `not_sent` when
it expired or was never begun; `uncertain` when a completed batch says nothing about it. Several
batches may be open at a time; what is not answered goes into a later one.

Not covered: `collection.stop_on_model_change`; servers that we start; deleting files at the
provider.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from nexa_distill.collection.answers.billing import bill_the_unbilled
from nexa_distill.collection.batch.api import BatchApi, NotFound, Refused, Unavailable
from nexa_distill.collection.batch.files import MAX_FILE_BYTES, request_line, words
from nexa_distill.collection.batch.results import Results
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.budget import Tally
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.console import cli
from nexa_distill.console.cli import Stopped
from nexa_distill.console.progress import Progress
from nexa_distill.errors import BudgetReached, InputError, ProviderUnusable
from nexa_distill.journal.batches import Batch
from nexa_distill.journal.journal import Asking, Journal, Outcome, Spent
from nexa_distill.settings.pipeline import Collection, Provider
from nexa_distill.storage import failpoints
from nexa_distill.storage.atomic import replacing
from nexa_distill.storage.manifests import sha256_path

ENDS = {"completed", "failed", "expired", "cancelled"}
NEVER_CREATED = Outcome("not_sent", error="the batch was never created")
FIRST_POLL_SECONDS, POLL_GROWTH, LAST_POLL_SECONDS = 0.25, 1.5, 60.0
PATIENCE_SECONDS = 3600.0  # without a word from the provider, while a batch is open


class BatchMode:
    """Asks one endpoint. One instance per run. `forget`: give up batches that it does not know."""

    def __init__(
        self, endpoint: Endpoint, provider: Provider, settings: Collection, model: str,
        journal: Journal, tally: Tally, progress: Progress, *, forget: bool,
    ) -> None:  # fmt: skip
        self.endpoint, self.settings, self.forget = endpoint, settings, forget
        self.discount, self.model = provider.batch_discount, model
        self.journal, self.ledger, self.tally = journal, journal.batches, tally
        self.results = Results(journal, tally, provider.prices.get(model), progress)
        self.progress, self.stage = progress, journal.path.stem
        self.folder = journal.path.parent / "batches"
        self._open: dict[int, Batch] = {}
        self._counts: dict[int, tuple[int, int]] = {}  # answered and in all, as the provider says
        self._ended = 0  # batches, since the inputs were last walked through
        self._queue_is_full = False
        self._interval, self._heard = FIRST_POLL_SECONDS, time.monotonic()

    def run(self, passes: Iterator[Iterator[list[Asking]]]) -> None:
        """Finish the open batches, then ask what each of `passes` over the inputs finds missing.

        Ends when a pass finds nothing, or there are no more. Raises ProviderUnusable (69),
        BudgetReached (77), StorageFailed (74), InputError (65), Stopped or KeyboardInterrupt; what
        is at the provider then stays there, and the next run takes it up.
        """
        try:
            stopped = uvloop.run(self._until_stopped(passes))
        finally:
            cli.handle_signals()
        if stopped:
            raise stopped

    async def _until_stopped(
        self, passes: Iterator[Iterator[list[Asking]]]
    ) -> BaseException | None:
        stopped: list[BaseException] = []
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(error: BaseException) -> None:
            stopped.append(error)
            if task:
                task.cancel()

        loop.add_signal_handler(signal.SIGINT, stop, KeyboardInterrupt())
        loop.add_signal_handler(signal.SIGTERM, stop, Stopped())
        loop.add_signal_handler(signal.SIGHUP, stop, Stopped())
        limits = (self.settings.timeout_seconds, self.settings.max_attempts)
        try:
            async with BatchApi(self.endpoint, *limits) as self.api:
                await self._answer(passes)
        except asyncio.CancelledError:
            if not stopped:
                raise
            self._say_what_goes_on()
            return stopped[0]
        return None

    async def _answer(self, passes: Iterator[Iterator[list[Asking]]]) -> None:
        await self._take_up()
        for chunks in passes:
            await self._ask(chunks)
            while self._open:
                await self._poll()
            if not self._ended:
                return
            self._ended = 0
        while self._open:
            await self._poll()

    # ---- batches of earlier runs

    async def _take_up(self) -> None:
        for stray in self.folder.glob(f"*{self.stage}-*"):
            if not stray.name.endswith(".unknown.jsonl"):
                stray.unlink()  # what is at the provider needs no file any more
        bill_the_unbilled(self.journal, self.model, self.results.price)
        self.tally.hold(Spent(*self.ledger.under_way()))
        for batch in self.ledger.open():
            remote = batch.remote
            if batch.file and batch.provider != self.endpoint.provider:
                raise InputError(
                    f"{self._name(batch)} is open at provider {batch.provider} and may be billed "
                    f"there, this run asks {self.endpoint.provider}: run once with --provider "
                    f"{batch.provider} to collect its answers"
                )
            if batch.file and not remote:
                remote = await self.api.find(self._metadata(batch.id))
                if remote:
                    await self.ledger.step(batch.id, "created", remote)
            if remote:
                self._open[batch.id] = batch._replace(remote=remote)
                self._say(f"{self._name(self._open[batch.id])} of an earlier run is taken up again")
            else:
                await self._end(batch, "never created", NEVER_CREATED)

    # ---- a batch goes out

    async def _ask(self, chunks: Iterator[list[Asking]]) -> None:
        left = next(chunks, [])
        while left:
            await self._room(left[0])
            left = await self._hand_in(left, chunks)

    async def _room(self, asking: Asking) -> None:
        """Wait until one more request may go out. What waits for the provider's queue, waits."""
        while True:
            broken = self.tally.over(asking.most_tokens, asking.most_usd)
            if not broken and not self._queue_is_full:
                return
            if not self._open:
                raise BudgetReached(
                    f"{broken} (all runs together). {self.tally.answered} answers of this run are "
                    "stored; raise it and run the same command to go on"
                )
            await self._poll()

    async def _hand_in(self, left: list[Asking], chunks: Iterator[list[Asking]]) -> list[Asking]:
        """One batch of `left` and more; what did not go into it."""
        id_, count = self.ledger.next_id(), 0
        path = self._path(id_)
        with replacing(path) as temporary, temporary.open("wb") as file:
            while left:
                fits = self._fitting(left, count, file.tell())
                file.writelines(fits)
                await self.journal.begin(left[: len(fits)], id_)
                count += len(fits)
                if len(fits) < len(left):
                    left = left[len(fits) :]
                    break
                left = next(chunks, [])
        share = 1.0 if self.discount is None else self.discount
        batch = Batch(id_, self.endpoint.provider, share, count, sha256_path(path))
        await self.ledger.record(batch)
        failpoints.hit("after_batch_intent")
        await self._submit(batch)
        return left

    def _fitting(self, left: list[Asking], count: int, size: int) -> list[bytes]:
        """Lines of the first of `left` that fit into a file and the budget; they are reserved."""
        fits: list[bytes] = []
        for asking in left:
            line = request_line(asking.key, asking.body)
            size += len(line)
            full = count + len(fits) >= self.settings.batch_requests or size > MAX_FILE_BYTES
            if full or self.tally.over(asking.most_tokens, asking.most_usd):
                break
            self.tally.reserve(asking.most_tokens, asking.most_usd)
            fits.append(line)
        return fits

    async def _submit(self, batch: Batch) -> None:
        try:
            file = await self.api.upload(self._path(batch.id))
        except ProviderUnusable:
            await self._end(batch, "never created", NEVER_CREATED)
            raise
        failpoints.hit("after_upload")
        await self.ledger.step(batch.id, "uploaded", file)
        try:
            remote = await self.api.create(file, self._metadata(batch.id))
        except Refused:
            await self._end(batch, "never created", NEVER_CREATED)
            raise
        failpoints.hit("after_create")
        await self.ledger.step(batch.id, "created", remote)
        self._open[batch.id] = batch._replace(file=file, remote=remote)
        self._interval, self._heard = FIRST_POLL_SECONDS, time.monotonic()
        self._say(f"{self._name(self._open[batch.id])}: {batch.requests} requests handed in")

    def _metadata(self, batch: int) -> dict[str, str]:
        return {
            "nexa_batch": f"{self.stage}-{batch}", "nexa_journal": self.ledger.journal_id()
        }  # fmt: skip

    # ---- and comes back

    async def _poll(self) -> None:
        """Wait a while, look at each open batch, and take the answers of those that have ended."""
        await asyncio.sleep(self._interval)
        self._interval = min(self._interval * POLL_GROWTH, LAST_POLL_SECONDS)
        for batch in list(self._open.values()):
            try:
                await self._look(batch)
            except Unavailable:  # the batch goes on without us, and so can we for a while
                if time.monotonic() - self._heard > PATIENCE_SECONDS:
                    raise
            except NotFound as error:
                if not self.forget:
                    raise ProviderUnusable(
                        f"{self._name(batch)}: {error}. If it is lost there, --retry-failed asks "
                        "its requests again; they may be billed twice"
                    ) from None
                await self._end(batch, "unknown", Outcome("uncertain", error=str(error)))
            else:
                self._heard = time.monotonic()

    async def _look(self, batch: Batch) -> None:
        failpoints.hit("poll")
        found = await self.api.batch(batch.remote or "")
        counts = found.get("request_counts") or {}
        self._counts[batch.id] = (counts.get("completed") or 0, batch.requests)
        self._note()
        if found.get("status") in ENDS:
            await self._take(batch, found)

    async def _take(self, batch: Batch, found: dict[str, Any]) -> None:
        """The answers of a batch that has ended, and what that means for the run."""
        status, unknown = str(found["status"]), self._path(batch.id, "unknown")
        unknown.unlink(missing_ok=True)
        fatal: list[Outcome] = []
        for name in ("output_file_id", "error_file_id"):
            if file := found.get(name):
                answers = self._path(batch.id, "answers")
                await self.api.download(file, answers)
                fatal += await self.results.take(batch, answers, unknown)
        if unknown.exists():
            self._say(f"warning: {self._name(batch)} has lines that nobody asked for: {unknown}")
        silent = Outcome("not_sent", error=f"the batch {status} before it")
        if status == "completed":
            silent = Outcome("uncertain", error="the completed batch says nothing about it")
        await self._end(batch, status, silent)
        if fatal:
            raise retry_policy.refused(self.endpoint, fatal[0])
        self._go_on_after(batch, status, found)

    async def _end(self, batch: Batch, word: str, rest: Outcome) -> None:
        """Close a batch; what has no outcome yet ends as `rest`."""
        await self.results.close(batch, word, rest)
        self._open.pop(batch.id, None)
        self._counts.pop(batch.id, None)
        self._ended, self._queue_is_full = self._ended + 1, False
        for kind in ("requests", "answers"):  # all of it is in the journal now
            self._path(batch.id, kind).unlink(missing_ok=True)

    def _go_on_after(self, batch: Batch, status: str, found: dict[str, Any]) -> None:
        """Raises ProviderUnusable where the next batch should not follow by itself."""
        if status == "cancelled":
            raise ProviderUnusable(
                f"{self._name(batch)} was cancelled at the provider. What it answered is stored; "
                "run the same command again to ask for the rest"
            )
        if status != "failed":
            return
        errors = (found.get("errors") or {}).get("data") or []
        if self._open and any(e.get("code") == "token_limit_exceeded" for e in errors):
            self._queue_is_full = True  # of the account: there is room when another batch has ended
            self._say(f"{self._name(batch)} has to wait for the others: {words(errors[0])}")
            return
        said = "; ".join(words(error) for error in errors[:3]) or "(no text)"
        raise ProviderUnusable(
            f"{self._name(batch)} failed at {self.endpoint.base_url}, nothing of it was asked: "
            f"{said}. Put that right and run the same command again"
        )

    # ---- what a person sees

    def _path(self, batch: int, kind: str = "requests") -> Path:
        end = ".jsonl" if kind == "requests" else f".{kind}.jsonl"
        return self.folder / f"{self.stage}-{batch}{end}"

    def _name(self, batch: Batch) -> str:
        remote = f" ({batch.remote})" if batch.remote else ""
        return f"batch {self.stage}-{batch.id}{remote}"

    def _say(self, text: str) -> None:
        print(f"\n{self.stage}: {text}", file=sys.stderr, flush=True)

    def _note(self) -> None:
        done, of = map(sum, zip(*self._counts.values(), strict=True))
        spent = f", {self.tally.spend}" if self.tally.spend else ""
        plural = f"{len(self._open)} batches" if len(self._open) > 1 else "batch"
        self.progress.say(f"{plural} {done}/{of}{spent}")

    def _say_what_goes_on(self) -> None:
        for batch in self._open.values():
            done, of = self._counts.get(batch.id, (0, batch.requests))
            self._say(
                f"stopping: {self._name(batch)}, {done} of {of} done, goes on at the provider; "
                "run the same command again to collect its answers"
            )
        if not self._open:
            self._say("stopping: no batch is at the provider, as far as is known")
