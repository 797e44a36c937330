"""What a batch brought: each line to its request, by `custom_id`, into the journal and the budget.

The first line that names a request counts. A line that names no request of the batch is set aside,
as it came, beside the journal.
"""

import itertools
from pathlib import Path

from nexa_distill.collection.answers.billing import bill
from nexa_distill.collection.batch.files import lines, read_line
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.budget import Tally
from nexa_distill.console.progress import Progress
from nexa_distill.errors import StorageFailed
from nexa_distill.journal.batches import Asked, Batch
from nexa_distill.journal.journal import Journal, Outcome
from nexa_distill.settings.pipeline import Price
from nexa_distill.storage import failpoints

CHUNK_LINES = 256  # stored together


class Results:
    """Of the batches of one run."""

    def __init__(
        self, journal: Journal, tally: Tally, price: Price | None, progress: Progress
    ) -> None:
        self.journal, self.tally, self.price, self.progress = journal, tally, price, progress

    async def take(self, batch: Batch, answers: Path, unknown: Path) -> list[Outcome]:
        """Store the lines of `answers`; the strange ones are appended to `unknown`.

        Returns the refusals that mean the run and not only a request.
        """
        fatal: list[Outcome] = []
        with answers.open("rb") as file:
            while chunk := list(itertools.islice(lines(file), CHUNK_LINES)):
                failpoints.hit("batch_lines")
                fatal += await self._store(batch, chunk, unknown)
        return fatal

    async def close(self, batch: Batch, word: str, rest: Outcome) -> None:
        """What has no outcome yet ends as `rest`, and the batch has ended; `word` says how."""
        for asked in self.journal.batches.rest(batch.id, CHUNK_LINES):
            await self._end(batch, [(one, rest) for one in asked])
        await self.journal.batches.step(batch.id, "ended", word)

    async def _store(self, batch: Batch, chunk: list[bytes], unknown: Path) -> list[Outcome]:
        read = [read_line(line) for line in chunk]
        keys = {line.custom_id for line in read if line}
        asked = self.journal.batches.asked(batch.id, keys)
        ended: list[tuple[Asked, Outcome]] = []
        for line, text in zip(read, chunk, strict=True):
            if line is None or line.custom_id not in asked:
                with unknown.open("ab") as file:
                    file.write(text.rstrip(b"\n") + b"\n")
            elif not (found := asked[line.custom_id]).ended:
                asked[line.custom_id] = found._replace(ended=1)
                ended.append((found, line.outcome))
        await self._end(batch, ended)
        return [outcome for _, outcome in ended if retry_policy.is_fatal(outcome)]

    async def _end(self, batch: Batch, ended: list[tuple[Asked, Outcome]]) -> None:
        for asked, outcome in ended:
            self.journal.end(asked.attempt, outcome, _nothing)
        await self.journal.on_disk()  # an answer is read when it is there
        for asked, outcome in ended:
            billed = None
            if outcome.outcome == "answered":
                raw, attempt = outcome.raw or b"", asked.attempt
                answer, usd = bill(self.journal, self.price, attempt, raw, batch.discount)
                tokens = answer.total_tokens
                billed = (
                    asked.most_tokens if tokens is None else tokens,
                    asked.most_usd if usd is None else usd,
                )
                self.tally.answered += 1
            elif outcome.outcome == "uncertain":  # perhaps billed
                billed = (asked.most_tokens, asked.most_usd)
            self.tally.release(asked.most_tokens, asked.most_usd, billed=billed)
            if outcome.outcome == "answered":
                self.progress.add(1, self.tally.spend)


def _nothing(_: StorageFailed | None) -> None:
    """Whoever waits for the disk hears of a failure."""
