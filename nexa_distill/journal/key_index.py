"""Which request has which key, in a journal: an index written some thousand keys at a time.

Keys are hashes: written one by one, each would dirty another page of the index, and a commit costs
a whole page for each (measured: half of what all the commits cost). Sorted, many share a page. So
the index follows behind the requests; what it does not reach yet is few, and held in memory.
"""

import json
import sqlite3
from collections.abc import Iterable

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
    """`committed`: a connection for reading. All but `write` from the thread that made it."""

    def __init__(self, committed: sqlite3.Connection) -> None:
        self._db = committed
        (self._upto,) = committed.execute("SELECT upto FROM indexed").fetchone()
        self._newest = self._pruned = self._upto
        self._behind: dict[str, int] = {}
        sql = "SELECT request_key, id FROM requests WHERE id > ? ORDER BY id"
        for key, id_ in committed.execute(sql, (self._upto,)):
            self.add(key, id_)

    def add(self, key: str, id_: int) -> None:
        """A request that is about to be committed; ids only grow. Raises ValueError: known."""
        if key in self._behind:
            raise ValueError(f"the request {key} is in the journal already")
        if self._pruned < self._upto:
            self._pruned = self._upto
            self._behind = {key: id_ for key, id_ in self._behind.items() if id_ > self._pruned}
        self._behind[key] = self._newest = id_

    def ids(self, keys: Iterable[str]) -> list[int]:
        """Ids of the requests that have one of these keys, in no order."""
        wanted = list(keys)
        behind = [self._behind[key] for key in wanted if key in self._behind]
        found = {id_ for _, id_ in self._db.execute(_FIND, (json.dumps(wanted),))}
        return [*found.union(behind)]

    def write(self, db: sqlite3.Connection, at_least: int = INDEXED_AT_ONCE) -> None:
        """Let the index reach the newest request, if it is so far behind. In any thread."""
        if self._newest - self._upto >= at_least:
            self._upto = complete(db)


def complete(db: sqlite3.Connection) -> int:
    """Let the index reach the newest request that is committed; returns its id."""
    db.execute("BEGIN IMMEDIATE")
    db.execute(_INDEX)
    (upto,) = db.execute(_UPTO).fetchone()
    db.execute("COMMIT")
    return int(upto)
