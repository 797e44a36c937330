"""Send a stage's missing requests, then write its tables from the journal.

Two passes over the same rows: the tables depend only on the inputs, the journal and the settings,
so neither a crash between the passes nor a rerun costs anything. Rows with the same request share
one answer. Memory is bounded by a batch of rows.
"""

import itertools
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.collection.answers.completions import is_completion, output_row
from nexa_distill.collection.answers.extraction import Cleaner, build_cleaner
from nexa_distill.collection.batch.client import BatchClient
from nexa_distill.collection.client import ApiClient
from nexa_distill.collection.first_answers import AnswerRequirement
from nexa_distill.collection.requests.body import PromptRequest, answer_limit
from nexa_distill.collection.requests.budget import refuse_unpriced
from nexa_distill.collection.requests.model_run import open_model_run
from nexa_distill.collection.requests.retry_policy import give_up_reason, none_answered_error
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import OUTPUTS, TABLES, UNANSWERED, Row
from nexa_distill.dialects import is_known_finish
from nexa_distill.errors import InputError
from nexa_distill.journal.journal import Attempt, Journal, PendingRequest, ReadOnlyJournal, RequestState, StoredAnswer
from nexa_distill.settings.pipeline import DistillConfig, Price, Provider
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import read_batches, table_writer
from nexa_distill.text.json_schemas import ResponseSchemas, load_schemas
from nexa_distill.text.secrets import mask_secrets

# The rows to answer, in batches, with the given columns (None = all); each call starts from the
# first row.
Rows = Callable[[Sequence[str] | None], Iterator[list[Row]]]

BATCH_ROWS = 2048  # rows in memory at a time, and in a row group of the tables
CHUNK_ROWS = 64  # rows turned into requests at a time; the event loop is blocked meanwhile
REQUEST_COLUMNS = ("sample_id", "template_name", "system_prompt", "user_prompt")  # of a request
MAX_PROMPT_BYTES = 8 * 2**20
CLOCK_SLACK_SECONDS = 2.0
PLACES_PER_SLOT = 4  # attempts that are in flight or on their way to the disk, per worker


@dataclass
class CollectionSummary:
    """`rows == answered + unanswered`. Dollars are None if the provider has no prices."""

    rows: int = 0
    answered: int = 0
    requests: int = 0
    uncertain: list[str] = field(default_factory=list)
    usd: float | None = None
    models: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    unknown_finishes: Counter[str] = field(default_factory=Counter)
    unpriced: int = 0  # answers without token counts
    unreadable: int = 0
    clock_moved_seconds: float = 0.0

    @property
    def unanswered_count(self) -> int:
        return self.rows - self.answered

    def add_rows(self, rows: list[Row], missing: list[Row]) -> None:
        self.rows += len(rows) + len(missing)
        self.answered += len(rows)
        self.unreadable += sum(row["rejection_reason"] == "unreadable_answer" for row in missing)
        for row in rows:
            self.models[row["model_id"], row["system_fingerprint"]] += 1
            if row["answer_flag"]:
                self.flags[row["answer_flag"]] += 1
            if row["finish_reason"] and not is_known_finish(row["finish_reason"]):
                self.unknown_finishes[row["finish_reason"]] += 1
            self.unpriced += row["completion_tokens"] is None and row["answer_flag"] != "malformed"
            if row["cost_usd"] is not None:
                self.usd = (self.usd or 0.0) + row["cost_usd"]

    def print_summary(self, stage: str, provider: str, dst: Path, unanswered: Path) -> None:
        cost = "unpriced" if self.usd is None else f"${self.usd:.4f}"
        print(
            f"{stage}: {self.answered} of {self.rows} prompts answered by {provider} "
            f"({self.requests} requests now, {cost} in all) -> {dst}"
        )
        for line in self._remark_lines(unanswered):
            print(f"{stage}: {line}")

    def _remark_lines(self, unanswered: Path) -> Iterator[str]:
        if self.uncertain:
            keys = ", ".join(key[:12] for key in self.uncertain[:5])
            yield (
                f"{len(self.uncertain)} requests once ended without a complete answer (a "
                f"crash, a timeout, a cut connection) and may be billed twice: {keys}"
            )
        if self.flags:
            flags = ", ".join(f"{count} {flag}" for flag, count in self.flags.most_common())
            yield f"flagged answers, stored and not requested again: {flags}"
        if cut := self.flags["reasoning_cut"]:
            yield (
                f"{cut} answers: the model's reasoning used up max_tokens before the answer was "
                "complete. Raise collection.max_tokens (it includes reasoning), or switch the "
                "reasoning off with extra_body"
            )
        # Said before anyone pays for a repair because of a word that only we do not know.
        for word, count in self.unknown_finishes.most_common(3):
            yield describe_unknown_finish(word, count, self.answered)
        if self.unpriced:
            yield (
                f"{self.unpriced} answers have no token counts: their cost is not known, and a "
                "budget counts each with its maximum"
            )
        if len(self.models) > 1:
            models = ", ".join(
                f"{count} by {model}{f' ({print_})' if print_ else ''}"
                for (model, print_), count in self.models.most_common()
            )
            yield f"the answers are not of one model: {models}"
        if self.unreadable:
            yield (
                f"{self.unreadable} stored answers could not be read: a bug, its traceback is in "
                f"{unanswered}; once it is fixed the same command reads them, at no cost"
            )
        if without := self.unanswered_count - self.unreadable:
            yield f"{without} prompts have no answer, see {unanswered}; --retry-failed retries them"
        if abs(self.clock_moved_seconds) > CLOCK_SLACK_SECONDS:
            yield (
                f"the clock of this machine was set by {self.clock_moved_seconds:+.0f} s during "
                "the run: created_at is off by that much, latencies and pauses are correct"
            )


