"""Index of the journal's requests by key, written some thousand keys at a time."""

import json
import sqlite3
from collections.abc import Iterable

# Keys are hashes: written one by one, each would dirty another page of the index, and a commit
# writes a whole page for each (measured: half the cost of all commits). Sorted, many share a page.
# So the index lags behind the requests; the few keys that it lacks are in memory.
INDEXED_AT_ONCE = 4096  # keys
# The start of a key keeps the index small; the whole key is compared in the request itself.
KEY_SCHEMA = """
CREATE TABLE request_keys (
    start       TEXT NOT NULL,  -- of the key
    request_id  INTEGER NOT NULL REFERENCES requests,
    PRIMARY KEY (start, request_id)
) WITHOUT ROWID;
CREATE TABLE indexed (upto INTEGER NOT NULL);  -- the newest request in request_keys
INSERT INTO indexed VALUES (0);
"""
_INDEX = (
    "INSERT INTO request_keys SELECT substr(request_key, 1, 12), id FROM requests "
    "WHERE id > (SELECT upto FROM indexed) ORDER BY 1"
)
_UPTO = "UPDATE indexed SET upto=(SELECT coalesce(max(id), 0) FROM requests) RETURNING upto"
_FIND = (
    "SELECT r.request_key, r.id FROM json_each(?) wanted "
    "JOIN request_keys k ON k.start = substr(wanted.value, 1, 12) "
    "JOIN requests r ON r.id = k.request_id AND r.request_key = wanted.value"
)


class KeyIndex:
    """`committed`: a connection for reading. All but `catch_up` in the thread that opened it."""

    def __init__(self, committed: sqlite3.Connection) -> None:
        self._db = committed
        (self._upto,) = committed.execute("SELECT upto FROM indexed").fetchone()
        self._newest = self._pruned = self._upto
        self._behind: dict[str, int] = {}  # keys that the table does not have yet
        sql = "SELECT request_key, id FROM requests WHERE id > ? ORDER BY id"
        for key, id_ in committed.execute(sql, (self._upto,)):
            self.add_key(key, id_)

    def add_key(self, key: str, id_: int) -> None:
        """Add a request before its commit; ids only grow. Raises ValueError for a known key."""
        if key in self._behind:
            raise ValueError(f"the request {key} is in the journal already")
        if self._pruned < self._upto:  # the table has caught up: forget the keys it has now
            self._pruned = self._upto
            self._behind = {key: id_ for key, id_ in self._behind.items() if id_ > self._pruned}
        self._behind[key] = self._newest = id_

    def find_ids(self, keys: Iterable[str]) -> list[int]:
        keys = list(keys)
        behind = [self._behind[key] for key in keys if key in self._behind]
        indexed = {id_ for _, id_ in self._db.execute(_FIND, (json.dumps(keys),))}
        # A key may be in both, if the table has caught up in the meantime.
        return [*indexed.union(behind)]

    def catch_up(self, db: sqlite3.Connection, at_least: int = INDEXED_AT_ONCE) -> None:
        """Index all committed requests if at least so many are missing. In any thread."""
        if self._newest - self._upto >= at_least:
            self._upto = index_all_keys(db)


def index_all_keys(db: sqlite3.Connection) -> int:
    """Index all committed requests; returns the id of the newest."""
    db.execute("BEGIN IMMEDIATE")
    db.execute(_INDEX)
    (upto,) = db.execute(_UPTO).fetchone()
    db.execute("COMMIT")
    return int(upto)
