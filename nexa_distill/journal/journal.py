"""The journal: every request of a stage, each attempt, and the raw bytes of each answer.

One SQLite file per stage (WAL, synchronous=FULL). Rows are only ever added. An attempt is on disk
before its request is sent, and an answer is on disk before it is parsed (`group_commit.py`).

Outcomes of an attempt:
  `answered`  a complete 200 body is stored; this request is never sent again
  `rejected`  the API refused (a status other than 200, or an error inside a 200): not billed
  `not_sent`  no connection, or stopped before the send: not billed
  `uncertain` sent, and no complete answer (timeout, cut connection, crash): perhaps billed
"""

import contextlib
import fcntl
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, Self

from nexa_distill.errors import Locked, StorageFailed
from nexa_distill.journal.batches import BatchLedger
from nexa_distill.journal.group_commit import GroupCommit, OnStored
from nexa_distill.journal.in_flight import InFlight, load_orphaned_ids
from nexa_distill.journal.key_index import KeyIndex, index_all_keys
from nexa_distill.journal.schema import TABLES, open_read_only, prepare_tables

PROCESS_DIED = "the process died"
LOCK_POLL_SECONDS = 0.5
OWNED = ", for "  # in the lock file, before the owner


class StoredAnswer(NamedTuple):
    """The stored answer of a request."""

    raw: bytes
    latency_ms: float | None  # None for an answer of a batch
    ended_at: float  # unix seconds
    discount: float = 1.0  # share of the price that is billed


class Outcome(NamedTuple):
    """The end of an attempt; `outcome` is one of the four above."""

    outcome: str
    status: int | None = None  # HTTP status, or that of an error inside a 200
    raw: bytes | None = None
    error: str | None = None
    latency_ms: float | None = None


class Attempt(NamedTuple):
    """A finished attempt, without its body."""

    outcome: str
    status: int | None
    error: str


@dataclass
class RequestState:
    """A request in the journal, and its finished attempts in order."""

    id: int
    attempts: list[Attempt] = field(default_factory=list)
    asked_now: bool = False  # an attempt was begun in this run, not in a batch
    under_way: bool = False  # it is in an open batch
    new_attempts: int = 0  # number of finished attempts of this run

    @property
    def has_answer(self) -> bool:
        return any(attempt.outcome == "answered" for attempt in self.attempts)


class Usage(NamedTuple):
    """Billed or perhaps billed. `requests` counts sends that may have reached the API."""

    requests: int
    tokens: int
    usd: float

    def combined_with(self, other: "Usage") -> "Usage":
        requests, tokens = self.requests + other.requests, self.tokens + other.tokens
        return Usage(requests, tokens, self.usd + other.usd)


class PendingRequest(NamedTuple):
    """A request to send. `request_id` is None if the journal does not contain it yet."""

    request_id: int | None
    key: str
    sample_id: str
    body: bytes
    most_tokens: int
    most_usd: float


