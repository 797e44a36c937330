"""Load the answers to held-out prompts: of the teacher and of the student before and after."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import SCORE_REASONS, TABLES
from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.tables import read_batches, read_table

SOURCES = {"teacher": "collected_dataset", "before": "baseline_outputs", "after": "student_outputs"}
TITLES = {"teacher": "Teacher", "before": "Student before training", "after": "Student after training"}


@dataclass
class HeldOutPrompt:
    """One prompt. A source that is missing below has not answered, or was not evaluated."""

    sample_id: str
    user_prompt: str
    template_name: str
    answers: dict[str, str | None] = field(default_factory=dict)  # by source
    reasons: dict[str, list[str]] = field(default_factory=dict)  # by source, against the answer; empty = it passes
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def load_prompts(storage: Storage) -> list[HeldOutPrompt]:
    """The prompts that the trained student answered. Raises InputError (65) for a bad table."""
    if not storage.path_of(SOURCES["after"]).exists():
        return []
    rows = read_table(storage.path_of(SOURCES["after"]), TABLES[SOURCES["after"]]).to_pylist()
    names = ("sample_id", "user_prompt", "template_name")
    prompts = {row["sample_id"]: HeldOutPrompt(**{n: row[n] for n in names}) for row in rows}
    columns = ["sample_id", "attempt", "teacher_output"]
    for source, key in SOURCES.items():
        for row in _load_first_answers(storage.path_of(key), key, prompts, columns):
            prompts[row["sample_id"]].answers[source] = row["teacher_output"]
        _load_gate_results(storage.path_of("evaluation") / source, source, prompts)
    return list(prompts.values())


def _load_first_answers(
    path: Path, key: str, prompts: dict[str, HeldOutPrompt], columns: list[str]
) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    samples = pa.array(prompts, pa.string())
    first_answers: list[dict[str, Any]] = []
    for rows in read_batches(path, TABLES[key], columns=columns):
        # Repaired answers have higher attempts: teacher and student are compared on the first.
        mask = pc.and_(pc.is_in(rows["sample_id"], samples), pc.equal(rows["attempt"], 0))
        first_answers += rows.filter(mask).to_pylist()
    return first_answers


def _load_gate_results(folder: Path, source: str, prompts: dict[str, HeldOutPrompt]) -> None:
    key = ["sample_id", "attempt"]
    for row in _load_first_answers(folder / "kept.parquet", "filtered_dataset", prompts, key):
        prompts[row["sample_id"]].reasons[source] = []
    columns = [*key, "rejection_reasons"]
    for row in _load_first_answers(folder / "rejections.parquet", "rejections", prompts, columns):
        prompts[row["sample_id"]].reasons[source] = row["rejection_reasons"]
    columns = [*key, "check", "value"]
    for row in _load_first_answers(folder / "judge.parquet", "judge_checks", prompts, columns):
        if row["check"] in SCORE_REASONS and row["value"] is not None:
            prompts[row["sample_id"]].scores.setdefault(source, {})[row["check"]] = row["value"]


def blind_order(sample_id: str, annotator: str, pair: tuple[str, str]) -> tuple[str, str]:
    """The pair in random order, left first; the same after a reload."""
    order = list(pair)
    random.Random(f"{sample_id}|{annotator}").shuffle(order)  # noqa: S311 - an order, not a secret
    return order[0], order[1]
