"""The journal's tables of batches: many requests submitted as one file, answered within a day.

A batch is open from its row here until its step `ended`. Its attempts are under way for that long,
even if this process dies: opening the journal again does not end them. Attempts whose batch has no
row belong to a file that was never finished. Rows are only ever added.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nexa_distill.journal.group_commit import GroupCommit
from nexa_distill.journal.key_index import KeyIndex

BATCH_TABLES = ("batches", "batch_steps")
BATCH_SCHEMA = """
CREATE TABLE batches (          -- written after its attempts, before the upload
    id          INTEGER PRIMARY KEY,
    run         INTEGER NOT NULL REFERENCES runs,
    provider    TEXT NOT NULL,
    discount    REAL NOT NULL,  -- the share of the price that is billed
    requests    INTEGER NOT NULL,
    sha256      TEXT NOT NULL,  -- of the file
    created_at  REAL NOT NULL
);
CREATE TABLE batch_steps (      -- progress of each batch
    batch       INTEGER NOT NULL REFERENCES batches,
    step        TEXT NOT NULL,  -- uploaded, created, ended; in this order
    word        TEXT NOT NULL,  -- the provider's id of the file or the batch; the final status
    at          REAL NOT NULL
);
CREATE INDEX attempts_in ON attempts (batch) WHERE batch IS NOT NULL;
CREATE VIEW open_batches AS     -- they are or may be at a provider
    SELECT * FROM batches WHERE id NOT IN (SELECT batch FROM batch_steps WHERE step = 'ended');
CREATE VIEW unended AS          -- attempts of batches without an outcome
    SELECT * FROM attempts WHERE batch IS NOT NULL
    AND id NOT IN (SELECT attempt_id FROM outcomes);
"""


class Batch(NamedTuple):
    """`file` and `remote` are the provider's ids, None until they are known."""

    id: int
    provider: str
    discount: float
    requests: int
    sha256: str
    file: str | None = None
    remote: str | None = None


class BatchAttempt(NamedTuple):
    """An attempt of a batch, the maximum that can be billed for it, and 1 if it has an outcome."""

    attempt: int
    most_tokens: int
    most_usd: float
    ended: int


class BatchLedger:
    """The batches of one journal: reads committed rows, writes through its group commits."""

    def __init__(self, committed: sqlite3.Connection, keys: KeyIndex, writer: GroupCommit, run: int) -> None:
        self._db, self._keys, self._writer, self._run = committed, keys, writer, run

    def next_batch_id(self) -> int:
        """An id that no batch has, not even one whose file was never finished."""
        sql = (
            "SELECT max(coalesce((SELECT max(id) FROM batches), 0), "
            "coalesce((SELECT max(batch) FROM attempts WHERE batch IS NOT NULL), 0))"
        )
        (newest,) = self._db.execute(sql).fetchone()
        return int(newest) + 1

    async def record_batch(self, batch: Batch) -> None:
        """Record a batch whose file is complete, before its upload; waits for the disk."""
        row = (batch.id, self._run, batch.provider, batch.discount, batch.requests, batch.sha256)
        self._writer.add_row("batches", (*row, time.time()))
        await self._writer.wait_for_disk()

    async def record_step(self, batch: int, step: str, word: str) -> None:
        """Record a finished step (`batch_steps`); waits for the disk."""
        self._writer.add_row("batch_steps", (batch, step, word, time.time()))
        await self._writer.wait_for_disk()

    def list_open(self) -> list[Batch]:
        sql = (
            "SELECT id, provider, discount, requests, sha256, "
            "(SELECT word FROM batch_steps WHERE batch=id AND step='uploaded'), "
            "(SELECT word FROM batch_steps WHERE batch=id AND step='created') "
            "FROM open_batches ORDER BY id"
        )
        return [Batch(*row) for row in self._db.execute(sql)]

    def find_attempts(self, batch: int, keys: Iterable[str]) -> dict[str, BatchAttempt]:
        sql = (
            "SELECT r.request_key, a.id, a.most_tokens, a.most_usd, o.outcome IS NOT NULL "
            "FROM requests r JOIN attempts a ON a.request_id = r.id "
            "LEFT JOIN outcomes o ON o.attempt_id = a.id "
            "WHERE r.id IN (SELECT value FROM json_each(?)) AND a.batch=?"
        )
        # All ids in one parameter, because SQLite limits their number.
        rows = self._db.execute(sql, (json.dumps(self._keys.find_ids(keys)), batch))
        return {key: BatchAttempt(*asked) for key, *asked in rows}

    def unended_attempts(self, batch: int, size: int) -> Iterator[list[BatchAttempt]]:
        # By id and not by OFFSET: rows leave the view as outcomes are recorded.
        sql = "SELECT id, most_tokens, most_usd, 0 FROM unended WHERE batch=? AND id>? ORDER BY id LIMIT ?"
        last = 0
        while rows := [BatchAttempt(*row) for row in self._db.execute(sql, (batch, last, size))]:
            yield rows
            last = rows[-1].attempt

    def journal_id(self) -> str:
        """A permanent name of this journal, from its first run."""
        sql = "SELECT run_id, started_at FROM runs ORDER BY id LIMIT 1"
        run_id, started_at = self._db.execute(sql).fetchone()
        return f"{run_id}@{started_at:.6f}"