@dataclass(frozen=True)
class Collector:
    """Collects the answers of one stage."""

    name: str  # of the stage and its journal
    config: DistillConfig
    provider_name: str
    model: str  # as in the settings
    rows: Rows
    requests_of: Callable[[Row], list[PromptRequest]]  # one request per answer
    total: int  # requests
    retry_failed: bool = False
    too_large: Mapping[str, int] = field(default_factory=dict)  # samples not to send -> bytes
    usable: AnswerRequirement | None = None  # else the run stops after the first answers

    @property
    def provider_settings(self) -> Provider:
        return self.config.providers[self.provider_name]

    @property
    def model_price(self) -> Price | None:
        price, discount = (self.provider_settings.prices.get(self.model), self.provider_settings.batch_discount)
        return price.with_discount(discount) if price and discount and self.is_batch_mode else price

    @property
    def is_batch_mode(self) -> bool:
        return self.config.collection.batch_api

    @cached_property
    def response_schemas(self) -> ResponseSchemas:
        return load_schemas(self.config.collection.response_schemas)

    @cached_property
    def answer_cleaner(self) -> Cleaner:
        return build_cleaner(self.config)

    @property
    def journal_path(self) -> Path:
        return self.config.storage.path_of("journal") / f"{self.name}.sqlite"

    def run(self, stage: StageRun, dst: Path, unanswered: Path) -> CollectionSummary:
        """Send, write `dst` and `unanswered`, seal both. Errors as in `ApiClient.send_all`."""
        self.refuse_unpayable()
        # The difference of the two clocks changes only when somebody sets the clock.
        clock = time.time() - time.monotonic()
        summary = CollectionSummary()
        with self.open_journal(stage.id) as journal:
            summary.requests = self.ask_missing(journal)
            self._write_tables(journal, dst, unanswered, summary)
            summary.uncertain = journal.uncertain_keys()
        summary.clock_moved_seconds = time.time() - time.monotonic() - clock
        rows, missing = summary.rows, summary.unanswered_count
        stage.seal_output(unanswered, rows_in=rows, rejected=missing)
        stage.seal_output(dst, rows_in=rows, rejected=missing, cost_usd=summary.usd)
        return summary

    def refuse_unpayable(self) -> None:
        """Raises InputError (65) for a budget or batch mode that this provider does not support."""
        refuse_unpriced(self.config.budget, self.provider_name, self.provider_settings, self.model)
        if self.is_batch_mode and self.provider_settings.batch_discount is None:
            raise InputError(
                f"batch mode is set, but providers.{self.provider_name}.batch_discount is null: "
                "this API has no batches. Run without --batch, with collection.batch_api: false, "
                "or set it to the share of the price that a batch costs there (0.5: half)"
            )

    def open_journal(self, run_id: str) -> Journal:
        """Open the stage's journal. Raises Locked (75), StorageFailed (74)."""
        places = PLACES_PER_SLOT * self.config.collection.concurrency
        return Journal(self.journal_path, run_id, places, self.config.storage.root)

    def ask_missing(self, journal: Journal) -> int:
        """Send the missing requests; returns their number. Connects only if there are some.

        The answers are then in the journal (`ReadOnlyJournal.newest_answers`); `why_unanswered`
        explains the rest. Several collectors may use one journal one after the other.
        """
        in_batches = 0
        # Open batches of an earlier run come first, in either mode: they are paid for.
        if self.is_batch_mode or journal.batches.list_open():
            in_batches = self._ask_in_batches(journal)
        return in_batches if self.is_batch_mode else in_batches + self._ask_one_by_one(journal)

    def _ask_in_batches(self, journal: Journal) -> int:
        """Finish the open batches; in batch mode send the rest too, in repeated passes."""
        with Progress(self.name, self.total) as progress:
            rest = self.missing_requests(journal, progress.skip_rows) if self.is_batch_mode else iter(())
            # Drawn before the endpoint is opened: with nothing to send, no server is started.
            first = next(rest, None)
            if first is None and not journal.batches.list_open():
                return 0
            # The first pass goes on with the drawn one; each later one finds what the batches did not answer.
            passes = itertools.chain(
                [itertools.chain([first] if first else [], rest)],
                (self.missing_requests(journal) for _ in itertools.count()),
            )
            with open_model_run(self.config, self.provider_name, self.model, journal, progress) as run:
                BatchClient(run, forget=self.retry_failed).run(passes if self.is_batch_mode else iter(()))
            progress.add(max(0, self.total - progress.done))
        return run.tally.sent

    def _ask_one_by_one(self, journal: Journal) -> int:
        with Progress(self.name, self.total) as progress:
            batches = self.missing_requests(journal, progress.skip_rows)
            # As above: with nothing to send, no server is started.
            first = next(batches, None)
            if first is None:
                return 0
            with open_model_run(self.config, self.provider_name, self.model, journal, progress) as run:
                ApiClient(run, self.usable).run(itertools.chain([first], batches))
        return run.tally.sent

    def missing_requests(
        self, journal: Journal, skip: Callable[[], None] = lambda: None
    ) -> Iterator[list[PendingRequest]]:
        """Yield each pending request once; call `skip()` for every other one.

        A batch must be begun in the journal before the next one is drawn, so that a request that
        occurs in both is sent once.
        """
        for requests, states in self.request_chunks(journal):
            chunk = dict[str, PromptRequest]()
            for request in requests:
                # Rows with the same request share one answer.
                chunk.setdefault(request.key, request)
            pending = [
                self.pending_request(request, states.get(key))
                for key, request in chunk.items()
                if not self.settled_reason(request, states.get(key))
            ]
            # Requests in an open batch are counted when their answers arrive.
            under_way = sum(state.under_way for state in states.values())
            for _ in range(len(requests) - len(pending) - under_way):
                skip()
            if pending:
                yield pending

    def request_chunks(self, journal: ReadOnlyJournal) -> Iterator[tuple[list[PromptRequest], dict[str, RequestState]]]:
        for batch in self.rows(REQUEST_COLUMNS):
            for start in range(0, len(batch), CHUNK_ROWS):
                rows = batch[start : start + CHUNK_ROWS]
                requests = [request for row in rows for request in self.requests_of(row)]
                states = journal.load_states(request.key for request in requests)
                if self.retry_failed:
                    _reopen_malformed(journal, states)
                yield requests, states

    def settled_reason(self, request: PromptRequest, state: RequestState | None) -> str | None:
        """Why a request is not sent (`answered`, `under_way`, `asked`, or a reason), or None."""
        if request.sample_id in self.too_large or len(request.data) > MAX_PROMPT_BYTES:
            return "prompt_too_large"
        if state is None:
            return None
        if state.has_answer:
            return "answered"
        if state.under_way:
            return "under_way"
        settings, tries = self.config.collection, state.new_attempts
        if state.asked_now or tries >= settings.max_attempts:
            return "asked"
        # With --retry-failed, only this run's attempts (in batches) count against the request.
        before = len(state.attempts) - tries if self.retry_failed else 0
        counted = state.attempts[before:]
        if not counted:
            return None
        held = settings.on_uncertain == "hold" and counted[-1].outcome == "uncertain"
        return "held" if held else give_up_reason(counted, settings.max_attempts)

    def pending_request(self, request: PromptRequest, state: RequestState | None) -> PendingRequest:
        # At most: a token of the prompt has 3 bytes or more.
        answer, prompt = self.max_answer_tokens(request), len(request.data) // 3
        usd = self.model_price.answer_cost(prompt, answer) if self.model_price else 0.0
        id_ = state.id if state else None
        return PendingRequest(id_, request.key, request.sample_id, request.data, prompt + answer, usd)

    def max_answer_tokens(self, request: PromptRequest) -> int:
        return answer_limit(request.body) or self.config.collection.max_tokens

    def _write_tables(self, journal: Journal, dst: Path, unanswered: Path, summary: CollectionSummary) -> None:
        with table_writer(dst, OUTPUTS) as good, table_writer(unanswered, UNANSWERED) as bad:
            missing: list[Row] = []
            for rows, missing in self.result_batches(journal):
                good.write(pa.Table.from_pylist(rows, schema=OUTPUTS))
                bad.write(pa.Table.from_pylist(missing, schema=UNANSWERED))
                summary.add_rows(rows, missing)
            if self.model_price is None or not self.model_price.answer_cost(1, 1):
                summary.unpriced = 0  # nothing to count
            # Raised inside the writers, so that no empty table replaces an earlier one.
            if summary.rows and not summary.answered and not summary.unreadable:
                dialect, last = self.provider_settings.active_dialect.name, missing[-1]["detail"]
                raise none_answered_error(self.provider_name, dialect, summary.rows, last)

    def result_batches(self, journal: ReadOnlyJournal) -> Iterator[tuple[list[Row], list[Row]]]:
        return (self._result_rows(batch, journal) for batch in self.rows(None))

    def _result_rows(self, batch: list[Row], journal: ReadOnlyJournal) -> tuple[list[Row], list[Row]]:
        pairs = [(row, request) for row in batch for request in self.requests_of(row)]
        answers = journal.newest_answers(request.key for _, request in pairs)
        rows, missing = list[Row](), list[Row]()
        for row, request in pairs:
            if answer := answers.get(request.key):
                output = self._output_row(row, request, answer)
                if not isinstance(output, str):
                    rows.append(output)
                    continue
                reason, detail = "unreadable_answer", output
            else:
                reason, detail = self.why_unanswered(request, journal)
            rejection = {"rejection_reason": reason, "detail": detail, "request_key": request.key}
            missing.append({**row, "attempt": request.attempt, **rejection})
        return rows, missing

    def _output_row(self, row: Row, request: PromptRequest, stored: StoredAnswer) -> Row | str:
        source = (row, request.attempt, request.key, self.model, stored)
        try:
            return output_row(*source, self.provider_settings, self.response_schemas, self.answer_cleaner)
        except Exception:  # noqa: BLE001  the answer is paid and stored; it will be read again
            return traceback.format_exc().encode(errors="replace").decode()  # it may quote the text

    def why_unanswered(self, request: PromptRequest, journal: ReadOnlyJournal) -> tuple[str, str]:
        """(reason, evidence) for a request without a stored answer."""
        state = journal.load_states([request.key]).get(request.key)
        settled = self.settled_reason(request, state)
        if settled == "prompt_too_large":
            return settled, f"{self.too_large.get(request.sample_id, len(request.data))} bytes"
        refused = give_up_reason(state.attempts, 1) if state else None
        reason = "held" if settled == "held" else refused or "provider_failed"
        return reason, mask_secrets(journal.last_response_text(request.key))


def describe_unknown_finish(word: str, count: int, answers: int) -> str:
    return (
        f"{count} of {answers} answers end with finish_reason {word!r}, which no dialect knows: "
        "they count as truncated, and a repair would end with it too. If it means a complete "
        "answer, add it to finish_reasons in nexa_distill/dialects (or set require_stop: false)"
    )


def has_unreadable_answers(unanswered: Path) -> bool:
    # A bug in the parser, perhaps fixed now: the stored answers are read again, at no cost.
    table = TABLES["unanswered"]
    return unanswered.exists() and any(
        pc.any(pc.equal(batch["rejection_reason"], "unreadable_answer")).as_py()
        for batch in read_batches(unanswered, table, columns=["rejection_reason"])
    )


def _reopen_malformed(journal: ReadOnlyJournal, states: dict[str, RequestState]) -> None:
    """For --retry-failed: a 200 without a chat completion (a wrong address) is a refusal."""
    answered = [key for key, state in states.items() if state.has_answer and not state.asked_now]
    for key, stored in journal.newest_answers(answered).items():
        if not is_completion(stored.raw):
            refusal = Attempt("rejected", 200, "")
            attempts = states[key].attempts
            states[key].attempts = [refusal if a.outcome == "answered" else a for a in attempts]
