"""The answers that are judged: read in batches, validated before anything is asked."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_distill.contracts import TABLES
from nexa_distill.handoff import check_unique, read_batches
from nexa_distill.judging.canaries import canary_rows
from nexa_distill.judging.rubrics import PARTS

Row = dict[str, Any]

SOURCE = TABLES["rule_filtered"]
COLUMNS = ["sample_id", "attempt", *PARTS]
BATCH_ROWS = 2048


@dataclass
class Submissions:
    """`rows` are all answers, `shown` those with a text; `teachers` are the models that wrote them.

    `canaries`: the rows of `canary_rows` for the prompts with the lowest `sample_id`, a choice that
    new rows seldom change.
    """

    path: Path
    rows: int = 0
    shown: int = 0
    teachers: set[str] = field(default_factory=set)
    canaries: list[Row] = field(default_factory=list)

    def batches(self) -> Iterator[list[Row]]:
        """Every answer in file order, then the canaries."""
        for batch in read_batches(self.path, SOURCE, batch_rows=BATCH_ROWS, columns=COLUMNS):
            yield batch.to_pylist()
        if self.canaries:
            yield self.canaries


def has_text(row: Row) -> bool:
    """Whether there is something to judge."""
    return bool(row["teacher_output"] and row["teacher_output"].strip())


def submissions(path: Path, canary_prompts: int) -> Submissions:
    """Read `path` once. Raises InputMissing (66), InputError (65) naming column, row or key."""
    found, keys, prompts = Submissions(path), list[pa.Table](), dict[str, Row]()
    columns = [*COLUMNS, "model_id"]
    for batch in read_batches(path, SOURCE, batch_rows=BATCH_ROWS, columns=columns):
        keys.append(batch.select(list(SOURCE.unique)))
        found.teachers.update(batch["model_id"].unique().to_pylist())
        rows = batch.drop_columns("model_id").to_pylist()
        found.shown += sum(map(has_text, rows))
        prompts |= {row["sample_id"]: row for row in reversed(rows)}
        prompts = {key: prompts[key] for key in heapq.nsmallest(canary_prompts, prompts)}
    if keys:
        check_unique(path, pa.concat_tables(keys), SOURCE.unique)
        found.rows = sum(map(len, keys))
    found.canaries = canary_rows(prompts.values())
    return found
