"""Answers that exist already, in place of a teacher that is asked (`answers:`, --answers FILE).

The file is read like raw data (Parquet, JSONL, JSON, CSV). A row is the answer to the prompt with
its `sample_id`, or with its raw id (`task_id` or `id`). It is taken as complete (finish_reason
`stop`) and cleaned like any other; tokens, latency, cost and time are not known and stay null. A
prompt without an answer is set aside as `no_answer_in_file`; answers to other prompts are left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_distill.collection.answers.extraction import Cleaner, cleaner_of
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import OUTPUTS, TABLES, UNANSWERED
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.raw_data.files import read_raw
from nexa_distill.raw_data.prompts import number_text
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import read_batches, table_writer

ID_COLUMNS = ("sample_id", "task_id", "id")
INPUTS_TABLE = TABLES["raw_dataset"]
Row = dict[str, Any]


def load_answers(path: Path, column: str) -> dict[str, str]:
    """Id -> answer. Raises InputError naming the row that has none, or an id with two answers."""
    found: dict[str, str] = {}
    for row in read_raw(path):
        if column not in row.values:
            near = did_you_mean(column, row.values)
            raise InputError(
                f"{row.where()}: no column {column}{near}; found: {', '.join(row.values)}. "
                "Set answers.column"
            )
        text = number_text(row.values[column])
        if not isinstance(text, str):
            raise InputError(f"{row.where()}: column {column} is {text!r:.60}, expected text")
        ids = [str(row.values[name]) for name in ID_COLUMNS if row.values.get(name) is not None]
        if not ids:
            raise InputError(f"{row.where()}: none of the columns {', '.join(ID_COLUMNS)} is there")
        for id_ in ids:
            if found.setdefault(id_, text) != text:
                raise InputError(f"{row.where()}: {id_} has another answer in an earlier row")
    if not found:
        raise InputError(f"{path}: holds no answers")
    return found


def write_answers(
    config: DistillConfig, src: Path, dst: Path, unanswered: Path, stage: StageRun
) -> None:
    """Write and seal `dst` and `unanswered`. Raises InputError when no prompt has an answer."""
    path, cleaner = Path(str(config.answers.path)), cleaner_of(config)
    known = load_answers(path, config.answers.column)
    with (
        table_writer(dst, OUTPUTS) as good, table_writer(unanswered, UNANSWERED) as bad,
        Progress("answers of a file", len(known)) as progress,
    ):  # fmt: skip
        for rows in _rows(src):
            pairs = [(row, known.get(row["sample_id"], known.get(row["task_id"]))) for row in rows]
            found = [_output(row, said, config, cleaner) for row, said in pairs if said is not None]
            missing = [_missing(row, path) for row, said in pairs if said is None]
            good.write(pa.Table.from_pylist(found, schema=OUTPUTS))
            bad.write(pa.Table.from_pylist(missing, schema=UNANSWERED))
            progress.add(len(found))
        if not good.rows:
            raise InputError(
                f"{path}: no answer to any of the {bad.rows} prompts of {src}; the first asks for "
                f"{next(_rows(src))[0]['task_id']}, the file has {next(iter(known))}"
            )
    total = good.rows + bad.rows
    for file in (unanswered, dst):
        stage.seal(file, rows_in=total, rejected=bad.rows)
    print(f"teacher: {good.rows} of {total} prompts have an answer in {path} -> {dst}")


def _output(row: Row, said: str, config: DistillConfig, cleaner: Cleaner) -> Row:
    text, raw = cleaner(row["template_name"], said)
    return {
        **row, "attempt": 0, "teacher_output": text, "raw_output": raw,
        "model_id": config.answers.model_id, "finish_reason": "stop",
    }  # fmt: skip


def _missing(row: Row, path: Path) -> Row:
    detail = f"{path}: no row with its sample_id or with {row['task_id']}"
    reason = {"rejection_reason": "no_answer_in_file", "detail": detail}
    return {**row, "attempt": 0, "request_key": None, **reason}


def _rows(src: Path) -> Iterator[list[Row]]:
    return (batch.to_pylist() for batch in read_batches(src, INPUTS_TABLE, batch_rows=2048))
