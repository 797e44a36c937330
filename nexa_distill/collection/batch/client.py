"""Batch mode: requests are sent to the provider in files and answered within a day.

Journal, budget and request keys (the `custom_id`) are those of the other client. After a process
ends, the batch's newest step in the journal decides how the next run continues:

| newest step | state                         | the next run                                       |
|-------------|-------------------------------|----------------------------------------------------|
| (no row)    | its file was being written    | its requests were not sent                         |
| (row)       | about to be uploaded          | was never created: its requests were not sent      |
| uploaded    | about to be created           | looks it up by its metadata: as `created`, or not  |
| created     | in progress at the provider   | polls it; stores its answers when it ends          |
| ended       | every attempt has an outcome  | sends requests without an answer again             |

Not covered: `collection.stop_on_model_change`, servers that we start, deleting files at the
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

from nexa_distill.collection.answers.billing import bill_unbilled
from nexa_distill.collection.batch.api import BatchApi, CallRefused, NotFound, Unavailable
from nexa_distill.collection.batch.files import MAX_FILE_BYTES, format_error, request_line
from nexa_distill.collection.batch.results import BatchResults
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.model_run import ModelRun
from nexa_distill.console import cli
from nexa_distill.console.cli import StopSignal
from nexa_distill.errors import InputError, ProviderUnusable
from nexa_distill.journal.batches import Batch
from nexa_distill.journal.journal import Outcome, PendingRequest
from nexa_distill.storage import failpoints
from nexa_distill.storage.atomic import replace_atomically
from nexa_distill.storage.manifests import sha256_path

FINAL_STATUSES = {"completed", "failed", "expired", "cancelled"}
NEVER_CREATED = Outcome("not_sent", error="the batch was never created")
FIRST_POLL_SECONDS, POLL_GROWTH, LAST_POLL_SECONDS = 0.25, 1.5, 60.0
PATIENCE_SECONDS = 3600.0  # without any response from the provider while a batch is open


class BatchClient:
    """Runs the batches of one endpoint, one instance per run.

    `forget`: close batches that the provider does not know any more.
    """

    def __init__(self, run: ModelRun, *, forget: bool) -> None:
        self.endpoint, self.settings, self.forget = run.endpoint, run.config.collection, forget
        self.discount, self.model = run.provider_settings.batch_discount, run.model
        self.journal, self.ledger, self.tally = run.journal, run.journal.batches, run.tally
        self.results, self.progress = BatchResults(run), run.progress
        self.stage, self.folder = run.journal.path.stem, run.journal.path.parent / "batches"
        self._open: dict[int, Batch] = {}
        self._counts: dict[int, tuple[int, int]] = {}  # completed requests at the provider, and all
        self._ended = 0  # batches since the start of the last pass over the inputs
        self._queue_is_full = False
        self._interval, self._heard = FIRST_POLL_SECONDS, time.monotonic()

    def run(self, passes: Iterator[Iterator[list[PendingRequest]]]) -> None:
        """Finish the open batches, then send the missing requests of each pass over the inputs.

        Ends after a pass without requests, or the last one. Raises ProviderUnusable (69),
        BudgetReached (77), StorageFailed (74), InputError (65), StopSignal or KeyboardInterrupt; open
        batches then continue at the provider, and the next run resumes them.
        """
        try:
            stopped = uvloop.run(self._run_until_stopped(passes))
        finally:
            cli.handle_signals()
        if stopped:
            raise stopped

    async def _run_until_stopped(self, passes: Iterator[Iterator[list[PendingRequest]]]) -> BaseException | None:
        stopped: list[BaseException] = []
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def request_stop(error: BaseException) -> None:
            stopped.append(error)
            if task:
                task.cancel()

        loop.add_signal_handler(signal.SIGINT, request_stop, KeyboardInterrupt())
        loop.add_signal_handler(signal.SIGTERM, request_stop, StopSignal())
        loop.add_signal_handler(signal.SIGHUP, request_stop, StopSignal())
        limits = (self.settings.timeout_seconds, self.settings.max_attempts)
        try:
            async with BatchApi(self.endpoint, *limits) as self.api:
                await self._run_passes(passes)
        except asyncio.CancelledError:
            if not stopped:
                raise
            self._print_open_batches()
            return stopped[0]
        return None

    async def _run_passes(self, passes: Iterator[Iterator[list[PendingRequest]]]) -> None:
        await self._resume_batches()
        for chunks in passes:
            await self._submit_all(chunks)
            while self._open:
                await self._poll_batches()
            if not self._ended:
                return
            self._ended = 0
        while self._open:
            await self._poll_batches()

    # ---- batches of earlier runs

    async def _resume_batches(self) -> None:
        for stray in self.folder.glob(f"*{self.stage}-*"):
            if not stray.name.endswith(".unknown.jsonl"):
                stray.unlink()  # batches at the provider need no file any more
        bill_unbilled(self.journal, self.model, self.results.price)
        self.tally.reserve_under_way(self.journal.under_way_usage())
        for batch in self.ledger.list_open():
            remote = batch.remote
            if batch.file and batch.provider != self.endpoint.provider:
                raise InputError(
                    f"{self._batch_name(batch)} is open at provider {batch.provider} and may be billed "
                    f"there, but this run uses {self.endpoint.provider}: run once with --provider "
                    f"{batch.provider} to collect its answers"
                )
            if batch.file and not remote:
                remote = await self.api.find_batch(self._batch_metadata(batch.id))
                if remote:
                    await self.ledger.record_step(batch.id, "created", remote)
            if remote:
                self._open[batch.id] = batch._replace(remote=remote)
                self._print_line(f"resuming {self._batch_name(self._open[batch.id])} of an earlier run")
            else:
                await self._close_batch(batch, "never created", NEVER_CREATED)

    # ---- submit batches

    async def _submit_all(self, chunks: Iterator[list[PendingRequest]]) -> None:
        pending = next(chunks, [])
        while pending:
            await self._wait_for_space(pending[0])
            pending = await self._submit_next(pending, chunks)

    async def _wait_for_space(self, asking: PendingRequest) -> None:
        """Wait until the budget and the provider's queue have space for one more request."""
        while True:
            limit = self.tally.exceeded_limit(asking.most_tokens, asking.most_usd)
            if not limit and not self._queue_is_full:
                return
            if not self._open:
                raise self.tally.reached_error(limit)
            await self._poll_batches()

    async def _submit_next(
        self, pending: list[PendingRequest], chunks: Iterator[list[PendingRequest]]
    ) -> list[PendingRequest]:
        """Submit one batch of `pending` and further chunks; returns the requests left over."""
        id_, count = self.ledger.next_batch_id(), 0
        path = self._file_path(id_)
        with replace_atomically(path) as temporary, temporary.open("wb") as file:
            while pending:
                lines = self._reserve_lines(pending, count, file.tell())
                file.writelines(lines)
                await self.journal.begin_attempts(pending[: len(lines)], id_)
                count += len(lines)
                if len(lines) < len(pending):
                    pending = pending[len(lines) :]
                    break
                pending = next(chunks, [])
        share = 1.0 if self.discount is None else self.discount
        batch = Batch(id_, self.endpoint.provider, share, count, sha256_path(path))
        await self.ledger.record_batch(batch)
        failpoints.hit_failpoint("after_batch_intent")
        await self._submit_batch(batch)
        return pending

    def _reserve_lines(self, pending: list[PendingRequest], count: int, size: int) -> list[bytes]:
        """Reserve the first requests that fit into the file and the budget; returns their lines."""
        lines: list[bytes] = []
        for asking in pending:
            line = request_line(asking.key, asking.body)
            size += len(line)
            full = count + len(lines) >= self.settings.batch_requests or size > MAX_FILE_BYTES
            if full or self.tally.exceeded_limit(asking.most_tokens, asking.most_usd):
                break
            self.tally.reserve_request(asking.most_tokens, asking.most_usd)
            lines.append(line)
        return lines

    async def _submit_batch(self, batch: Batch) -> None:
        try:
            file = await self.api.upload_file(self._file_path(batch.id))
        except ProviderUnusable:
            await self._close_batch(batch, "never created", NEVER_CREATED)
            raise
        failpoints.hit_failpoint("after_upload")
        await self.ledger.record_step(batch.id, "uploaded", file)
        try:
            remote = await self.api.create_batch(file, self._batch_metadata(batch.id))
        except CallRefused:
            await self._close_batch(batch, "never created", NEVER_CREATED)
            raise
        failpoints.hit_failpoint("after_create")
        await self.ledger.record_step(batch.id, "created", remote)
        self._open[batch.id] = batch._replace(file=file, remote=remote)
        self._interval, self._heard = FIRST_POLL_SECONDS, time.monotonic()
        self._print_line(f"{self._batch_name(self._open[batch.id])}: {batch.requests} requests submitted")

    def _batch_metadata(self, batch: int) -> dict[str, str]:
        journal_id = self.ledger.journal_id()
        return {"nexa_batch": f"{self.stage}-{batch}", "nexa_journal": journal_id}

    # ---- collect answers

    async def _poll_batches(self) -> None:
        """Wait a while, then refresh each open batch and collect the answers of ended ones."""
        await asyncio.sleep(self._interval)
        self._interval = min(self._interval * POLL_GROWTH, LAST_POLL_SECONDS)
        for batch in list(self._open.values()):
            try:
                await self._refresh_batch(batch)
            except Unavailable:  # the batch continues at the provider: try again for a while
                if time.monotonic() - self._heard > PATIENCE_SECONDS:
                    raise
            except NotFound as error:
                if not self.forget:
                    raise ProviderUnusable(
                        f"{self._batch_name(batch)}: {error}. If it is lost there, --retry-failed sends "
                        "its requests again; they may be billed twice"
                    ) from None
                await self._close_batch(batch, "unknown", Outcome("uncertain", error=str(error)))
            else:
                self._heard = time.monotonic()

    async def _refresh_batch(self, batch: Batch) -> None:
        failpoints.hit_failpoint("poll")
        remote = await self.api.get_batch(batch.remote or "")
        counts = remote.get("request_counts") or {}
        self._counts[batch.id] = (counts.get("completed") or 0, batch.requests)
        self._update_progress()
        if remote.get("status") in FINAL_STATUSES:
            await self._collect_answers(batch, remote)

    async def _collect_answers(self, batch: Batch, remote: dict[str, Any]) -> None:
        """Store the answers of an ended batch; raises if the run cannot continue."""
        status, unknown = str(remote["status"]), self._file_path(batch.id, "unknown")
        unknown.unlink(missing_ok=True)
        fatal: list[Outcome] = []
        for name in ("output_file_id", "error_file_id"):
            if file := remote.get(name):
                answers = self._file_path(batch.id, "answers")
                await self.api.download_file(file, answers)
                fatal += await self.results.store_answers(batch, answers, unknown)
        if unknown.exists():
            self._print_line(f"warning: {self._batch_name(batch)} has lines for other requests: {unknown}")
        rest = Outcome("not_sent", error=f"the batch {status} before this request")
        if status == "completed":
            rest = Outcome("uncertain", error="the completed batch has no result for it")
        await self._close_batch(batch, status, rest)
        if fatal:
            raise retry_policy.refusal_error(self.endpoint, fatal[0])
        self._raise_on_failure(batch, status, remote)

    async def _close_batch(self, batch: Batch, word: str, rest: Outcome) -> None:
        """Close a batch; requests without an outcome get `rest`."""
        await self.results.close_batch(batch, word, rest)
        self._open.pop(batch.id, None)
        self._counts.pop(batch.id, None)
        self._ended, self._queue_is_full = self._ended + 1, False
        for kind in ("requests", "answers"):  # their content is in the journal now
            self._file_path(batch.id, kind).unlink(missing_ok=True)

    def _raise_on_failure(self, batch: Batch, status: str, remote: dict[str, Any]) -> None:
        """Raises ProviderUnusable if the run should not submit another batch."""
        if status == "cancelled":
            raise ProviderUnusable(
                f"{self._batch_name(batch)} was cancelled at the provider. Its answers are stored; run "
                "the same command again to send the other requests"
            )
        if status != "failed":
            return
        errors = (remote.get("errors") or {}).get("data") or []
        if self._open and any(e.get("code") == "token_limit_exceeded" for e in errors):
            self._queue_is_full = True  # the account's queue has space after another batch ends
            self._print_line(f"{self._batch_name(batch)} has to wait for the others: {format_error(errors[0])}")
            return
        messages = "; ".join(format_error(error) for error in errors[:3]) or "(no text)"
        raise ProviderUnusable(
            f"{self._batch_name(batch)} failed at {self.endpoint.base_url}, none of its requests was "
            f"processed: {messages}. Fix this and run the same command again"
        )

    # ---- messages and files

    def _file_path(self, batch: int, kind: str = "requests") -> Path:
        end = ".jsonl" if kind == "requests" else f".{kind}.jsonl"
        return self.folder / f"{self.stage}-{batch}{end}"

    def _batch_name(self, batch: Batch) -> str:
        remote = f" ({batch.remote})" if batch.remote else ""
        return f"batch {self.stage}-{batch.id}{remote}"

    def _print_line(self, text: str) -> None:
        print(f"\n{self.stage}: {text}", file=sys.stderr, flush=True)

    def _update_progress(self) -> None:
        done, of = map(sum, zip(*self._counts.values(), strict=True))
        spent = f", {self.tally.spend_text}" if self.tally.spend_text else ""
        plural = f"{len(self._open)} batches" if len(self._open) > 1 else "batch"
        self.progress.set_note(f"{plural} {done}/{of}{spent}")

    def _print_open_batches(self) -> None:
        for batch in self._open.values():
            done, of = self._counts.get(batch.id, (0, batch.requests))
            self._print_line(
                f"stopping: {self._batch_name(batch)}, {done} of {of} done, continues at the provider; "
                "run the same command again to collect its answers"
            )
        if not self._open:
            self._print_line("stopping: no known batch is open at the provider")
