"""Canonicalize: raw rows to prompts.

Reads:  `input.path` (see `raw_data/files.py`), the prompts of the tasks (`settings/tasks.py`)
Writes: `storage.canonical` (contracts.CANONICAL): one row per prompt, duplicates included
Keeps:  every raw row; a row that cannot become a prompt is an error (65), as is an SQL task whose
        database cannot be opened (66 if it is missing)

A raw file with `defaults.prompt_column`, or with one column that looks like prompts
(`raw_data/columns.py`), contains complete prompts; `defaults.prompt_template` is put around each.
Otherwise the text in `defaults.context_column` (or `text_column`) is split into chunks of at most
`chunking.max_tokens` words, and each chunk becomes one prompt per task type in `defaults.tasks`. A
run of more than `LONGEST_RUN` characters without space (base64, minified JSON) counts as a word per
`RUN_WORD` characters.

Run: python -m nexa_distill.canonicalize [--src PATH] [--dst FILE] [--task LIST] [--limit N]
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_distill.console import cli
from nexa_distill.contracts import CANONICAL, SPLITS
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.execution.databases import database_folder, find_databases
from nexa_distill.raw_data.columns import PASSED_ON
from nexa_distill.raw_data.files import RawRow, Tell, read_raw
from nexa_distill.raw_data.input_reading import describe_unusable, is_blank, read_input, settle_input, shorten_middle
from nexa_distill.raw_data.prompts import Passed, RowReader, canonical_row, required_text
from nexa_distill.settings.pipeline import Chunking, Columns, DistillConfig, load_with_options
from nexa_distill.settings.tasks import (
    TaskFilters,
    load_system_prompts,
    load_tasks,
    own_tasks_path,
    own_tasks_record,
    task_of_prompts,
    with_task_of_prompts,
)
from nexa_distill.storage.atomic import read_json_object, write_json
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import table_writer
from nexa_distill.text.ngrams import normalize_document
from nexa_distill.text.words import VERSION, word_spans

BATCH_ROWS = 4096
LONGEST_RUN, RUN_WORD = 256, 6


def split_chunks(text: str, chunking: Chunking) -> list[str]:
    """Windows of at most `max_tokens` words that overlap by `overlap_tokens`."""
    words = [part for span in word_spans(text) for part in _parts(*span)]
    if len(words) <= chunking.max_tokens:
        return [text]
    step = chunking.max_tokens - chunking.overlap_tokens
    windows = (words[i : i + chunking.max_tokens] for i in range(0, len(words), step))
    # A last window that contains only the overlap adds nothing.
    new = (w for i, w in enumerate(windows) if i == 0 or len(w) > chunking.overlap_tokens)
    return [text[window[0][0] : window[-1][1]] for window in new]


def _parts(start: int, end: int) -> list[tuple[int, int]]:
    """The word, or pieces of `RUN_WORD` characters if it is longer than `LONGEST_RUN`."""
    if end - start <= LONGEST_RUN:
        return [(start, end)]
    return [(at, min(at + RUN_WORD, end)) for at in range(start, end, RUN_WORD)]


def canonical_rows(
    raw: Iterable[RawRow],
    columns: Columns,
    chunking: Chunking,
    templates: dict[str, str],
    tell: Tell = lambda _: None,
    split_column: str | None = None,
    *,
    answer: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of contracts.CANONICAL. Raises InputError naming the raw row and column.

    `tell` gets one line for each thing that the user should know about how columns are read;
    `answer` is the column of the rows' answers, if they have one.
    """
    reader = RowReader(columns, tell, answer)
    splits = RawSplits(split_column, tell) if split_column else None
    for row in raw:
        split = splits.read_split(row) if splits else None
        for prompt in _prompts_of(row, reader, chunking, templates):
            yield prompt | {"raw_split": split}


