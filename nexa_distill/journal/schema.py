"""The journal's tables (`journal.py` explains them), and journals of other versions."""

import contextlib
import sqlite3
from pathlib import Path

from nexa_distill.errors import StorageFailed
from nexa_distill.journal.batches import BATCH_SCHEMA, BATCH_TABLES
from nexa_distill.journal.key_index import KEY_SCHEMA

VERSION = 2
TABLES = ("requests", "attempts", "outcomes", "usage", *BATCH_TABLES)
SCHEMA = f"""
CREATE TABLE runs (             -- one run of the command; ended_at is null when it was killed
    id          INTEGER PRIMARY KEY,
    run_id      TEXT NOT NULL,  -- of the whole pipeline
    started_at  REAL NOT NULL,  -- unix seconds, UTC, as everywhere here
    ended_at    REAL,
    slowest_commit_ms REAL      -- from the arrival of an answer to its commit
);
CREATE TABLE requests (
    id          INTEGER PRIMARY KEY,
    request_key TEXT NOT NULL,  -- indexed by request_keys
    sample_id   TEXT,           -- the first sample with this request
    body        BLOB NOT NULL   -- JSON; a server that we start is sent its own name as `model`
);
CREATE TABLE attempts (         -- written before the request is sent
    id          INTEGER PRIMARY KEY,
    request_id  INTEGER NOT NULL REFERENCES requests,
    run         INTEGER NOT NULL REFERENCES runs,
    most_tokens INTEGER,        -- the maximum that can be billed, reserved in the budget
    most_usd    REAL,
    batch       INTEGER         -- null: sent by itself
);
CREATE INDEX attempts_of ON attempts (request_id);
CREATE TABLE outcomes (
    attempt_id  INTEGER PRIMARY KEY REFERENCES attempts,
    outcome     TEXT NOT NULL,
    status      INTEGER,        -- HTTP status, when there was one
    raw         BLOB,           -- body as received
    error       TEXT,
    latency_ms  REAL,
    ended_at    REAL
);
CREATE TABLE usage (            -- read from the answer after it was stored
    attempt_id  INTEGER PRIMARY KEY REFERENCES attempts,
    prompt_tokens INTEGER, completion_tokens INTEGER, total_tokens INTEGER, cost_usd REAL
);
{KEY_SCHEMA}{BATCH_SCHEMA}
"""
# From the tables of release 0.1, where an attempt and its outcome were one row.
RENAME_OLD_TABLES = """
DROP INDEX attempts_by_key;
ALTER TABLE requests RENAME TO old_requests;
ALTER TABLE attempts RENAME TO old_attempts;
"""
COPY_OLD_TABLES = """
INSERT INTO requests SELECT rowid, request_key, NULL, body FROM old_requests;
INSERT INTO runs (run_id, started_at)
    SELECT run_id, coalesce(min(ended_at), 0) FROM old_attempts GROUP BY run_id;
INSERT INTO attempts SELECT o.id, r.id, runs.id, NULL, NULL, NULL
    FROM old_attempts o JOIN requests r USING (request_key) JOIN runs USING (run_id);
INSERT INTO outcomes SELECT id, outcome, status, raw, error, latency_ms, ended_at
    FROM old_attempts WHERE outcome <> 'in_flight';
DROP TABLE old_attempts;
DROP TABLE old_requests;
"""


def prepare_tables(db: sqlite3.Connection, path: Path) -> None:
    """Create the tables. Raises StorageFailed for a file of an unknown version."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not version and not tables:
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
    elif not version:
        # In one transaction, because the answers of release 0.1 are paid for.
        db.executescript(
            f"BEGIN; {RENAME_OLD_TABLES} {SCHEMA} {COPY_OLD_TABLES} PRAGMA user_version={VERSION}; COMMIT;"
        )
    elif version != VERSION:
        raise StorageFailed(
            f"{path}: a journal of version {version}, expected {VERSION}; "
            "update the project, or move the file away to send every request again"
        )


def open_read_only(path: Path) -> sqlite3.Connection:
    """A read-only connection. Without a file, an empty journal; one of release 0.1 is copied."""
    where = f"{path.resolve().as_uri()}?mode=ro" if path.exists() else ":memory:"
    db = sqlite3.connect(where, uri=True)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if path.exists() and not version:
        copy = sqlite3.connect(":memory:")
        with contextlib.closing(db):
            db.backup(copy)
        db = copy
    if version != VERSION:
        prepare_tables(db, path)
    return db
