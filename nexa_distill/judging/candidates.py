"""The answers to be judged, in batches, validated before any request is sent.

Answers rejected by the exec gate are not sent to the judges.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import TABLES, Row
from nexa_distill.judging.canaries import canary_rows
from nexa_distill.judging.rubrics import PROMPT_SECTIONS
from nexa_distill.storage.answer_index import AnswerIndex
from nexa_distill.storage.tables import read_batches

Flags = npt.NDArray[np.bool_]

SOURCE, CHECKED = TABLES["rule_filtered"], TABLES["exec_checks"]
COLUMNS = ["sample_id", "attempt", *PROMPT_SECTIONS]
BATCH_ROWS = 2048


@dataclass
class Candidates:
    """The answers to be judged, and the canaries."""

    path: Path
    refused: Flags  # per answer of the file, whether the exec gate rejected it
    rows: int = 0  # the other answers
    shown: int = 0  # those of them that have a text
    teachers: set[str] = field(default_factory=set)  # the models that wrote them
    # `canary_rows` of the prompts with the lowest `sample_id`.
    canaries: list[Row] = field(default_factory=list)

    def answer_batches(self) -> Iterator[list[Row]]:
        """The answers that were not rejected, in file order, then the canaries."""
        for batch in self.answer_tables(COLUMNS):
            yield batch.to_pylist()
        if self.canaries:
            yield self.canaries

    def answer_tables(self, columns: list[str]) -> Iterator[pa.Table]:
        start = 0
        for batch in read_batches(self.path, SOURCE, batch_rows=BATCH_ROWS, columns=columns):
            end = start + batch.num_rows
            yield batch.filter(pa.array(~self.refused[start:end]))
            start = end


def has_text(row: Row) -> bool:
    return bool(row["teacher_output"] and row["teacher_output"].strip())


def load_candidates(path: Path, canary_prompts: int, execution: Path | None = None) -> Candidates:
    """Read `path` once; `execution` are the exec gate's checks of its answers.

    Raises InputMissing (66), InputError (65) naming column, row or key.
    """
    candidates, prompts = Candidates(path, _find_rejected(path, execution)), dict[str, Row]()
    for batch in candidates.answer_tables([*COLUMNS, "model_id"]):
        candidates.teachers.update(batch["model_id"].unique().to_pylist())
        rows = batch.drop_columns("model_id").to_pylist()
        candidates.rows += len(rows)
        candidates.shown += sum(map(has_text, rows))
        # The lowest ids: a choice that new rows seldom change, so few canaries are asked again.
        prompts |= {row["sample_id"]: row for row in reversed(rows)}
        prompts = {key: prompts[key] for key in heapq.nsmallest(canary_prompts, prompts)}
    candidates.canaries = canary_rows(prompts.values())
    return candidates


def _find_rejected(path: Path, execution: Path | None) -> Flags:
    answers = AnswerIndex([path], SOURCE)
    rejected = np.zeros(len(answers), np.bool_)
    columns = ["sample_id", "attempt", "ok"]
    for rows in read_batches(execution, CHECKED, columns=columns) if execution else ():
        # A check that could not be made never passes.
        failed = rows.filter(pc.invert(pc.fill_null(rows["ok"], False)))
        positions = answers.find_positions(failed)
        rejected[positions[positions >= 0]] = True
    return rejected
