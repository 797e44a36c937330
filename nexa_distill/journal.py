"""The ledger of every request: what was asked, each attempt, and the raw bytes of each answer.

One SQLite file per stage (WAL, synchronous=FULL). An attempt is on disk before its request is
sent and its answer is on disk before it is parsed. Writes are collected into one commit
(`GROUP_SECONDS` or `GROUP_WRITES`), so an fsync is paid per group and not per answer.

Outcome of an attempt: `in_flight`, then one of
  `answered`  a complete 200 body is stored; this request is never sent again
  `rejected`  the API said no (a status other than 200): not billed
  `not_sent`  no connection: not billed
  `uncertain` sent, and no complete answer (timeout, cut connection, crash): perhaps billed
An attempt still `in_flight` when the file is opened belongs to a process that died: `uncertain`.

One process at a time (`flock`): a second one gets Locked (75) with the holder's pid and host.
A failed write is final (StorageFailed, 74): nothing more is accepted, so nothing more is sent.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from nexa_distill.errors import Locked, StorageFailed

GROUP_SECONDS = 0.02
GROUP_WRITES = 64
DIED = "the process died"
SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    request_key TEXT PRIMARY KEY,
    body        BLOB NOT NULL      -- JSON as sent
);
CREATE TABLE IF NOT EXISTS attempts (
    id          INTEGER PRIMARY KEY,
    request_key TEXT NOT NULL REFERENCES requests,
    run_id      TEXT NOT NULL,
    outcome     TEXT NOT NULL,
    status      INTEGER,           -- HTTP status, when there was one
    raw         BLOB,              -- body as received (of a refusal: its start)
    error       TEXT,
    latency_ms  REAL,
    ended_at    REAL               -- unix seconds, UTC
);
CREATE INDEX IF NOT EXISTS attempts_by_key ON attempts (request_key, outcome);
"""


class Answered(NamedTuple):
    """The stored answer of a request. `ended_at` is unix seconds."""

    raw: bytes
    latency_ms: float
    ended_at: float


class Outcome(NamedTuple):
    """How an attempt ended."""

    outcome: str
    status: int | None = None
    raw: bytes | None = None
    error: str | None = None
    latency_ms: float | None = None


class Journal:
    """Use as a context manager, from one event loop; writes happen in a thread of its own."""

    def __init__(self, path: Path, run_id: str) -> None:
        self.path, self.run_id = path, run_id
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path.with_suffix(".lock"))
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
            died = "UPDATE attempts SET outcome='uncertain', error=? WHERE outcome='in_flight'"
            self._db.execute(died, (DIED,))
        except sqlite3.Error as error:
            raise _failed(path, error) from None
        # A connection of its own for reading: it sees what is committed, and nothing else.
        self._committed = sqlite3.connect(path, isolation_level=None)
        newest = self._committed.execute("SELECT coalesce(max(id), 0) FROM attempts").fetchone()
        self._next_id = int(newest[0]) + 1
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._broken: StorageFailed | None = None
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writes.put(None)
        self._thread.join()
        self._committed.close()
        self._db.close()
        self._lock.close()

    async def begin(self, key: str, body: bytes) -> int:
        """Record that `key` is about to be sent; returns when that is on disk."""
        self._next_id, attempt = self._next_id + 1, self._next_id
        await self._write(
            ("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, body)),
            (
                "INSERT INTO attempts (id, request_key, run_id, outcome) VALUES (?, ?, ?, ?)",
                (attempt, key, self.run_id, "in_flight"),
            ),
        )
        return attempt

    async def end(self, attempt: int, outcome: Outcome) -> None:
        """Record how the attempt ended; returns when that is on disk."""
        sql = (
            "UPDATE attempts SET outcome=?, status=?, raw=?, error=?, latency_ms=?, ended_at=? "
            "WHERE id=?"
        )
        await self._write((sql, (*outcome, time.time(), attempt)))

    def answer(self, key: str) -> Answered | None:
        """The stored answer of a request, or None."""
        row = self._committed.execute(
            "SELECT raw, latency_ms, ended_at FROM attempts "
            "WHERE request_key=? AND outcome='answered' ORDER BY id LIMIT 1",
            (key,),
        ).fetchone()
        return Answered(*row) if row else None

    def attempts(self, key: str) -> list[tuple[str, int | None, str]]:
        """(outcome, HTTP status, evidence) of each finished attempt of a request, in order."""
        rows = self._committed.execute(
            "SELECT outcome, status, coalesce(error, substr(raw, 1, 2000), '') FROM attempts "
            "WHERE request_key=? AND outcome<>'in_flight' ORDER BY id",
            (key,),
        )
        return [
            (outcome, status, said.decode("utf-8", "replace") if isinstance(said, bytes) else said)
            for outcome, status, said in rows
        ]

    def uncertain(self) -> list[str]:
        """Keys of the requests that were once sent and brought no complete answer, in order."""
        sql = (
            "SELECT request_key FROM attempts WHERE outcome='uncertain' "
            "GROUP BY request_key ORDER BY min(id)"
        )
        return [row[0] for row in self._committed.execute(sql)]

    async def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        if self._broken:
            raise self._broken
        done = asyncio.get_running_loop().create_future()
        self._writes.put(_Write(statements, done))
        await done

    def _work(self) -> None:
        while group := list(self._group()):
            if not self._broken:
                try:
                    self._commit(group)
                except Exception as error:  # noqa: BLE001  a dead writer would let all wait forever
                    self._broken = _failed(self.path, error)
            for write in group:
                write.finish(self._broken)

    def _commit(self, group: list["_Write"]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for write in group:
            for sql, values in write.statements:
                self._db.execute(sql, values)
        self._db.execute("COMMIT")

    def _group(self) -> Iterator["_Write"]:
        """The next writes to commit together; empty when the journal is closing."""
        first = self._writes.get()
        if first is None:
            return
        yield first
        until = time.monotonic() + GROUP_SECONDS
        for _ in range(GROUP_WRITES - 1):
            try:
                write = self._writes.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                return
            if write is None:
                self._writes.put(None)  # finish this group first
                return
            yield write


class _Write(NamedTuple):
    statements: tuple[tuple[str, tuple[Any, ...]], ...]
    done: asyncio.Future[None]

    def finish(self, broken: StorageFailed | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            self.done.get_loop().call_soon_threadsafe(_resolve, self.done, broken)


def _resolve(done: asyncio.Future[None], broken: StorageFailed | None) -> None:
    if done.cancelled():
        return
    if broken:
        done.set_exception(broken)
    else:
        done.set_result(None)


def _failed(path: Path, error: Exception) -> StorageFailed:
    return StorageFailed(
        f"{path}: the journal cannot be written ({error}); no further request is sent. "
        "Free space (df -h .) and run the same command again"
    )


def _lock(path: Path) -> IO[str]:
    """Hold an exclusive lock until the process ends. Raises Locked naming the holder."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise Locked(f"{path}: {holder} is collecting; wait for it or stop it") from None
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
