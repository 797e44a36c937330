"""GeoQuery: every gold query is decided, luck is unmasked, right queries stay right."""

import json
from collections import Counter
from pathlib import Path

import pytest

from nexa_distill.execution.result_sets import is_empty_result
from nexa_distill.execution.sql import Clock, Database
from nexa_distill.execution.sql_checks import SqlChecks
from nexa_distill.storage.manifests import sha256_path
from tests.execution.geography_queries import LUCKY, NOT_CAUGHT, RIGHT
from tests.support.databases import GEOQUERY, LIMITS, checks, geography, said, verdict


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> SqlChecks:
    return checks(tmp_path_factory.mktemp("geography"), geography())


def gold_queries() -> list[str]:
    lines = (GEOQUERY / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["gold_sql"] for line in lines]


def test_every_gold_query_matches_itself_or_is_not_decidable(checker: SqlChecks) -> None:
    real = Database(geography(), LIMITS)
    told: Counter[str] = Counter()
    for query in gold_queries():
        empty = is_empty_result(real.fetch_rows(query, Clock(LIMITS.timeout_seconds)))
        found = said(verdict(checker, query, query))
        assert found == ("matches: not_decidable" if empty else "matches_perturbed"), query
        told[found] += 1
    assert told == {"matches_perturbed": 486, "matches: not_decidable": 9}


@pytest.mark.parametrize(("why", "gold", "answer"), LUCKY, ids=[why for why, _, _ in LUCKY])
def test_a_wrong_query_that_is_right_by_luck_is_caught(checker: SqlChecks, why: str, gold: str, answer: str) -> None:
    found = verdict(checker, answer, gold)
    assert [c.ok for c in found] == [True, True, False], found
    assert found[-1].reason == "lucky_match"


@pytest.mark.parametrize(("why", "gold", "answer"), NOT_CAUGHT, ids=[w for w, _, _ in NOT_CAUGHT])
def test_what_is_not_caught_is_known(checker: SqlChecks, why: str, gold: str, answer: str) -> None:
    """What this says of them stands in docs/baseline.md."""
    assert said(verdict(checker, answer, gold)) == "matches_perturbed"


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_a_right_query_stays_right_on_changed_data(checker: SqlChecks, gold: str, answer: str) -> None:
    assert said(verdict(checker, answer, gold)) == "matches_perturbed"


def test_the_public_database_is_what_it_was(checker: SqlChecks, tmp_path: Path) -> None:
    before = sha256_path(geography())
    for answer in ("DROP TABLE city", "WITH x AS (SELECT 1) UPDATE city SET population = 0"):
        assert not verdict(checker, answer)[0].ok
    assert sha256_path(geography()) == before
