"""The sample of data/raw/text2sql: what its generator writes, queries that run, and two honest halves of the test."""

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nexa_distill import canonicalize, dedup
from nexa_distill.contracts import TABLES
from nexa_distill.execution.sql import Clock, Database
from nexa_distill.orchestration.planning import Request, make_plan
from nexa_distill.settings.pipeline import load_config, with_flags
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.tables import read_table
from tests.library_data import DATABASE, FOLDER, QUESTIONS
from tests.library_data.database import SCHEMA, generate_rows, read_rows, write_database
from tests.library_data.questions import SEEN, UNSEEN, write_questions
from tests.library_data.skeleton import query_skeleton
from tests.support.databases import LIMITS
from tests.support.workspace import ROOT, workspace

CONFIG = ROOT / "configs/text2sql.yaml"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
TEST = [row for row in ROWS if row["split"] == "test"]


def skeletons(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    return {query_skeleton(row["gold_sql"]) for row in rows}


def wrong_halves(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Test questions whose half is not what their form of query says."""
    rows = list(rows)
    trained = skeletons(row for row in rows if row["split"] != "test")
    return [
        row["instruction"]
        for row in rows
        if row["split"] == "test" and (row["domain"] == SEEN) != (query_skeleton(row["gold_sql"]) in trained)
    ]


def test_the_shipped_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    command = "run python -m tests.library_data --write"
    assert write_questions() == ROWS, command
    assert read_rows(DATABASE) == generate_rows(), command
    write_database(tmp_path / "again.sqlite")
    with sqlite3.connect(tmp_path / "again.sqlite") as again, sqlite3.connect(DATABASE) as shipped:
        schemas = [base.execute("SELECT sql FROM sqlite_master").fetchall() for base in (again, shipped)]
    assert schemas[0] == schemas[1], command


def test_the_sample_has_the_promised_size() -> None:
    tables = generate_rows()
    assert len(tables) >= 5
    assert 2000 <= sum(map(len, tables.values())) <= 5000
    assert len(ROWS) >= 240
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 500_000
    assert [[row["domain"] for row in TEST].count(half) for half in (SEEN, UNSEEN)] == [33, 33]


def test_every_gold_query_runs_and_finds_something() -> None:
    database = Database(DATABASE, LIMITS)
    results = {row["task_id"]: database.fetch_rows(row["gold_sql"], Clock(2.0)) for row in ROWS}
    empty = [name for name, cells in results.items() if not any(cell not in (None, 0) for r in cells for cell in r)]
    assert empty == []


def test_the_prompt_shows_the_columns_of_the_database() -> None:
    with sqlite3.connect(":memory:") as shown, sqlite3.connect(DATABASE) as real:
        shown.executescript(SCHEMA)
        columns = [
            {t: [c[1] for c in base.execute(f"PRAGMA table_info({t})")] for t in generate_rows()}
            for base in (shown, real)
        ]
    assert columns[0] == columns[1]
    assert {row["schema"] for row in ROWS} == {SCHEMA}


def test_one_half_of_the_test_has_forms_of_query_that_training_has_not() -> None:
    assert wrong_halves(ROWS) == []
    assert len(skeletons(row for row in TEST if row["domain"] == UNSEEN)) >= 15
    assert len(skeletons(ROWS)) >= 100


@pytest.mark.parametrize("half", [SEEN, UNSEEN])
def test_a_question_in_the_wrong_half_is_noticed(half: str) -> None:
    place = next(place for place, row in enumerate(ROWS) if row["split"] == "test" and row["domain"] == half)
    other = UNSEEN if half == SEEN else SEEN
    assert wrong_halves([*ROWS[:place], ROWS[place] | {"domain": other}, *ROWS[place + 1 :]])


def test_a_trained_query_with_another_value_spoils_the_half_of_new_forms() -> None:
    question = next(row for row in TEST if row["domain"] == UNSEEN)
    spelling = re.sub(r"'[^']*'", "'another'", question["gold_sql"]).replace("SELECT", "select")
    assert wrong_halves([*ROWS, question | {"split": "train", "gold_sql": spelling}])


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("SELECT title FROM book WHERE year > 1990", "SELECT b.pages AS p FROM loan AS b WHERE b.id > 3", True),
        ("SELECT COUNT(*) FROM book", "SELECT COUNT(*) FROM loan AS l", True),
        ("SELECT title FROM book WHERE year > 1990", "SELECT title FROM book WHERE year < 1990", False),
        ("SELECT title FROM book ORDER BY year", "SELECT title FROM book ORDER BY year DESC", False),
        ("SELECT MAX(year) FROM book", "SELECT MIN(year) FROM book", False),
        ("SELECT COUNT(*) FROM book", "SELECT COUNT(DISTINCT genre) FROM book", False),
        ("SELECT name FROM branch WHERE town = 'A'", "SELECT name FROM branch WHERE town = 'A' OR town = 'B'", False),
    ],
)
def test_a_skeleton_is_the_form_without_names_and_values(one: str, other: str, is_same: bool) -> None:
    assert (query_skeleton(one) == query_skeleton(other)) == is_same


def test_no_sentence_occurs_twice_and_no_wording_is_on_two_sides() -> None:
    assert len({row["instruction"] for row in ROWS}) == len(ROWS)
    wordings: dict[str, set[str]] = {}
    for row in ROWS:
        wordings.setdefault(row["task_id"][:-1], set()).add(row["split"])
    assert {len(splits) for splits in wordings.values()} == {1}


def test_dedup_keeps_every_question_in_its_split(tmp_path: Path) -> None:
    made = workspace(tmp_path, extends=str(CONFIG))
    canonicalize.run(made.load())
    dedup.run(made.load())
    kept = read_table(made.path("raw_dataset"), TABLES["raw_dataset"]).to_pylist()
    assert {row["task_id"]: row["split"] for row in kept} == {row["task_id"]: row["split"] for row in ROWS}


def test_the_configuration_runs_alone_and_starts_no_teacher(tmp_path: Path) -> None:
    made = workspace(tmp_path, extends=str(CONFIG), provider="embedded")
    steps = make_plan(Request(made.config), tmp_path)
    assert "teacher" not in [step.session for step in steps]
    assert all(step.runs for step in steps)
    config = load_config(CONFIG)
    assert Path(config.answers.path or "") == Path(config.input.path) == QUESTIONS.relative_to(ROOT)
    assert load_yaml(ROOT / config.student, StudentConfig).generate.split == "test"


OTHER = {"input": {"path": "other.jsonl"}}


@pytest.mark.parametrize(
    ("flags", "answers"),
    [
        ({}, str(QUESTIONS.relative_to(ROOT))),
        ({"input": {"path": str(QUESTIONS)}}, str(QUESTIONS.relative_to(ROOT))),
        (OTHER, None),
        (OTHER | {"answers": {"path": "mine.jsonl"}}, "mine.jsonl"),
    ],
)
def test_another_input_does_not_get_the_answers_of_the_sample(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], answers: str | None
) -> None:
    monkeypatch.chdir(ROOT)
    assert with_flags(load_config(CONFIG), flags).answers.path == answers


def test_another_input_is_planned_with_its_teacher_in_every_session_that_asks(tmp_path: Path) -> None:
    made = workspace(tmp_path, extends=str(CONFIG), provider="embedded")
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    steps = {step.session: step for step in make_plan(Request(made.config, input=other), tmp_path)}
    assert steps["teacher"].runs
    for session in ("data_gen", "regeneration"):
        assert steps[session].command[-2:] == ["--input", str(other)]
