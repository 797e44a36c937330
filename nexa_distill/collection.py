"""Ask for the answers that are missing, then write the tables from the journal.

The tables are a function of the inputs, the journal and the settings: asking and writing are two
passes over the same rows, so a crash between them costs nothing, and so does a rerun. Rows with
the same request share one answer. Memory holds a batch of rows, whatever their number.
"""

import itertools
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.answers import output_row
from nexa_distill.budget import Tally
from nexa_distill.config import DistillConfig, Price, Provider
from nexa_distill.contracts import OUTPUTS, TABLES, UNANSWERED
from nexa_distill.endpoint import reach
from nexa_distill.errors import InputError, ProviderUnusable
from nexa_distill.gateway import Gateway
from nexa_distill.handoff import read_batches, table_writer
from nexa_distill.journal import Answered, Asking, Journal, Known, spent_elsewhere
from nexa_distill.manifests import StageRun
from nexa_distill.progress import Progress
from nexa_distill.prompt_request import PromptRequest
from nexa_distill.refusals import given_up

Row = dict[str, Any]
# The rows to answer, in batches, with the columns that are named (None = all); every call starts
# from the first row.
Rows = Callable[[Sequence[str] | None], Iterator[list[Row]]]

BATCH_ROWS = 2048  # rows in memory at a time, and in a row group of the tables
CHUNK_ROWS = 64  # rows turned into requests at a time: the event loop stands still meanwhile
ASK_COLUMNS = ("sample_id", "template_name", "system_prompt", "user_prompt")  # all that is sent
MAX_PROMPT_BYTES = 8 * 2**20
CLOCK_SLACK_SECONDS = 2.0
PLACES_PER_SLOT = 4  # answers on their way to the disk, per request in flight


@dataclass
class Summary:
    """`rows == answered + unanswered`. Dollars are None when the provider has no prices."""

    rows: int = 0
    answered: int = 0
    requests: int = 0
    uncertain: list[str] = field(default_factory=list)
    usd: float | None = None
    models: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    clock_moved_seconds: float = 0.0

    @property
    def unanswered(self) -> int:
        """Rows that the API refused or failed to answer; they stand in their own table."""
        return self.rows - self.answered

    def say(self, stage: str, provider: str, dst: Path, unanswered: Path) -> None:
        """The end of the stage, in a line; what a person should know about it in some more."""
        cost = "unpriced" if self.usd is None else f"${self.usd:.4f}"
        print(
            f"{stage}: {self.answered} of {self.rows} prompts answered by {provider} "
            f"({self.requests} requests now, {cost} in all) -> {dst}"
        )
        for line in self._remarks(unanswered):
            print(f"{stage}: {line}")

    def _remarks(self, unanswered: Path) -> Iterator[str]:
        if self.uncertain:
            keys = ", ".join(key[:12] for key in self.uncertain[:5])
            yield (
                f"{len(self.uncertain)} requests once ended without a complete answer (a "
                f"crash, a timeout, a cut connection) and may be billed twice: {keys}"
            )
        if self.flags:
            found = ", ".join(f"{count} {flag}" for flag, count in self.flags.most_common())
            yield f"flagged answers, stored and not asked again: {found}"
        if len(self.models) > 1:
            found = ", ".join(
                f"{count} by {model}{f' ({print_})' if print_ else ''}"
                for (model, print_), count in self.models.most_common()
            )
            yield f"the answers are not of one model: {found}"
        if self.unreadable:
            yield (
                f"{self.unreadable} stored answers could not be read: a bug, its traceback is in "
                f"{unanswered}; once it is mended the same command reads them, at no cost"
            )
        if self.unanswered:
            yield f"{self.unanswered} prompts have no answer, see {unanswered}; " + (
                "--retry-failed asks them again"
            )
        if abs(self.clock_moved_seconds) > CLOCK_SLACK_SECONDS:
            yield (
                f"the clock of this machine was set by {self.clock_moved_seconds:+.0f} s during "
                "the run: created_at is off by that, latencies and pauses are not"
            )


