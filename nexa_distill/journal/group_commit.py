"""Rows for a SQLite file, collected on the event loop and committed together by a thread.

An fsync is paid per group and not per row: a group is what came in within `GROUP_SECONDS`, or
`GROUP_ROWS` rows, and whatever else waits when the thread gets to it. A table's rows go in by one
multi-row INSERT, for the thread must win the interpreter's lock back after every statement, and
beside a busy event loop 64 statements would take 64 turns.

A failed commit is final: nothing that comes after it is accepted.
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
SWITCH_SECONDS = 0.001  # how long the event loop may keep the interpreter from the thread

Then = Callable[[StorageFailed | None], None]


@dataclass
class _Group:
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))
    then: list[Then] = field(default_factory=list)
    size: int = 0
    began: float = 0.0  # monotonic: when its first row came in


class GroupCommit:
    """`tables` in the order in which their rows are inserted. `add` from one event loop only.

    `afterwards` is called by the thread after each commit, when those who waited for it are told.
    """

    def __init__(
        self, db: sqlite3.Connection, tables: tuple[str, ...],
        failed: Callable[[Exception], StorageFailed], afterwards: Callable[[], None],
    ) -> None:  # fmt: skip
        self.broken: StorageFailed | None = None
        self.slowest_seconds = 0.0  # from a row's arrival to its commit
        self._db, self._tables, self._failed = db, tables, failed
        self._afterwards = afterwards
        self._open = _Group()
        self._timer: asyncio.TimerHandle | None = None
        self._groups: queue.SimpleQueue[tuple[_Group, asyncio.AbstractEventLoop] | None]
        self._groups = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()
        sys.setswitchinterval(SWITCH_SECONDS)

    def add(self, table: str, row: tuple[Any, ...], then: Then | None = None) -> None:
        """Have `row` committed; `then` hears of it on the loop, with the error if it failed."""
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
        """Hand over what came in so far, without waiting for more."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._open.size:
            self._groups.put((self._open, asyncio.get_running_loop()))
            self._open = _Group()

    async def on_disk(self) -> None:
        """Wait until all that was added is committed. Raises StorageFailed."""
        done = asyncio.get_running_loop().create_future()
        if not self._open.size:
            self._open.began = time.monotonic()
        self._open.then.append(lambda error: _resolve(done, error))
        self._open.size += 1
        self.flush()
        await done

    def close(self) -> None:
        """End the thread after what was handed over."""
        self._groups.put(None)
        self._thread.join()

    def _work(self) -> None:
        while waiting := list(self._waiting()):
            groups = [group for group, _ in waiting]
            self._unless_broken(functools.partial(self._commit, groups))
            oldest = min(group.began for group in groups)
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - oldest)
            try:
                waiting[0][1].call_soon_threadsafe(self._tell, groups, self.broken)
            except RuntimeError:  # the loop is gone: nobody waits any more
                continue
            self._unless_broken(self._afterwards)

    def _unless_broken(self, write: Callable[[], None]) -> None:
        if not self.broken:
            try:
                write()
            except Exception as error:  # noqa: BLE001  a dead thread would let all wait forever
                self.broken = self._failed(error)

    def _waiting(self) -> Iterator[tuple[_Group, asyncio.AbstractEventLoop]]:
        """All groups handed over by now, at least one; nothing when closed."""
        item = self._groups.get()
        while item is not None:
            yield item
            try:
                item = self._groups.get_nowait()
            except queue.Empty:
                return
        self._groups.put(None)  # seen again when this round is committed

    def _commit(self, groups: list[_Group]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for table in self._tables:
            rows = list(itertools.chain.from_iterable(g.rows.get(table, ()) for g in groups))
            for start in range(0, len(rows), GROUP_ROWS):
                self._insert(table, rows[start : start + GROUP_ROWS])
        failpoints.hit("commit")
        self._db.execute("COMMIT")
        failpoints.hit("committed")

    def _insert(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        one = f"({','.join('?' * len(rows[0]))})"
        sql = f"INSERT INTO {table} VALUES {','.join([one] * len(rows))}"  # noqa: S608
        self._db.execute(sql, list(itertools.chain.from_iterable(rows)))

    @staticmethod
    def _tell(groups: list[_Group], error: StorageFailed | None) -> None:
        for group in groups:
            for then in group.then:
                then(error)


def _resolve(done: asyncio.Future[None], error: StorageFailed | None) -> None:
    if done.done():
        return
    if error:
        done.set_exception(error)
    else:
        done.set_result(None)