class ReadOnlyJournal:
    """Reads a journal without its lock, also while a collector writes it; changes nothing.

    Attempts without an outcome are read as the next collector will close them. Use as a context
    manager. Raises StorageFailed for a file that is not a journal of this version.
    """

    run = 0  # no attempt is of this run

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._committed = open_read_only(path)
            self._keys = KeyIndex(self._committed)
            self.orphaned = dict(_orphaned_attempts(self._committed, load_orphaned_ids(_in_flight_path(path))))
        except sqlite3.Error as error:
            raise StorageFailed(f"{path}: the journal cannot be read ({error})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        self._committed.close()
        if isinstance(error, sqlite3.Error):
            raise StorageFailed(f"{self.path}: the journal cannot be read ({error})") from None

    def read_rows(self, sql: str, *values: object) -> sqlite3.Cursor:
        return self._committed.execute(sql, values)

    def load_states(self, keys: Iterable[str]) -> dict[str, RequestState]:
        """The committed state of these requests; keys that the journal lacks are left out."""
        sql = (
            "SELECT r.request_key, r.id, a.id, o.outcome, o.status, coalesce(o.error, ''), "
            "a.run, a.batch "
            "FROM requests r LEFT JOIN attempts a ON a.request_id = r.id "
            "LEFT JOIN outcomes o ON o.attempt_id = a.id "
            "WHERE r.id IN (SELECT value FROM json_each(?)) ORDER BY a.id"
        )
        states: dict[str, RequestState] = {}
        rows = self._committed.execute(sql, (self._ids_json(keys),))
        for key, id_, attempt, outcome, status, error, run, batch in rows:
            state = states.setdefault(key, RequestState(id_))
            state.asked_now = state.asked_now or (run == self.run and batch is None)
            if outcome:
                state.attempts.append(Attempt(outcome, status, error))
                state.new_attempts += run == self.run
            elif attempt in self.orphaned:
                state.attempts.append(Attempt(self.orphaned[attempt], None, PROCESS_DIED))
            elif batch is not None:
                state.under_way = True
        return states

    def newest_answers(self, keys: Iterable[str]) -> dict[str, StoredAnswer]:
        sql = (
            "SELECT r.request_key, o.raw, o.latency_ms, o.ended_at, coalesce(b.discount, 1.0) "
            "FROM requests r JOIN attempts a ON a.request_id = r.id "
            "JOIN outcomes o ON o.attempt_id = a.id LEFT JOIN batches b ON b.id = a.batch "
            "WHERE o.outcome='answered' "
            "AND r.id IN (SELECT value FROM json_each(?)) ORDER BY a.id"
        )
        rows = self._committed.execute(sql, (self._ids_json(keys),))
        # In the order of the attempts, so that the newest answer replaces earlier ones.
        return {key: StoredAnswer(*answer) for key, *answer in rows}

    def answers_of_model(self, model: str) -> Iterator[bytes]:
        sql = (
            "SELECT o.raw FROM outcomes o JOIN attempts a ON a.id = o.attempt_id "
            "JOIN requests r ON r.id = a.request_id "
            "WHERE o.outcome='answered' AND instr(r.body, ?) ORDER BY o.attempt_id"
        )
        return (raw for (raw,) in self._committed.execute(sql, (_model_pattern(model),)))

    def last_response_text(self, key: str) -> str:
        """The API's last response to a request: status and start of the body, or the error."""
        row = self._committed.execute(
            "SELECT o.status, coalesce(o.error, substr(o.raw, 1, 2000), '') FROM requests r "
            "JOIN attempts a ON a.request_id = r.id JOIN outcomes o ON o.attempt_id = a.id "
            "WHERE r.id IN (SELECT value FROM json_each(?)) ORDER BY a.id DESC LIMIT 1",
            (self._ids_json([key]),),
        ).fetchone()
        status, text = row or (None, "")
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return f"HTTP {status}: {text}" if status else text

    def uncertain_keys(self) -> list[str]:
        sql = (
            "SELECT r.request_key FROM outcomes o JOIN attempts a ON a.id = o.attempt_id "
            "JOIN requests r ON r.id = a.request_id WHERE o.outcome='uncertain' "
            "GROUP BY r.id ORDER BY min(a.id)"
        )
        return [row[0] for row in self._committed.execute(sql)]

    def total_usage(self) -> Usage:
        """Usage of all runs; an uncertain attempt counts as its maximum."""
        # Answers without usage, uncertain attempts and open batches count as their reservation.
        sql = (
            "SELECT count(*), "
            "coalesce(sum(coalesce(u.total_tokens, a.most_tokens)), 0), "
            "coalesce(sum(coalesce(u.cost_usd, a.most_usd)), 0.0) "
            "FROM outcomes o JOIN attempts a ON a.id = o.attempt_id "
            "LEFT JOIN usage u ON u.attempt_id = a.id WHERE o.outcome IN ('answered', 'uncertain')"
        )
        recorded = Usage(*self.read_rows(sql).fetchone())
        return recorded.combined_with(self.under_way_usage()).combined_with(self.unended_usage())

    def under_way_usage(self) -> Usage:
        """Reserved for attempts of open batches without an outcome."""
        sql = (
            "SELECT count(*), coalesce(sum(most_tokens), 0), coalesce(sum(most_usd), 0.0) "
            "FROM unended WHERE batch IN (SELECT id FROM open_batches)"
        )
        return Usage(*self.read_rows(sql).fetchone())

    def usage_of_all_journals(self) -> Usage:
        """Usage in this journal and all others of its folder. Raises StorageFailed."""
        # An unreadable journal stops the run: counted as nothing, it would let a budget be exceeded.
        total = self.total_usage()
        for path in sorted(self.path.parent.glob("*.sqlite")):
            if path.resolve() != self.path.resolve():
                with ReadOnlyJournal(path) as other:
                    total = total.combined_with(other.total_usage())
        return total

    def unended_usage(self) -> Usage:
        """Maximum usage of the sends without an outcome, also those of a running collector."""
        uncertain = [id_ for id_, outcome in self.orphaned.items() if outcome == "uncertain"]
        sql = (
            "SELECT count(*), coalesce(sum(most_tokens), 0), coalesce(sum(most_usd), 0.0) "
            "FROM attempts WHERE id IN (SELECT value FROM json_each(?))"
        )
        return Usage(*self.read_rows(sql, json.dumps(uncertain)).fetchone())

    def unbilled_answers(self, model: str) -> list[tuple[int, bytes, float]]:
        """(attempt, body, discount) of this model's stored answers whose cost is not recorded."""
        sql = (
            "SELECT a.id, o.raw, coalesce(b.discount, 1.0) FROM outcomes o "
            "JOIN attempts a ON a.id = o.attempt_id JOIN requests r ON r.id = a.request_id "
            "LEFT JOIN batches b ON b.id = a.batch WHERE o.outcome='answered' "
            "AND a.id NOT IN (SELECT attempt_id FROM usage) AND instr(r.body, ?)"
        )
        return self._committed.execute(sql, (_model_pattern(model),)).fetchall()

    def _ids_json(self, keys: Iterable[str]) -> str:
        return json.dumps(self._keys.find_ids(keys))


class Journal(ReadOnlyJournal):
    """Writes the journal. Use as a context manager, from one event loop.

    One process at a time (`flock`): a second one gets Locked (75) with the holder's pid and host, or
    waits if the holder works for another `owner` (a `storage.root`), whose answers it then reuses.
    A failed write is final (StorageFailed, 74): nothing more is recorded or sent. `places` is the
    maximum number of attempts in flight.
    """

    def __init__(self, path: Path, run_id: str, places: int = 1024, owner: str = "") -> None:
        self.path, self.orphaned = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Before the file is opened: nobody else may close its orphaned attempts.
        self._lock = _lock_file(path.with_suffix(".lock"), owner)
        ids_path = _in_flight_path(path)
        try:
            # Opened here, used by the thread of `GroupCommit`: never by both at a time.
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, cached_statements=512)
            # Readers see what is committed while the collector writes.
            self._db.execute("PRAGMA journal_mode=WAL")
            # An fsync at each commit: after a power loss, too, no paid answer is missing.
            self._db.execute("PRAGMA synchronous=FULL")
            prepare_tables(self._db, path)
            _close_orphaned(self._db, load_orphaned_ids(ids_path))
            index_all_keys(self._db)
            started = "INSERT INTO runs (run_id, started_at) VALUES (?, ?) RETURNING id"
            (self.run,) = self._db.execute(started, (run_id, time.time())).fetchone()
            # A separate connection for reading sees committed rows only.
            self._committed = sqlite3.connect(path, isolation_level=None)
            self._keys = KeyIndex(self._committed)
            self._next_request = self._newest_id("requests") + 1
            self._next_attempt = self._newest_id("attempts") + 1
        except sqlite3.Error as error:
            raise _write_failure(path, error) from None
        # Only now: until here the old file told which attempts a dead process had sent.
        self.in_flight = InFlight(ids_path, places)
        self._writer = GroupCommit(
            self._db,
            TABLES,
            failed=lambda error: _write_failure(path, error),
            afterwards=lambda: self._keys.catch_up(self._db),
        )
        self.batches = BatchLedger(self._committed, self._keys, self._writer, self.run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        if not self._writer.broken:
            ended = (time.time(), self._writer.slowest_seconds * 1000, self.run)
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("UPDATE runs SET ended_at=?, slowest_commit_ms=? WHERE id=?", ended)
        self._committed.close()
        self._db.close()
        self.in_flight.close()
        # The lock last: whoever waits for it finds a closed journal.
        self._lock.close()

    async def begin_attempts(self, asking: Sequence[PendingRequest], batch: int | None = None) -> list[int]:
        """Record one attempt of each request, in `batch` if given; returns the ids once on disk."""
        attempts = range(self._next_attempt, self._next_attempt + len(asking))
        self._next_attempt = attempts.stop
        for attempt, a in zip(attempts, asking, strict=True):
            request = a.request_id
            if request is None:
                self._next_request, request = self._next_request + 1, self._next_request
                # Raises for a key that was added shortly before: no request may be stored twice.
                self._keys.add_key(a.key, request)
                self._writer.add_row("requests", (request, a.key, a.sample_id, a.body))
            row = (attempt, request, self.run, a.most_tokens, a.most_usd, batch)
            self._writer.add_row("attempts", row)
        await self._writer.wait_for_disk()
        return list(attempts)

    def record_outcome(self, attempt: int, outcome: Outcome, then: OnStored) -> None:
        """Record the outcome of an attempt; `then(error)` is called after the commit."""
        row = (attempt, outcome.outcome, outcome.status, outcome.raw, outcome.error)
        self._writer.add_row("outcomes", (*row, outcome.latency_ms, time.time()), then)

    def record_usage(self, attempt: int, *usage: float | None) -> None:
        """Record the billed usage of an answer: prompt, completion and total tokens, dollars."""
        self._writer.add_row("usage", (attempt, *usage))

    async def wait_for_disk(self) -> None:
        """Wait until all records so far are on disk. Raises StorageFailed."""
        await self._writer.wait_for_disk()

    def _newest_id(self, table: str) -> int:
        row = self._committed.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()  # noqa: S608
        return int(row[0])


def _model_pattern(model: str) -> bytes:
    # Inside a prompt the quotes would be escaped, so this matches the `model` key only.
    return f'"model":{json.dumps(model, ensure_ascii=False)}'.encode("utf-8", "surrogatepass")


def _in_flight_path(path: Path) -> Path:
    return path.with_suffix(".inflight")


def _orphaned_attempts(db: sqlite3.Connection, in_flight: set[int] | None) -> list[tuple[int, str]]:
    """(attempt, outcome) of a process that died. `in_flight`: ids in flight; None = perhaps all."""
    sql = "SELECT id, batch FROM attempts WHERE id NOT IN (SELECT attempt_id FROM outcomes)"
    rows, open_ = db.execute(sql).fetchall(), {id_ for (id_,) in db.execute("SELECT id FROM open_batches")}
    sent = {id_ for id_, batch in rows if batch is None and (in_flight is None or id_ in in_flight)}
    return [
        (id_, "uncertain" if id_ in sent else "not_sent")
        for id_, batch in rows
        if batch not in open_  # those are under way at the provider, whatever runs here
    ]


def _close_orphaned(db: sqlite3.Connection, in_flight: set[int] | None) -> None:
    rows = [(id_, outcome, PROCESS_DIED, time.time()) for id_, outcome in _orphaned_attempts(db, in_flight)]
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO outcomes VALUES (?, ?, NULL, NULL, ?, NULL, ?)", rows)
    db.execute("COMMIT")


def _write_failure(path: Path, error: Exception) -> StorageFailed:
    return StorageFailed(
        f"{path}: the journal cannot be written ({error}); no further request is sent. "
        "Free space (df -h .) and run the same command again"
    )


def _lock_file(path: Path, owner: str) -> IO[str]:
    """Hold an exclusive lock until the process ends. Raises Locked naming the holder."""
    # Never removed, or two processes could hold locks on two files of this name.
    file, has_waited = path.open("a+", encoding="utf-8"), False
    while not _try_lock(file):
        file.seek(0)
        holder = file.read().strip() or "another process"
        if not owner or holder.partition(OWNED)[2] in ("", owner):
            file.close()
            raise Locked(f"{path}: {holder} is collecting; wait for it or stop it")
        if not has_waited:
            print(f"{path}: {holder} is collecting, and its answers serve this run too: waiting", flush=True)
        has_waited = True
        time.sleep(LOCK_POLL_SECONDS)
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}" + (f"{OWNED}{owner}" if owner else ""))
    file.flush()
    return file


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
