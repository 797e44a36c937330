"""What a run of the tests leaves for `--full`, and that nothing is left for ever."""

import pytest

from tests import sweeps
from tests.support.workspace import ROOT

CASES = list("abcdefghijk")


def test_all_cases_come_round_and_each_run_takes_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sweeps.FULL, "")
    seen = []
    for day in range(740000, 740004):
        monkeypatch.setenv(sweeps.SEED, str(day))
        taken = sweeps.some("letters", CASES, 3, why="-")
        assert taken == sorted(taken) == sweeps.some("letters", CASES, 3, why="-")
        assert len(taken) == 3
        seen += taken
    assert set(seen) == set(CASES)


def test_full_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sweeps.FULL, "1")
    assert sweeps.some("letters", CASES, 3, why="-") == CASES
    assert sweeps.fewer("kills", 2, 8, why="-") == 8


def test_contributing_has_the_table_of_what_waits_for_full() -> None:
    assert sweeps.table() in (ROOT / "CONTRIBUTING.md").read_text(), "run python -m tests.sweeps"
