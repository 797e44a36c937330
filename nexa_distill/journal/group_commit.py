"""Rows for a SQLite file, collected on the event loop and committed in groups by a thread.

One fsync per group instead of one per row: a group has the rows of `GROUP_SECONDS`, or `GROUP_ROWS`
rows, plus whatever else waits when the thread gets to it. A failed commit is final: the thread
writes no later row.
"""

import asyncio
import functools
import itertools
import queue
import sqlite3
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nexa_distill.errors import StorageFailed
from nexa_distill.storage import failpoints

GROUP_SECONDS = 0.02
GROUP_ROWS = 64
SWITCH_SECONDS = 0.001  # the event loop may keep the interpreter from the thread for so long

OnStored = Callable[[StorageFailed | None], None]


@dataclass
class _Group:
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))
    then: list[OnStored] = field(default_factory=list)
    size: int = 0
    began: float = 0.0  # monotonic time of its first row


class GroupCommit:
    """`tables` in the order in which their rows are inserted. `add_row` from one event loop only.

    The thread calls `afterwards` after each commit, once the callbacks of its rows are scheduled.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        tables: tuple[str, ...],
        failed: Callable[[Exception], StorageFailed],
        afterwards: Callable[[], None],
    ) -> None:
        self.broken: StorageFailed | None = None
        self.slowest_seconds = 0.0  # from a row's arrival to its commit
        self._db, self._tables, self._failed = db, tables, failed
        self._afterwards = afterwards
        self._open = _Group()
        self._timer: asyncio.TimerHandle | None = None
        self._groups: queue.SimpleQueue[tuple[_Group, asyncio.AbstractEventLoop] | None]
        self._groups = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run_thread, name="journal", daemon=True)
        self._thread.start()
        sys.setswitchinterval(SWITCH_SECONDS)

    def add_row(self, table: str, row: tuple[Any, ...], then: OnStored | None = None) -> None:
        """Queue `row`. After the commit, `then(error)` is called on the event loop."""
        group = self._open
        if not group.size:
            group.began = time.monotonic()
        group.rows[table].append(row)
        group.size += 1
        if then:
            group.then.append(then)
        if group.size >= GROUP_ROWS:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GROUP_SECONDS, self.flush)

    def flush(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._open.size:
            self._groups.put((self._open, asyncio.get_running_loop()))
            self._open = _Group()

    async def wait_for_disk(self) -> None:
        """Wait until all rows added so far are committed. Raises StorageFailed."""
        done = asyncio.get_running_loop().create_future()
        if not self._open.size:
            self._open.began = time.monotonic()
        self._open.then.append(lambda error: _resolve_future(done, error))
        # Counts as a row, so that a group without rows is handed over too.
        self._open.size += 1
        self.flush()
        await done

    def close(self) -> None:
        """Stop the thread after it has committed the groups that it was handed."""
        self._groups.put(None)
        self._thread.join()

    def _run_thread(self) -> None:
        while waiting := list(self._take_groups()):
            groups = [group for group, _ in waiting]
            self._write_unless_broken(functools.partial(self._commit_groups, groups))
            oldest = min(group.began for group in groups)
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - oldest)
            try:
                # Futures and callbacks belong to the event loop, not to this thread.
                waiting[0][1].call_soon_threadsafe(self._notify_waiters, groups, self.broken)
            except RuntimeError:  # the loop is closed: nothing waits for the commit any more
                continue
            self._write_unless_broken(self._afterwards)

    def _write_unless_broken(self, write: Callable[[], None]) -> None:
        if not self.broken:
            try:
                write()
            except Exception as error:  # noqa: BLE001  a dead thread would let all wait forever
                self.broken = self._failed(error)

    def _take_groups(self) -> Iterator[tuple[_Group, asyncio.AbstractEventLoop]]:
        # Waits for the first group; all that was handed over meanwhile joins its commit.
        item = self._groups.get()
        while item is not None:
            yield item
            try:
                item = self._groups.get_nowait()
            except queue.Empty:
                return
        self._groups.put(None)  # read again after this round's commit

    def _commit_groups(self, groups: list[_Group]) -> None:
        # The write lock at once: a later upgrade could find the file locked.
        self._db.execute("BEGIN IMMEDIATE")
        for table in self._tables:
            rows = list(itertools.chain.from_iterable(g.rows.get(table, ()) for g in groups))
            for start in range(0, len(rows), GROUP_ROWS):
                self._insert_rows(table, rows[start : start + GROUP_ROWS])
        failpoints.hit_failpoint("commit")
        self._db.execute("COMMIT")
        failpoints.hit_failpoint("committed")

    def _insert_rows(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        # One statement for all rows: the thread has to win the interpreter lock back after each
        # statement, so beside a busy event loop 64 statements would take 64 turns.
        values = f"({','.join('?' * len(rows[0]))})"
        sql = f"INSERT INTO {table} VALUES {','.join([values] * len(rows))}"  # noqa: S608
        self._db.execute(sql, list(itertools.chain.from_iterable(rows)))

    @staticmethod
    def _notify_waiters(groups: list[_Group], error: StorageFailed | None) -> None:
        for group in groups:
            for then in group.then:
                then(error)


def _resolve_future(done: asyncio.Future[None], error: StorageFailed | None) -> None:
    if done.done():
        return
    if error:
        done.set_exception(error)
    else:
        done.set_result(None)