class RawSplits:
    """The split that a raw column names; null if the raw data has no such column."""

    def __init__(self, column: str, tell: Tell) -> None:
        self.column, self._tell = column, tell
        self._is_present: bool | None = None  # unknown before the first row

    def read_split(self, row: RawRow) -> str | None:
        """Raises InputError for another value, and for a column that only some rows have or whose name is misspelt."""
        near = "" if self.column in row.values else did_you_mean(self.column, row.values)
        if self._is_present is None:
            self._is_present = self.column in row.values or bool(near)
            if not self._is_present:
                self._tell(f"no column {self.column} (split.column): the split is a hash of the duplicate cluster")
        if not self._is_present and self.column not in row.values:
            return None
        value = row.values.get(self.column)
        if value not in SPLITS or not self._is_present:
            state = f"is {value!r:.60}" if self.column in row.values else f"is missing{near}"
            raise InputError(
                f"{row.describe_location()}: column {self.column} {state}, expected {', '.join(SPLITS[:-1])} or "
                f"{SPLITS[-1]} in every row; correct the raw data, or set split.column: null to split by shares"
            )
        return str(value)


def _prompts_of(
    row: RawRow, reader: RowReader, chunking: Chunking, templates: dict[str, str]
) -> Iterator[dict[str, Any]]:
    layout = reader.layout_of(row)
    if layout.prompt is not None:
        yield reader.prompt_row(row, layout)
    else:
        text, passed = required_text(row, layout.source), reader.passed_columns(row)
        identity = reader.row_identity(row, text, (text, sorted(passed.items())))
        yield from _prompts_from(row, identity, text, passed, chunking, templates)


def _prompts_from(
    row: RawRow, identity: str, text: str, passed: Passed, chunking: Chunking, templates: dict[str, str]
) -> Iterator[dict[str, Any]]:
    document, pieces = normalize_document(text), split_chunks(text, chunking)
    for number, piece in enumerate(pieces):
        # A text of one chunk keeps the id of its row, whatever the length of chunks is.
        part = f"{identity}:chunk-{number}" if len(pieces) > 1 else identity
        for task, template in templates.items():
            prompt = template.replace("{context}", piece)
            yield canonical_row(row, f"{part}:{task}", task, prompt, piece, passed, document)


def load_templates(columns: Columns) -> dict[str, str]:
    """Task type -> prompt text with its `{context}` placeholder. Raises InputError."""
    return {task.name: task.text_template for task in load_tasks(columns)}


def settings(config: DistillConfig) -> dict[str, Any]:
    """The values that determine the canonical prompts, besides the raw data."""
    templates = load_templates(config.defaults)
    columns = with_task_of_prompts(config.defaults).model_dump(exclude={"prompts", "tasks"})
    return {
        "limit": config.input.limit,
        "delimiter": config.input.delimiter,
        "passed_on": PASSED_ON,
        "columns": columns | {"tasks": [*templates]},
        "templates": templates,
        "chunking": config.chunking.model_dump(),
        "words": VERSION,
        "longest_run": [LONGEST_RUN, RUN_WORD],
        **({"split_column": config.split.column} if config.split.column else {}),
    }


def preview_input(config: DistillConfig) -> Iterator[str]:
    """Lines for a plan, from the first rows: the columns that are read, and the first prompt.

    Raises as `run` would for these rows, so that unsuitable data is refused before anything starts.
    """
    _check_chunking(config.chunking)
    notes, reading = list[str](), read_input(config)
    if not reading.rows:
        raise InputError(f"{config.input.path}: holds no rows")
    if not reading.column_names:
        yield f"input: {config.input.path}: its first rows have no columns"
        return
    layout = RowReader(config.defaults, lambda _: None, _answer_column(config)).layout_of(reading.rows[0])
    rows = list(_rows_of(config, reading.rows, notes.append))
    find_databases(_database_names(rows, config), database_folder(config.execution.databases, Path(config.input.path)))
    yield f"input: {reading.describe_columns(config, layout)}"
    # The first line has what was recognized already.
    yield from (f"input: {note}" for note in notes if not note.startswith("the prompt is column"))
    yield from (f"input: {line}" for line in describe_unusable(reading, _answer_column(config)))
    task = rows[0]["template_name"]
    system = rows[0]["system_prompt"] or load_system_prompts(config).find_prompt(task)
    answer = reading.rows[0].values.get(_answer_column(config) or "")
    parts = {"system": system, "user": rows[0]["user_prompt"], "answer": None if is_blank(answer) else str(answer)}
    yield from _describe_tasks(config, dict.fromkeys(row["template_name"] for row in rows), layout.prompt)
    yield f"first prompt, of task type {task}:"
    for name, text in parts.items():
        if text is not None:
            yield f"  {name}: " + shorten_middle(text).replace("\n", f"\n{' ' * (len(name) + 4)}")


