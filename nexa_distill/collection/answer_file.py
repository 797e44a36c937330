"""Existing answers from a file, instead of requests to a teacher (`answers:`, --answers FILE).

The file is read like raw data (Parquet, JSONL, JSON, CSV). A row is the answer to the prompt with
its `sample_id`, or with its raw id (`task_id` or `id`). It counts as complete (finish_reason
`stop`) and is cleaned like any other; tokens, latency, cost and time stay null. Prompts without an
answer are rejected as `no_answer_in_file`; answers to other prompts are ignored.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from nexa_distill.collection.answers.extraction import Cleaner, build_cleaner
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import OUTPUTS, TABLES, UNANSWERED, Row
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.raw_data.files import read_raw
from nexa_distill.raw_data.prompts import number_text
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import read_batches, table_writer

ID_COLUMNS = ("sample_id", "task_id", "id")
INPUTS_TABLE = TABLES["raw_dataset"]


def load_answers(path: Path, column: str) -> dict[str, str]:
    """Id -> answer. Raises InputError for a row without an answer, or two answers for one id."""
    answers: dict[str, str] = {}
    for row in read_raw(path):
        if column not in row.values:
            near = did_you_mean(column, row.values)
            raise InputError(
                f"{row.describe_location()}: no column {column}{near}; found: {', '.join(row.values)}. "
                "Set answers.column"
            )
        text = number_text(row.values[column])
        if not isinstance(text, str):
            raise InputError(f"{row.describe_location()}: column {column} is {text!r:.60}, expected text")
        ids = [str(row.values[name]) for name in ID_COLUMNS if row.values.get(name) is not None]
        if not ids:
            raise InputError(f"{row.describe_location()}: none of the columns {', '.join(ID_COLUMNS)} is there")
        # Under each of its ids, because a prompt is looked up by either.
        for id_ in ids:
            if answers.setdefault(id_, text) != text:
                raise InputError(f"{row.describe_location()}: {id_} has another answer in an earlier row")
    if not answers:
        raise InputError(f"{path}: contains no answers")
    return answers


def write_answers(config: DistillConfig, src: Path, dst: Path, unanswered: Path, stage: StageRun) -> None:
    """Write and seal `dst` and `unanswered`. Raises InputError if no prompt has an answer."""
    path, cleaner = Path(str(config.answers.path)), build_cleaner(config)
    answers = load_answers(path, config.answers.column)
    with (
        table_writer(dst, OUTPUTS) as good,
        table_writer(unanswered, UNANSWERED) as bad,
        Progress("answers of a file", len(answers)) as progress,
    ):
        for rows in _input_rows(src):
            texts = [answers.get(row["sample_id"], answers.get(row["task_id"])) for row in rows]
            pairs = list(zip(rows, texts, strict=True))
            outputs = [_output_row(row, text, config, cleaner) for row, text in pairs if text is not None]
            missing = [_unanswered_row(row, path) for row, text in pairs if text is None]
            good.write(pa.Table.from_pylist(outputs, schema=OUTPUTS))
            bad.write(pa.Table.from_pylist(missing, schema=UNANSWERED))
            progress.add(len(outputs))
        # No match at all means the file of another dataset. Raised inside the writers, so nothing is replaced.
        if not good.rows:
            raise InputError(
                f"{path}: no answer to any of the {bad.rows} prompts of {src}; the first prompt is "
                f"{next(_input_rows(src))[0]['task_id']}, the file has {next(iter(answers))}"
            )
    total = good.rows + bad.rows
    for file in (unanswered, dst):
        stage.seal_output(file, rows_in=total, rejected=bad.rows)
    print(f"teacher: {good.rows} of {total} prompts have an answer in {path} -> {dst}")


def _output_row(row: Row, answer: str, config: DistillConfig, cleaner: Cleaner) -> Row:
    text, raw = cleaner(row["template_name"], answer)
    output = {"attempt": 0, "teacher_output": text, "raw_output": raw, "finish_reason": "stop"}
    return {**row, **output, "model_id": config.answers.model_id}


def _unanswered_row(row: Row, path: Path) -> Row:
    detail = f"{path}: no row with its sample_id or with {row['task_id']}"
    reason = {"rejection_reason": "no_answer_in_file", "detail": detail}
    return {**row, "attempt": 0, "request_key": None, **reason}


def _input_rows(src: Path) -> Iterator[list[Row]]:
    return (batch.to_pylist() for batch in read_batches(src, INPUTS_TABLE, batch_rows=2048))
