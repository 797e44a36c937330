"""Ask for the answers that are missing, then write the tables from the journal.

The tables are a function of the inputs, the journal and the settings: asking and writing are two
passes over the same rows, so a crash between them costs nothing, and so does a rerun. Rows with
the same request share one answer. Memory holds one batch of rows and the keys asked in this run.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_distill import cli
from nexa_distill.answers import output_row
from nexa_distill.config import DistillConfig
from nexa_distill.contracts import OUTPUTS, UNANSWERED
from nexa_distill.endpoint import reach
from nexa_distill.errors import InputError, ProviderUnusable
from nexa_distill.gateway import Gateway, PromptRequest, given_up
from nexa_distill.handoff import table_writer
from nexa_distill.journal import Journal
from nexa_distill.manifests import StageRun
from nexa_distill.progress import Progress

Row = dict[str, Any]
# The rows to answer, in batches, each with its request; every call starts from the first row.
Asked = Callable[[], Iterator[list[tuple[Row, PromptRequest]]]]


@dataclass
class Summary:
    """`rows == answered + unanswered`. Dollars are None when the provider has no prices."""

    rows: int = 0
    answered: int = 0
    requests: int = 0
    uncertain: list[str] = field(default_factory=list)
    usd: float | None = None

    @property
    def unanswered(self) -> int:
        """Rows that the API refused or failed to answer; they stand in their own table."""
        return self.rows - self.answered

    def say(self, stage: str, provider: str, dst: Path, unanswered: Path) -> None:
        """The end of the stage, in a line; what may cost twice and what is missing in two more."""
        cost = "unpriced" if self.usd is None else f"${self.usd:.4f}"
        print(
            f"{stage}: {self.answered} of {self.rows} prompts answered by {provider} "
            f"({self.requests} requests now, {cost} in all) -> {dst}"
        )
        if self.uncertain:
            keys = ", ".join(key[:12] for key in self.uncertain[:5])
            print(
                f"{stage}: {len(self.uncertain)} requests once ended without a complete answer (a "
                f"crash, a timeout, a cut connection) and may be billed twice: {keys}"
            )
        if self.unanswered:
            print(
                f"{stage}: {self.unanswered} prompts have no answer, see {unanswered}; "
                "--retry-failed asks them again"
            )


@dataclass
class Estimate:
    """What a run would send. Tokens are estimated at four bytes each, answers at their maximum."""

    new: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class Collector:
    """One stage that asks: `name` is also the journal's; `model` is the logical name."""

    name: str
    config: DistillConfig
    provider: str
    model: str
    asked: Asked
    total: int
    retry_failed: bool = False

    def journal(self, run_id: str) -> Journal:
        """The stage's ledger."""
        return Journal(self.config.storage.path("journal") / f"{self.name}.sqlite", run_id)

    def estimate(self, run_id: str) -> Estimate:
        """Look, and send nothing."""
        found = Estimate()
        with self.journal(run_id) as journal:
            for request in self._requests(journal, lambda: None):
                found.new += 1
                text = "".join(m["content"] for m in request.body["messages"])
                found.prompt_tokens += len(text.encode("utf-8", "surrogatepass")) // 4
                found.answer_tokens += self.config.collection.max_tokens
        found.reused = self.total - found.new
        return found

    def say_estimate(self, run_id: str) -> None:
        """`estimate` in a line."""
        found = self.estimate(run_id)
        provider = self.config.providers[self.provider]
        price = provider.prices.get(self.model)
        usd = price and price.cost(found.prompt_tokens, found.answer_tokens)
        at_most = "unpriced" if usd is None else f"at most ${usd:.4f}"
        print(
            f"{self.name}: {found.new} requests to send to {self.provider} ({self.model}), "
            f"{found.reused} reused from the journal or shared; about {found.prompt_tokens} prompt "
            f"tokens and at most {found.answer_tokens} answer tokens, {at_most}"
        )

    def run(self, stage: StageRun, dst: Path, unanswered: Path) -> Summary:
        """Ask, write `dst` and `unanswered`, seal both. Errors as `Gateway.ask_all`."""
        with self.journal(stage.id) as journal:
            requests = self._ask(journal)
            summary = self._write(journal, dst, unanswered)
            summary.requests, summary.uncertain = requests, journal.uncertain()
        rows, missing = summary.rows, summary.unanswered
        stage.seal(unanswered, rows_in=rows, rejected=missing)
        stage.seal(dst, rows_in=rows, rejected=missing, cost_usd=summary.usd)
        return summary

    def _ask(self, journal: Journal) -> int:
        """Number of requests sent. The provider is reached only if there is something to ask."""
        self._refuse_unpriced_budget()
        with Progress(self.name, self.total) as progress:
            requests = self._requests(journal, lambda: progress.add(1))
            first = next(requests, None)
            if first is None:
                return 0
            provider = self.config.providers[self.provider]
            with reach(self.provider, provider, self.model) as endpoint:
                gateway = Gateway(
                    endpoint, provider.prices.get(self.model), self.config.collection,
                    self.config.budget, journal,
                )  # fmt: skip
                try:
                    asyncio.run(gateway.ask_all(itertools.chain([first], requests), progress))
                finally:
                    cli.handle_signals()  # the event loop has put the system's own back
        return gateway.tally.requests

    def _refuse_unpriced_budget(self) -> None:
        if self.config.budget.max_usd is None:
            return
        if self.model not in self.config.providers[self.provider].prices:
            raise InputError(
                f"budget.max_usd is set and providers.{self.provider}.prices has no price of "
                f"{self.model}: dollars cannot be counted. Write its price, or use "
                "budget.max_requests or max_tokens"
            )

    def _requests(self, journal: Journal, skip: Callable[[], None]) -> Iterator[PromptRequest]:
        """What is neither answered nor given up, each request once; `skip` hears of the others."""
        sent: set[str] = set()
        limit = self.config.collection.max_attempts
        for batch in self.asked():
            for _, request in batch:
                done = request.key in sent or journal.answer(request.key)
                if done or (
                    not self.retry_failed and given_up(journal.attempts(request.key), limit)
                ):
                    skip()
                    continue
                sent.add(request.key)
                yield request

    def _write(self, journal: Journal, dst: Path, unanswered: Path) -> Summary:
        provider, summary = self.config.providers[self.provider], Summary()
        with table_writer(dst, OUTPUTS) as good, table_writer(unanswered, UNANSWERED) as bad:
            for batch in self.asked():
                rows, missing = [], []
                for row, request in batch:
                    if stored := journal.answer(request.key):
                        rows.append(
                            output_row(
                                row, request.attempt, request.key, self.model, stored, provider
                            )
                        )
                    else:
                        missing.append(self._unanswered(row, request, journal))
                good.write(pa.Table.from_pylist(rows, schema=OUTPUTS))
                bad.write(pa.Table.from_pylist(missing, schema=UNANSWERED))
                summary.rows += len(batch)
                summary.answered += len(rows)
                for row in rows:
                    if row["cost_usd"] is not None:
                        summary.usd = (summary.usd or 0.0) + row["cost_usd"]
            if summary.rows and not summary.answered:
                _, _, said = journal.attempts(request.key)[-1]
                raise ProviderUnusable(
                    f"provider {self.provider} answered none of {summary.rows} requests; "
                    f"its last word: {said[:300]}"
                )
        return summary

    def _unanswered(self, row: Row, request: PromptRequest, journal: Journal) -> Row:
        attempts = journal.attempts(request.key)
        _, status, said = attempts[-1] if attempts else ("", None, "")
        return {
            **row,
            "attempt": request.attempt,
            "rejection_reason": given_up(attempts, 1) or "provider_failed",
            "detail": f"HTTP {status}: {said}" if status else said,
            "request_key": request.key,
        }


def request_body(
    system: str, prompt: str, model: str, config: DistillConfig, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """A chat completion's JSON: what changes the answer. A null in `extra` drops its key."""
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": prompt},
        ],
        "max_tokens": config.collection.max_tokens,
        "temperature": config.collection.temperature,
        **extra,
    }
    return {key: value for key, value in body.items() if value is not None}