@dataclass(frozen=True)
class Collector:
    """One stage that asks: `name` is also the journal's; `model` is the logical name.

    `requests_of`: what a row asks, one request per wanted answer. `total`: number of requests.
    """

    name: str
    config: DistillConfig
    provider_name: str
    model: str
    rows: Rows
    requests_of: Callable[[Row], list[PromptRequest]]
    total: int
    retry_failed: bool = False

    @property
    def provider(self) -> Provider:
        """The settings of the API that is asked."""
        return self.config.providers[self.provider_name]

    @property
    def price(self) -> Price | None:
        """Of the model; None when it is unpriced."""
        return self.provider.prices.get(self.model)

    @property
    def journal_path(self) -> Path:
        """The stage's ledger."""
        return self.config.storage.path("journal") / f"{self.name}.sqlite"

    def run(self, stage: StageRun, dst: Path, unanswered: Path) -> Summary:
        """Ask, write `dst` and `unanswered`, seal both. Errors as `Gateway.ask_all`."""
        self._refuse_unpriced_budget()
        clock = time.time() - time.monotonic()
        places = PLACES_PER_SLOT * self.config.collection.concurrency
        with Journal(self.journal_path, stage.id, places) as journal:
            requests = self._ask(journal)
            summary = self._write(journal, dst, unanswered)
            summary.requests, summary.uncertain = requests, journal.uncertain()
        summary.clock_moved_seconds = time.time() - time.monotonic() - clock
        rows, missing = summary.rows, summary.unanswered
        stage.seal(unanswered, rows_in=rows, rejected=missing)
        stage.seal(dst, rows_in=rows, rejected=missing, cost_usd=summary.usd)
        return summary

    def _ask(self, journal: Journal) -> int:
        """Number of requests sent. The provider is reached only if there is something to ask."""
        with Progress(self.name, self.total) as progress:
            batches = self.missing(journal, lambda: progress.add(1))
            first = next(batches, None)
            if first is None:
                return 0
            elsewhere = spent_elsewhere(self.journal_path.parent, self.journal_path)
            tally = Tally(self.config.budget, journal.spent().plus(elsewhere))
            with reach(self.provider_name, self.provider, self.model) as endpoint:
                gateway = Gateway(
                    endpoint, self.provider, self.config.collection, self.model, journal, tally
                )
                gateway.run(itertools.chain([first], batches), progress)
        return tally.sent

    def _refuse_unpriced_budget(self) -> None:
        if self.config.budget.max_usd is not None and self.price is None:
            raise InputError(
                f"budget.max_usd is set and providers.{self.provider_name}.prices has no price of "
                f"{self.model}: dollars cannot be counted. Write its price, or use "
                "budget.max_requests or max_tokens"
            )

    def missing(
        self, journal: Journal, skip: Callable[[], None] = lambda: None
    ) -> Iterator[list[Asking]]:
        """What is neither answered nor given up, each request once; `skip` hears of the others.

        A batch must be begun in the journal before the next one is asked for: that is how a
        request that stands in two batches is seen.
        """
        for batch in self.rows(ASK_COLUMNS):
            for start in range(0, len(batch), CHUNK_ROWS):
                rows = batch[start : start + CHUNK_ROWS]
                requests = [request for row in rows for request in self.requests_of(row)]
                chunk = {request.key: request for request in requests}
                known = journal.known(chunk)
                asking = [
                    self._asking(request, known.get(key))
                    for key, request in chunk.items()
                    if not self.settled(request, known.get(key))
                ]
                for _ in range(len(requests) - len(asking)):
                    skip()
                if asking:
                    yield asking

    def settled(self, request: PromptRequest, known: Known | None) -> str | None:
        """Why a request is not to be sent (`answered`, `asked`, or a reason), or None."""
        if len(request.data) > MAX_PROMPT_BYTES:
            return "prompt_too_large"
        if known is None:
            return None
        if known.answered:
            return "answered"
        if known.asked_now:
            return "asked"
        if self.retry_failed:
            return None
        settings = self.config.collection
        held = settings.on_uncertain == "hold" and known.attempts[-1].outcome == "uncertain"
        return "held" if held else given_up(known.attempts, settings.max_attempts)

    def _asking(self, request: PromptRequest, known: Known | None) -> Asking:
        """With the most that it can cost: a token of the prompt is 3 bytes or more."""
        limits = (request.body.get(key) for key in ("max_completion_tokens", "max_tokens"))
        answer = next((limit for limit in limits if limit), self.config.collection.max_tokens)
        prompt = len(request.data) // 3
        usd = self.price.cost(prompt, answer) if self.price else 0.0
        id_ = known.id if known else None
        return Asking(id_, request.key, request.sample_id, request.data, prompt + answer, usd)

    def _write(self, journal: Journal, dst: Path, unanswered: Path) -> Summary:
        summary = Summary()
        with table_writer(dst, OUTPUTS) as good, table_writer(unanswered, UNANSWERED) as bad:
            for batch in self.rows(None):
                rows, missing = self._rows(batch, journal)
                good.write(pa.Table.from_pylist(rows, schema=OUTPUTS))
                bad.write(pa.Table.from_pylist(missing, schema=UNANSWERED))
                _count(summary, rows, missing)
            if summary.rows and not summary.answered:
                raise ProviderUnusable(
                    f"provider {self.provider_name} answered none of {summary.rows} requests; "
                    f"its last word: {missing[-1]['detail'][:300]}"
                )
        return summary

    def _rows(self, batch: list[Row], journal: Journal) -> tuple[list[Row], list[Row]]:
        """Rows of OUTPUTS and of UNANSWERED."""
        asked = [(row, request) for row in batch for request in self.requests_of(row)]
        stored = journal.answers(request.key for _, request in asked)
        rows, missing = [], []
        for row, request in asked:
            found = stored.get(request.key)
            made = self._output(row, request, found) if found else "provider_failed"
            if isinstance(made, str):
                missing.append(self._unanswered(row, request, made, journal))
            else:
                rows.append(made)
        return rows, missing

    def _output(self, row: Row, request: PromptRequest, stored: Answered) -> Row | str:
        """The row, or a traceback: a bug in reading an answer sets that row aside, not the run."""
        try:
            return output_row(row, request.attempt, request.key, self.model, stored, self.provider)
        except Exception:  # noqa: BLE001  the answer is paid and stored; it will be read again
            return traceback.format_exc()

    def _unanswered(self, row: Row, request: PromptRequest, why: str, journal: Journal) -> Row:
        if why.startswith("Traceback"):
            reason, detail = "unreadable_answer", why
        else:
            known = journal.known([request.key]).get(request.key)
            settled = self.settled(request, known)
            given = given_up(known.attempts, 1) if known else None
            reason = settled if settled in ("held", "prompt_too_large") else given or why
            detail = journal.evidence(request.key) or f"{len(request.data)} bytes"
        return {
            **row, "attempt": request.attempt, "rejection_reason": reason, "detail": detail,
            "request_key": request.key,
        }  # fmt: skip


def read_again(unanswered: Path) -> bool:
    """Whether answers are stored that could not be read: a bug, perhaps mended since."""
    table = TABLES["unanswered"]
    return unanswered.exists() and any(
        pc.any(pc.equal(batch["rejection_reason"], "unreadable_answer")).as_py()
        for batch in read_batches(unanswered, table, columns=["rejection_reason"])
    )


def _count(summary: Summary, rows: list[Row], missing: list[Row]) -> None:
    summary.rows += len(rows) + len(missing)
    summary.answered += len(rows)
    summary.unreadable += sum(row["rejection_reason"] == "unreadable_answer" for row in missing)
    for row in rows:
        summary.models[row["model_id"], row["system_fingerprint"]] += 1
        if row["answer_flag"]:
            summary.flags[row["answer_flag"]] += 1
        if row["cost_usd"] is not None:
            summary.usd = (summary.usd or 0.0) + row["cost_usd"]
