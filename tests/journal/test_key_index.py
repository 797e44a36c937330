"""The index of a journal's keys: what is behind it is found too, and nothing twice."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from nexa_distill.journal import key_index
from nexa_distill.journal.journal import Journal, PendingRequest, ReadOnlyJournal
from nexa_distill.journal.key_index import KeyIndex
from nexa_distill.text.hashing import sha256_text


def begin(journal: Journal, keys: Sequence[str]) -> None:
    async def write() -> None:
        for start in range(0, len(keys), 64):
            part = keys[start : start + 64]
            await journal.begin_attempts([PendingRequest(None, key, key, b"{}", 1, 0.0) for key in part])

    asyncio.run(write())


def upto(path: Path) -> int:
    with sqlite3.connect(path) as db:
        (found,) = db.execute("SELECT upto FROM indexed").fetchone()
        (rows,) = db.execute("SELECT count(*) FROM request_keys").fetchone()
    db.close()
    assert rows == found
    return int(found)


def test_every_request_is_found_whether_the_index_has_reached_it_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyIndex.catch_up, "__defaults__", (200,))
    path, keys = tmp_path / "j.sqlite", [sha256_text(str(n)) for n in range(1000)]
    with Journal(path, "run") as journal:
        begin(journal, keys)
        assert len(journal._keys._behind) < 1000  # it does not grow with the rows
        assert [known.id for known in journal.load_states(keys).values()] == list(range(1, 1001))
        with ReadOnlyJournal(path) as reader:
            assert reader.load_states(keys).keys() == set(keys)
        assert not journal.load_states([sha256_text("never")])
    assert 200 <= upto(path) <= 1000
    with Journal(path, "run") as journal:
        assert journal.load_states(keys).keys() == set(keys)
    assert upto(path) == 1000


def test_keys_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    keys = ["a" * 20 + end for end in "xyz"]
    with Journal(tmp_path / "j.sqlite", "run") as journal:
        begin(journal, keys)
    with Journal(tmp_path / "j.sqlite", "run") as journal:
        assert journal.load_states(keys[:1]).keys() == {keys[0]}
        assert journal.load_states(keys).keys() == set(keys)


def test_a_request_that_is_there_already_is_not_begun_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite", "run") as journal:
        begin(journal, ["a"])
        with pytest.raises(ValueError, match="in the journal already"):
            begin(journal, ["a"])


def test_a_reader_whose_index_moves_on_still_finds_all(tmp_path: Path) -> None:
    path, keys = tmp_path / "j.sqlite", [sha256_text(str(n)) for n in range(300)]
    with Journal(path, "run") as journal:
        begin(journal, keys[:150])
        with ReadOnlyJournal(path) as reader:
            begin(journal, keys[150:])
            key_index.index_all_keys(sqlite3.connect(path, isolation_level=None))
            assert reader.load_states(keys).keys() == set(keys)
