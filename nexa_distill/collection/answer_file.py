"""Existing answers from a file, instead of requests to a teacher (`answers:`, --answers FILE).

The file is read like raw data (Parquet, JSONL, JSON, CSV). In the raw data itself, a row's answer
belongs to the row's prompt. In another file a row is the answer to the prompt with its `sample_id`,
or with its raw id (`task_id` or `id`). An answer counts as complete (finish_reason `stop`) and is
cleaned like any other; tokens, latency, cost and time stay null. Prompts without an answer are
rejected as `no_answer_in_file`; answers to other prompts are ignored.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_distill.collection.answers.extraction import Cleaner, build_cleaner
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import OUTPUTS, TABLES, UNANSWERED, Row
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.raw_data.columns import looks_like_answers
from nexa_distill.raw_data.files import RawRow, read_raw
from nexa_distill.raw_data.input_reading import is_blank
from nexa_distill.raw_data.prompts import number_text
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import read_batches, table_writer

ID_COLUMNS = ("sample_id", "task_id", "id")
INPUTS_TABLE = TABLES["raw_dataset"]
USUAL_COLUMN = "teacher_output"  # as in our own tables


def load_answers(path: Path, column: str | None = None) -> dict[str, str]:
    """Id -> answer. Raises InputError for a row without an answer, or two answers for one id.

    `column` None = `teacher_output`, or the one column that looks like answers.
    """
    answers: dict[str, str] = {}
    for row in read_raw(path):
        column = column or _choose_column(row)
        text = _answer_text(row, column)
        if text is None:
            raise InputError(f"{row.describe_location()}: column {column} is {row.values[column]!r:.60}, expected text")
        ids = [str(row.values[name]) for name in ID_COLUMNS if row.values.get(name) is not None]
        if not ids:
            raise InputError(
                f"{row.describe_location()}: none of the columns {', '.join(ID_COLUMNS)} is there, which say whose "
                "answer it is. Answers in the raw file itself, beside their prompts, need none: pass it as --input"
            )
        # Under each of its ids, because a prompt is looked up by either.
        for id_ in ids:
            if answers.setdefault(id_, text) != text:
                raise InputError(f"{row.describe_location()}: {id_} has another answer in an earlier row")
    if not answers:
        raise InputError(f"{path}: contains no answers")
    return answers


def _choose_column(row: RawRow) -> str:
    """The column with the answers. Raises InputError where it is not certain."""
    if USUAL_COLUMN in row.values:
        return USUAL_COLUMN
    likely = [name for name in row.values if looks_like_answers(name)]
    # `teacher_outputs` is a slip rather than another name.
    if len(likely) == 1 and not likely[0].startswith(USUAL_COLUMN):
        return likely[0]
    raise _no_column(row, USUAL_COLUMN)


def _no_column(row: RawRow, column: str) -> InputError:
    near = did_you_mean(column, row.values)
    return InputError(
        f"{row.describe_location()}: no column {column}{near}; found: {', '.join(row.values)}. Set answers.column"
    )


def _answer_text(row: RawRow, column: str) -> str | None:
    """The answer of a row, a number as text; None if it is null. Raises InputError."""
    if column not in row.values:
        raise _no_column(row, column)
    text = number_text(row.values[column])
    if text is not None and not isinstance(text, str):
        raise InputError(f"{row.describe_location()}: column {column} is {text!r:.60}, expected text")
    return text


class _Answers:
    """The answers of `answers.path`, looked up by prompt: by row in the raw data, else by id."""

    def __init__(self, config: DistillConfig) -> None:
        self.path, self._by_row = Path(str(config.answers.path)), config.has_answers_in_input
        self._texts: Mapping[Any, str] = self._load_rows(config) if self._by_row else self._load_ids(config)
        if not self._texts:
            raise InputError(f"{self.path}: contains no answers")

    def _load_ids(self, config: DistillConfig) -> dict[str, str]:
        return load_answers(self.path, config.answers.column)

    def _load_rows(self, config: DistillConfig) -> dict[tuple[str, int], str]:
        """(source_file, source_row) -> answer; rows without an answer are left out."""
        rows = itertools.islice(read_raw(self.path, config.input.delimiter), config.input.limit)
        column, texts = config.answers.column, dict[tuple[str, int], str]()
        for row in rows:
            column = column or _choose_column(row)
            # JSON lines may leave a key out where it is null.
            text = _answer_text(row, column) if column in row.values else None
            if text is not None and not is_blank(text):
                texts[row.file, row.row] = text
        return texts

    def __len__(self) -> int:
        return len(self._texts)

    def text_of(self, row: Row) -> str | None:
        if self._by_row:
            return self._texts.get((row["source_file"], row["source_row"]))
        return self._texts.get(row["sample_id"], self._texts.get(row["task_id"]))

    def why_none(self, row: Row) -> str:
        if self._by_row:
            return f"{row['source_file']}, row {row['source_row']} (0-based): has no answer"
        return f"{self.path}: no row with its sample_id or with {row['task_id']}"

    def first_key(self) -> str:
        return str(next(iter(self._texts)))

    def describe_unused(self, used: int) -> str:
        """A part of a sentence about the answers of rows that dedup left out; empty if there are none."""
        unused = len(self) - used if self._by_row else 0
        return f"; {unused} more belong to rows that dedup left out" if unused else ""


def write_answers(config: DistillConfig, src: Path, dst: Path, unanswered: Path, stage: StageRun) -> None:
    """Write and seal `dst` and `unanswered`. Raises InputError if no prompt has an answer."""
    answers, cleaner = _Answers(config), build_cleaner(config)
    with (
        table_writer(dst, OUTPUTS) as good,
        table_writer(unanswered, UNANSWERED) as bad,
        Progress("answers of a file", len(answers)) as progress,
    ):
        for rows in _input_rows(src):
            pairs = [(row, answers.text_of(row)) for row in rows]
            outputs = [_output_row(row, text, config, cleaner) for row, text in pairs if text is not None]
            missing = [_unanswered_row(row, answers.why_none) for row, text in pairs if text is None]
            good.write(pa.Table.from_pylist(outputs, schema=OUTPUTS))
            bad.write(pa.Table.from_pylist(missing, schema=UNANSWERED))
            progress.add(len(outputs))
        # No match at all means the file of another dataset. Raised inside the writers, so nothing is replaced.
        if not good.rows:
            raise InputError(
                f"{answers.path}: no answer to any of the {bad.rows} prompts of {src}; the first prompt is "
                f"{next(_input_rows(src))[0]['task_id']}, the file has {answers.first_key()}"
            )
    total = good.rows + bad.rows
    for file in (unanswered, dst):
        stage.seal_output(file, rows_in=total, rejected=bad.rows)
    unused = answers.describe_unused(good.rows)
    print(f"teacher: {good.rows} of {total} prompts have an answer in {answers.path}{unused} -> {dst}")


def _output_row(row: Row, answer: str, config: DistillConfig, cleaner: Cleaner) -> Row:
    text, raw = cleaner(row["template_name"], answer)
    output = {"attempt": 0, "teacher_output": text, "raw_output": raw, "finish_reason": "stop"}
    return {**row, **output, "model_id": config.answers.model_id}


def _unanswered_row(row: Row, why_none: Callable[[Row], str]) -> Row:
    reason = {"rejection_reason": "no_answer_in_file", "detail": why_none(row)}
    return {**row, "attempt": 0, "request_key": None, **reason}


def _input_rows(src: Path) -> Iterator[list[Row]]:
    return (batch.to_pylist() for batch in read_batches(src, INPUTS_TABLE, batch_rows=2048))
