"""The ledger on its own: what it knows after a death, what was spent, older files."""

import asyncio
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from nexa_distill.errors import Locked, StorageFailed
from nexa_distill.journal.in_flight import HEADER_BYTES, InFlight, load_orphaned_ids
from nexa_distill.journal.journal import (
    LOCK_POLL_SECONDS,
    PROCESS_DIED,
    Journal,
    Outcome,
    PendingRequest,
    ReadOnlyJournal,
    Usage,
)

OLD_SCHEMA = """
CREATE TABLE requests (request_key TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE attempts (id INTEGER PRIMARY KEY, request_key TEXT NOT NULL REFERENCES requests,
    run_id TEXT NOT NULL, outcome TEXT NOT NULL, status INTEGER, raw BLOB, error TEXT,
    latency_ms REAL, ended_at REAL);
CREATE INDEX attempts_by_key ON attempts (request_key, outcome);
INSERT INTO requests VALUES ('a', x'7b7d'), ('b', x'7b7d'), ('c', x'7b7d');
INSERT INTO attempts VALUES (1, 'a', 'r1', 'uncertain', NULL, NULL, 'cut', NULL, 10.0);
INSERT INTO attempts VALUES (2, 'a', 'r2', 'answered', 200, x'41', NULL, 5.0, 20.0);
INSERT INTO attempts VALUES (3, 'b', 'r2', 'rejected', 400, x'6e6f', NULL, 5.0, 21.0);
INSERT INTO attempts VALUES (4, 'c', 'r2', 'in_flight', NULL, NULL, NULL, NULL, NULL);
"""


def asking(key: str, tokens: int = 100, usd: float = 1.0) -> PendingRequest:
    return PendingRequest(None, key, f"sample-{key}", b'{"model":"m"}', tokens, usd)


def record(journal: Journal, *ends: tuple[str, Outcome | None], sent: bool = True) -> list[int]:
    """Begin each key, and end it where an outcome is given. Returns the attempts."""

    async def write() -> list[int]:
        attempts = await journal.begin_attempts([asking(key) for key, _ in ends])
        for attempt, (_, outcome) in zip(attempts, ends, strict=True):
            if sent:
                journal.in_flight.add_attempt(attempt)
            if outcome:
                journal.record_outcome(attempt, outcome, lambda _: None)
        await journal.wait_for_disk()
        return attempts

    return asyncio.run(write())


ANSWER = Outcome("answered", 200, b"{}", None, 12.5)


def test_what_was_recorded_comes_back(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite", "run") as journal:
        record(journal, ("a", ANSWER), ("b", Outcome("rejected", 400, b"too long")), ("c", None))
        known = journal.load_states(["a", "b", "c", "never"])
        assert sorted(known) == ["a", "b", "c"]
        assert known["a"].has_answer
        assert known["b"].attempts[0].status == 400
        assert known["c"].attempts == []
        assert known["c"].asked_now
        assert journal.newest_answers(["a", "b"])["a"].latency_ms == 12.5
        assert journal.last_response_text("b") == "HTTP 400: too long"


def test_f02_after_a_death_what_was_on_the_wire_is_uncertain_and_the_rest_was_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path, "run") as journal:
        record(journal, ("sent", None))
        record(journal, ("queued", None), sent=False)
    with Journal(path, "run") as journal:
        ends = {key: known.attempts[0] for key, known in journal.load_states(["sent", "queued"]).items()}
        assert (ends["sent"].outcome, ends["sent"].error) == ("uncertain", PROCESS_DIED)
        assert ends["queued"].outcome == "not_sent"
        assert journal.uncertain_keys() == ["sent"]
        assert not journal.load_states(["sent"])["sent"].asked_now


def test_f08_after_a_power_loss_all_that_was_begun_is_uncertain(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path, "run") as journal:
        record(journal, ("queued", None), sent=False)
    wire = path.with_suffix(".inflight")
    wire.write_bytes(b"another boot".ljust(HEADER_BYTES, b"\0") + wire.read_bytes()[HEADER_BYTES:])
    with Journal(path, "run") as journal:
        assert journal.uncertain_keys() == ["queued"]