def _describe_tasks(config: DistillConfig, task_types: Iterable[str], prompt_column: str | None) -> Iterator[str]:
    """How answers are filtered, and that prompts are asked as they are where a task has its own."""
    task = task_of_prompts(config.defaults)
    if prompt_column and task and not task.takes_prompts:
        yield f"task {task.name}: the prompts in column {prompt_column} are asked as they are"
    presets, filters = dict[str, list[str]](), TaskFilters(config)
    for name in task_types:
        presets.setdefault(filters.preset_of(name), []).append(name)
    parts = "; ".join(f"{preset} for {', '.join(names)}" for preset, names in presets.items())
    yield f"filters: preset {parts} (`preset:` in {config.filters} chooses another)"


def _answer_column(config: DistillConfig) -> str | None:
    return config.answers.column if config.has_answers_in_input else None


def _rows_of(config: DistillConfig, raw: Iterable[RawRow], tell: Tell) -> Iterator[dict[str, Any]]:
    columns, templates = with_task_of_prompts(config.defaults), load_templates(config.defaults)
    answer, split = _answer_column(config), config.split.column
    return canonical_rows(raw, columns, config.chunking, templates, tell, split, answer=answer)


def _check_chunking(chunking: Chunking) -> None:
    if chunking.overlap_tokens >= chunking.max_tokens:
        raise InputError(
            f"chunking.overlap_tokens is {chunking.overlap_tokens}: it must be less than "
            f"chunking.max_tokens ({chunking.max_tokens})"
        )


def run(config: DistillConfig, dst: Path | None = None) -> None:
    """Write `storage.canonical` (or `dst`) from `input.path`, unless it is up to date."""
    _check_chunking(config.chunking)
    src, dst = Path(config.input.path), dst or config.storage.path_of("canonical")
    if not src.exists():
        next(read_raw(src))
    if config.storage.key_of(dst):
        _record_own_tasks(config)
    stage = StageRun("canonicalize", config.storage, inputs=[src], settings=settings(config))
    if stage.is_current(dst):
        print(f"canonicalize: {dst} is up to date")
        return
    raw = itertools.islice(read_raw(src, config.input.delimiter, _print_line), config.input.limit)
    rows = _rows_of(config, raw, _print_line)
    databases = set[str]()
    with table_writer(dst, CANONICAL) as out:
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            out.write(pa.Table.from_pylist(batch, schema=CANONICAL))
            databases |= _database_names(batch, config)
        if not out.rows:
            raise InputError(f"{src}: holds no rows")
        # Without them the exec gate could not check answers that are paid for.
        find_databases(databases, database_folder(config.execution.databases, src))
    stage.seal_output(dst, rows_in=out.rows, rejected=0)
    print(f"canonicalize: {out.rows} prompts from {src} -> {dst}")


def _record_own_tasks(config: DistillConfig) -> None:
    """Write them beside the prompts, for the commands that follow and are not told of `--task`."""
    path, record = own_tasks_path(config.storage), own_tasks_record(config.defaults)
    if not record:
        path.unlink(missing_ok=True)
    elif read_json_object(path) != record:
        write_json(path, record)


def _database_names(rows: Sequence[dict[str, Any]], config: DistillConfig) -> set[str]:
    """The databases named by SQL rows. Raises InputError for an SQL row without one."""
    names = set[str]()
    for row in rows:
        if config.execution.tasks.get(row["template_name"]) == "sql":
            if row["database"] is None:
                task = row["template_name"]
                raise InputError(
                    f"{row['source_file']}, row {row['source_row']} (0-based): a {task} row names "
                    "no database; fill the column `database`, or set "
                    f"execution.tasks.{task} to null"
                )
            names.add(row["database"])
    return names


def _print_line(line: str) -> None:
    print(f"canonicalize: {line}")


def main() -> None:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--src", dest="input.path", metavar="PATH", help="raw data (default: input.path)")
    parser.add_argument("--dst", type=Path, metavar="FILE", help="default: storage.canonical")
    cli.add_task_option(parser)
    parser.add_argument("--limit", dest="input.limit", type=cli.positive_int, metavar="N", help="first N raw rows")
    args = parser.parse_args()
    run(settle_input(load_with_options(args)), args.dst)


if __name__ == "__main__":
    cli.run(main)
