"""Run one SELECT on one SQLite database within limits.

The file is opened read-only and immutable; an authorizer allows only reading the database's tables
and the functions of `FUNCTIONS`; a progress handler counts the steps of SQLite's virtual machine
and checks the time; values, rows and memory have limits. Steps, unlike seconds, are the same on
every machine: for a large database raise `max_sql_steps`, not the time.

Not covered: an exploit of SQLite would have the rights of the worker; `date('now')` is allowed, so
such a query may give another result tomorrow.
"""

import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_distill.execution.checks import ExecutionRejected

Rows = list[tuple[Any, ...]]

STEPS_AT_ONCE = 1000  # between two checks of the time
# A query is SELECT or WITH after spaces and comments; EXPLAIN, VALUES and PRAGMA are not.
QUERY = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*(?:select|with)\b", re.IGNORECASE | re.DOTALL)
# All but those that access files, reveal the machine or return another value each time.
_FUNCTIONS = """
    abs char coalesce concat concat_ws format glob hex if ifnull iif instr length octet_length like
    likelihood likely unlikely lower ltrim max min nullif printf quote replace round rtrim sign
    soundex substr substring trim typeof unhex unicode upper zeroblob
    avg count group_concat string_agg median percentile sum total
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value
    nth_value
    date time datetime julianday unixepoch strftime timediff current_date current_time
    current_timestamp
    acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2
    mod pi pow power radians sin sinh sqrt tan tanh trunc
    json json_array json_array_length json_extract json_object json_patch json_type json_valid
    json_quote json_group_array json_group_object json_each json_tree -> ->> match
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
TABLE_FUNCTIONS = frozenset({"json_each", "json_tree"})


@dataclass(frozen=True)
class Limits:
    """Of one answer: wall-clock seconds, MB of memory, steps and rows of a query, output bytes."""

    timeout_seconds: float
    memory_mb: int
    max_sql_steps: int
    max_rows: int
    max_output_bytes: int


class Clock:
    """The time budget of an answer; counts only the time of its own queries."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self.used = seconds, 0.0

    def __enter__(self) -> float:
        self._started = time.monotonic()
        return self._started + self._seconds - self.used

    def __exit__(self, *_: object) -> None:
        self.used += time.monotonic() - self._started


class Database:
    """A database that runs only queries. Raises sqlite3.Error for a broken file."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        self._denied: str | None = None
        self._steps, self._deadline = 0, 0.0
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
        # Bytes that are not UTF-8 must be compared, not raise.
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        # Half of it: the rows that Python holds need the rest.
        heap = limits.memory_mb * 2**20 // 2
        for pragma in ("trusted_schema=OFF", "temp_store=MEMORY", f"hard_heap_limit={heap}"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")  # registers them
        self._tables = {name.lower() for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        for limit, value in (
            (sqlite3.SQLITE_LIMIT_LENGTH, limits.max_output_bytes),
            (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000),
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
            (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
            (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 100),
            (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
        ):
            self._connection.setlimit(limit, value)
        self._connection.set_authorizer(self._authorize_action)
        self._connection.set_progress_handler(self._count_steps, STEPS_AT_ONCE)

    def fetch_rows(self, query: str, clock: Clock) -> Rows:
        """All rows of the query, in order. Raises ExecutionRejected with reason and evidence."""
        if not QUERY.match(query):
            raise ExecutionRejected("not_a_query", f"expected one SELECT, found {query.strip()[:60]!r}")
        self._denied, self._steps = None, self._limits.max_sql_steps // STEPS_AT_ONCE
        with clock as self._deadline:
            try:
                return self._fetch_limited(query)
            except MemoryError:
                raise ExecutionRejected("memory_limit", "out of memory") from None
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
                raise self._explain_error(error) from None

    def _fetch_limited(self, query: str) -> Rows:
        rows: Rows = []
        size, limits = 0, self._limits
        for row in self._connection.execute(query):
            size += sum(len(cell) if isinstance(cell, str | bytes) else 8 for cell in row)
            rows.append(row)
            if len(rows) > limits.max_rows or size > limits.max_output_bytes:
                limit = f"more than {limits.max_rows} rows or {limits.max_output_bytes} bytes"
                raise ExecutionRejected("output_limit", limit)
        return rows

    def _explain_error(self, error: Exception) -> ExecutionRejected:
        text = str(error)
        if "one statement" in text:
            return ExecutionRejected("not_a_query", text)
        if self._denied:
            return ExecutionRejected("forbidden_operation", f"{self._denied}: {text}")
        if text == "interrupted":
            steps = "steps" if self._steps < 0 else "time"
            return ExecutionRejected("execution_timeout", f"stopped at its limit of {steps}")
        if "too big" in text:
            return ExecutionRejected("output_limit", text)
        return ExecutionRejected("not_executable", text)

    def _count_steps(self) -> int:
        # A single step (one `replace` on a long text) cannot be interrupted: the pool kills it.
        self._steps -= 1
        return self._steps < 0 or time.monotonic() > self._deadline

    def _authorize_action(
        self, action: int, first: str | None, second: str | None, _base: str | None, _by: str | None
    ) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and str(second).lower() in FUNCTIONS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ and self._may_read(str(first).lower(), second):
            return sqlite3.SQLITE_OK
        # The first refusal is the cause of the error.
        self._denied = self._denied or f"{_NAMES.get(action, action)} {second or first or ''}".strip()
        return sqlite3.SQLITE_DENY

    def _may_read(self, table: str, column: str | None) -> bool:
        if table.startswith(("sqlite_", "pragma_")):
            return False
        # Without a column it is the name of a subquery, of which nothing is read.
        return table in self._tables or table in TABLE_FUNCTIONS or not column


_NAMES = {
    sqlite3.SQLITE_FUNCTION: "function",
    sqlite3.SQLITE_READ: "read",
    sqlite3.SQLITE_PRAGMA: "pragma",
    sqlite3.SQLITE_ATTACH: "attach",
    sqlite3.SQLITE_INSERT: "insert",
    sqlite3.SQLITE_UPDATE: "update",
    sqlite3.SQLITE_DELETE: "delete",
}