def test_spent_counts_what_may_have_been_billed_as_its_reservation(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.sqlite", "run") as journal:
        lost, bad = Outcome("uncertain", error="cut"), Outcome("rejected", 500, b"")
        attempts = record(journal, ("a", ANSWER), ("b", ANSWER), ("c", lost), ("d", bad))

        async def bill() -> None:
            journal.record_usage(attempts[0], 5, 10, 15, 0.25)
            await journal.wait_for_disk()

        asyncio.run(bill())
        assert journal.total_usage() == Usage(3, 15 + 100 + 100, 0.25 + 1.0 + 1.0)
        assert journal.unbilled_answers("m") == [(attempts[1], b"{}", 1.0)]
        assert journal.unbilled_answers("another") == []  # it has a price of its own
    with Journal(tmp_path / "b.sqlite", "run") as journal:
        assert journal.usage_of_all_journals() == Usage(3, 215, 2.25)
        assert journal.total_usage() == Usage(0, 0, 0.0)


def test_a_journal_that_cannot_be_read_is_not_counted_as_nothing_spent(tmp_path: Path) -> None:
    (tmp_path / "torn.sqlite").write_bytes(b"no database at all" * 100)
    with ReadOnlyJournal(tmp_path / "teacher.sqlite") as journal, pytest.raises(StorageFailed, match=r"torn\.sqlite"):
        journal.usage_of_all_journals()
    (tmp_path / "torn.sqlite").unlink()
    with sqlite3.connect(tmp_path / "old.sqlite") as db:
        db.executescript(OLD_SCHEMA)
    db.close()
    with ReadOnlyJournal(tmp_path / "teacher.sqlite") as journal:
        assert journal.usage_of_all_journals().requests == 3


def test_the_slowest_commit_is_counted_from_a_row_and_not_from_idleness(tmp_path: Path) -> None:
    async def write(journal: Journal) -> None:
        await journal.wait_for_disk()
        await asyncio.sleep(0.3)
        await journal.wait_for_disk()

    path = tmp_path / "j.sqlite"
    with Journal(path, "run") as journal:
        asyncio.run(write(journal))
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT slowest_commit_ms FROM runs").fetchone()[0] < 250
    db.close()


def test_the_journal_of_the_first_release_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(OLD_SCHEMA)
    db.close()
    with Journal(path, "run") as journal:
        assert journal.newest_answers(["a", "b"])["a"].raw == b"A"
        assert [end.outcome for end in journal.load_states(["a"])["a"].attempts] == [
            "uncertain", "answered",
        ]  # fmt: skip
        assert journal.uncertain_keys() == ["a", "c"]
        assert record(journal, ("d", ANSWER)) == [5]


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path, "run"):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StorageFailed, match="version 99, expected 2"):
        Journal(path, "run")


def test_the_wire_forgets_what_has_ended(tmp_path: Path) -> None:
    wire = InFlight(tmp_path / "w", 2)
    wire.add_attempt(7)
    wire.add_attempt(8)
    assert wire.is_full
    wire.remove_attempt(7)
    assert load_orphaned_ids(tmp_path / "w") == {8}
    wire.close()
    assert load_orphaned_ids(tmp_path / "none") is None


def test_another_run_waits_for_the_journal_and_reuses_its_answers_the_same_run_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, opened = tmp_path / "teacher.sqlite", list[bool]()

    def wait_for_it() -> None:
        with Journal(path, "second", owner="data/runs/b") as journal:
            opened.append(journal.load_states(["a"])["a"].has_answer)

    with Journal(path, "first", owner="data/runs/a") as journal:
        for owner in ("data/runs/a", ""):
            with pytest.raises(Locked, match="wait for it or stop it"):
                Journal(path, "again", owner=owner)
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        time.sleep(2 * LOCK_POLL_SECONDS)
        assert opened == []
        record(journal, ("a", Outcome("answered", 200, b"A")))
    waiting.join(10)
    assert opened == [True], "answered before, not to be sent again"
    assert f"pid {os.getpid()} on {socket.gethostname()}, for data/runs/a is collecting" in capfd.readouterr().out
