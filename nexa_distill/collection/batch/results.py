"""Store a batch's result lines in the journal, by `custom_id`, and count them in the budget.

The first line of a request counts. Lines for no request of the batch are appended unchanged to a
file beside the journal.
"""

import itertools
from pathlib import Path

from nexa_distill.collection.answers.billing import settle_attempt
from nexa_distill.collection.batch.files import read_line, read_lines
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.model_run import ModelRun
from nexa_distill.journal.batches import Batch, BatchAttempt
from nexa_distill.journal.journal import Outcome
from nexa_distill.storage import failpoints

CHUNK_LINES = 256  # stored together


class BatchResults:
    """Stores the results of one run's batches."""

    def __init__(self, run: ModelRun) -> None:
        self.journal, self.tally, self.price, self.progress = run.journal, run.tally, run.model_price, run.progress

    async def store_answers(self, batch: Batch, answers: Path, unknown: Path) -> list[Outcome]:
        """Store the lines of `answers`; those for no request of the batch go to `unknown`.

        Returns the refusals that stop the run.
        """
        fatal: list[Outcome] = []
        with answers.open("rb") as file:
            while chunk := list(itertools.islice(read_lines(file), CHUNK_LINES)):
                failpoints.hit_failpoint("batch_lines")
                fatal += await self._store_chunk(batch, chunk, unknown)
        return fatal

    async def close_batch(self, batch: Batch, word: str, rest: Outcome) -> None:
        """End the batch with the status `word`; requests without an outcome get `rest`."""
        for attempts in self.journal.batches.unended_attempts(batch.id, CHUNK_LINES):
            await self._record_outcomes(batch, [(attempt, rest) for attempt in attempts])
        await self.journal.batches.record_step(batch.id, "ended", word)

    async def _store_chunk(self, batch: Batch, chunk: list[bytes], unknown: Path) -> list[Outcome]:
        lines = [read_line(line) for line in chunk]
        keys = {line.custom_id for line in lines if line}
        attempts = self.journal.batches.find_attempts(batch.id, keys)
        ended: list[tuple[BatchAttempt, Outcome]] = []
        for line, text in zip(lines, chunk, strict=True):
            if line is None or line.custom_id not in attempts:
                with unknown.open("ab") as file:
                    file.write(text.rstrip(b"\n") + b"\n")
            elif not (attempt := attempts[line.custom_id]).ended:
                attempts[line.custom_id] = attempt._replace(ended=1)
                ended.append((attempt, line.outcome))
        await self._record_outcomes(batch, ended)
        return [outcome for _, outcome in ended if retry_policy.is_fatal(outcome)]

    async def _record_outcomes(self, batch: Batch, ended: list[tuple[BatchAttempt, Outcome]]) -> None:
        for attempt, outcome in ended:
            self.journal.record_outcome(attempt.attempt, outcome, lambda _: None)
        await self.journal.wait_for_disk()  # answers are parsed after that; raises if a write failed
        for attempt, outcome in ended:
            settle_attempt(self.journal, self.tally, self.price, attempt.attempt, attempt, outcome, batch.discount)
            if outcome.outcome == "answered":
                self.progress.add(1, self.tally.spend_text)
