"""Answers to held-out prompts: the teacher's and the student's before and after training."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import TABLES
from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.tables import read_batches, read_table

SOURCES = {
    "teacher": "collected_dataset",
    "before": "baseline_outputs",
    "after": "student_outputs",
}
TITLES = {
    "teacher": "Teacher",
    "before": "Student before training",
    "after": "Student after training",
}
JUDGED = ("judge.factuality", "judge.reasoning")


@dataclass
class HeldOut:
    """One prompt. `answers`, `reasons` (against the answer; empty = it passes) and `scores` by
    source; a source that is not there has not answered, or was not looked at.
    """

    sample_id: str
    user_prompt: str
    template_name: str
    answers: dict[str, str | None] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def load(storage: Storage) -> list[HeldOut]:
    """The prompts that the trained student answered; none when it has not.

    Raises InputError (65) for a table that is not what it should be.
    """
    if not storage.path(SOURCES["after"]).exists():
        return []
    rows = read_table(storage.path(SOURCES["after"]), TABLES[SOURCES["after"]]).to_pylist()
    names = ("sample_id", "user_prompt", "template_name")
    found = {row["sample_id"]: HeldOut(**{n: row[n] for n in names}) for row in rows}
    for source, key in SOURCES.items():
        for row in _rows(storage.path(key), key, found, ["sample_id", "attempt", "teacher_output"]):
            found[row["sample_id"]].answers[source] = row["teacher_output"]
        _gates(storage.path("evaluation") / source, source, found)
    return list(found.values())


def _rows(
    path: Path, key: str, wanted: dict[str, HeldOut], columns: list[str]
) -> list[dict[str, Any]]:
    """First answers to the wanted prompts; none when there is no file."""
    if not path.exists():
        return []
    samples = pa.array(wanted, pa.string())
    found: list[dict[str, Any]] = []
    for rows in read_batches(path, TABLES[key], columns=columns):
        mask = pc.and_(pc.is_in(rows["sample_id"], samples), pc.equal(rows["attempt"], 0))
        found += rows.filter(mask).to_pylist()
    return found


def _gates(folder: Path, source: str, found: dict[str, HeldOut]) -> None:
    """What the same gates said about this source's answers (evaluation writes it)."""
    key = ["sample_id", "attempt"]
    for row in _rows(folder / "kept.parquet", "filtered_dataset", found, key):
        found[row["sample_id"]].reasons[source] = []
    columns = [*key, "rejection_reasons"]
    for row in _rows(folder / "rejections.parquet", "rejections", found, columns):
        found[row["sample_id"]].reasons[source] = row["rejection_reasons"]
    columns = [*key, "check", "value"]
    for row in _rows(folder / "judge.parquet", "judge_checks", found, columns):
        if row["check"] in JUDGED and row["value"] is not None:
            found[row["sample_id"]].scores.setdefault(source, {})[row["check"]] = row["value"]


def blind_order(sample_id: str, annotator: str, pair: tuple[str, str]) -> tuple[str, str]:
    """Who stands to the left: by chance, and the same after a reload."""
    order = list(pair)
    random.Random(f"{sample_id}|{annotator}").shuffle(order)  # noqa: S311 - an order, not a secret
    return order[0], order[1]
