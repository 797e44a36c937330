"""Read the first rows of the raw data and settle what they decide: whether it contains answers.

Only `HEAD_ROWS` rows are read, so it is quick for large files (a `.json` file is read as a whole).
Raises InputError (65) for unreadable rows and for columns with more than one reading.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nexa_distill.errors import InputError
from nexa_distill.raw_data.columns import PASSED_ON, PLACEHOLDER, ColumnLayout, find_answer_column, looks_like_answers
from nexa_distill.raw_data.files import RawRow, read_raw
from nexa_distill.raw_data.hub import copy_dataset, is_hub_source
from nexa_distill.raw_data.prompts import RowReader, number_text
from nexa_distill.settings.pipeline import Columns, DistillConfig, with_flags
from nexa_distill.settings.tasks import load_tasks, task_of_prompts, with_task_of_prompts

HEAD_ROWS = 100
SHOWN_CHARACTERS = 800  # of a text in a plan


@dataclass(frozen=True)
class InputReading:
    """The first rows, whether there are no others, and the columns of their prompts and answers."""

    rows: list[RawRow]
    is_whole: bool
    prompt: str | None  # None = the rows are texts
    answer: str | None  # None = they have no answers

    @property
    def column_names(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    def describe_columns(self, config: DistillConfig, layout: ColumnLayout) -> str:
        """Which columns are read as what, and which are not read."""
        roles = {name: role for role, name in _column_roles(config, layout)}
        taken = [n if roles[n] == n else f"{n} ({roles[n]})" for n in self.column_names if n in roles]
        left = [name for name in self.column_names if name not in roles]
        line = f"{Path(config.input.path).name}, {self._count_rows()}: {', '.join(taken)}"
        return line + (f"; not read: {', '.join(left)}" if left else "")

    def describe_count(self, answer: str | None) -> str:
        """How many rows there are, and how many of them have nothing in the column `answer`."""
        empty = sum(is_blank(row.values.get(str(answer))) for row in self.rows)
        return self._count_rows() + (f" ({empty} empty: not answered)" if empty else "")

    def _count_rows(self) -> str:
        rows = f"{len(self.rows)} row{'' if len(self.rows) == 1 else 's'}"
        return rows if self.is_whole else f"the first {rows}"


def _column_roles(config: DistillConfig, layout: ColumnLayout) -> Iterator[tuple[str, str | None]]:
    """(role, column) of a row with this layout; the first role of a column comes last."""
    columns, is_prompt = with_task_of_prompts(config.defaults), layout.prompt is not None
    yield from ((name, name) for name in PASSED_ON)
    yield from (("id", name) for name in columns.id_columns)
    yield "split", config.split.column
    yield "known right answer", columns.reference_column
    if is_prompt:
        yield "task type", columns.task_type_column
        yield "context", layout.context or columns.context_column
        yield from (("in the template", name) for name in PLACEHOLDER.findall(columns.prompt_template))
    yield "behind the prompt", layout.addition
    yield "answer", config.answers.column if config.has_answers_in_input else None
    yield "prompt" if is_prompt else "source text", layout.source


def shorten_middle(text: str) -> str:
    """At most about `SHOWN_CHARACTERS` of a text: its beginning and its end, where instructions are."""
    half, left = SHOWN_CHARACTERS // 2, len(text) - SHOWN_CHARACTERS
    return f"{text[:half]}\n[... {left:,} more characters ...]\n{text[-half:]}" if left > 0 else text


def is_blank(value: object) -> bool:
    """Whether an answer's cell holds no text: null, not-a-number or white space."""
    text = number_text(value)
    return text is None or (isinstance(text, str) and not text.strip())


def read_input(config: DistillConfig) -> InputReading:
    """What the first rows of `input.path` contain. Raises InputError or InputMissing."""
    limit = min(HEAD_ROWS, config.input.limit or HEAD_ROWS)
    path = Path(config.input.path)
    read = _read_file_head if path.is_file() else _read_head
    rows = read(path, config.input.delimiter, limit + 1, path.stat().st_mtime_ns if path.is_file() else 0)
    head, columns = rows[:limit], with_task_of_prompts(config.defaults)
    if not any(row.values for row in head):  # nothing says yet what the columns are
        return InputReading(head, True, None, None)
    where, values = head[0].describe_location(), [row.values for row in head]
    prompt = RowReader(columns, lambda _: None, config.answers.column).layout_of(head[0]).prompt
    has_answers = prompt is not None and (config.answers.path is None or config.has_answers_in_input)
    is_whole = len(rows) <= limit or limit == config.input.limit
    taken = columns if prompt is None else columns.model_copy(update={"prompt_column": prompt})
    answer = find_answer_column(values, taken, config.answers.column, where) if has_answers else None
    return InputReading(head, is_whole, prompt, answer)


def describe_unusable(reading: InputReading, answer: str | None) -> Iterator[str]:
    """A line for each column that looks like answers and holds no texts, where nothing else is the answer."""
    for name in () if answer or reading.prompt is None else reading.column_names:
        value = next((row.values[name] for row in reading.rows if row.values.get(name) is not None), "")
        if looks_like_answers(name) and isinstance(value, list | dict | bool):
            kind = type(value).__name__
            yield f"column {name} looks like answers and holds {kind} values: write them as texts, and they are taken"


def _read_head(path: Path, delimiter: str | None, count: int, _changed: int) -> list[RawRow]:
    return list(itertools.islice(read_raw(path, delimiter), count))


# A plan asks several times, and a large JSON file is read as a whole each time.
_read_file_head = lru_cache(maxsize=4)(_read_head)


def settle_input(config: DistillConfig) -> DistillConfig:
    """`config` with the answers that its raw data contains, as the answers or as the references.

    A dataset of the Hub is copied first, and `input.path` is then its copy. Otherwise unchanged if
    there is no raw data, it has no answers, or they come from another file.
    """
    if is_hub_source(config.input.path):
        copy = copy_dataset(config.input.path, config.storage.path_of("hub_datasets"))
        config = with_flags(config, {"input": {"path": str(copy)}})
    if not Path(config.input.path).exists():
        return config
    reading = read_input(config)
    _check_tasks(config.defaults, reading)
    if reading.answer is None:
        return config
    if config.answers.path or config.answers.from_input:
        return with_flags(config, {"answers": {"path": config.input.path, "column": reading.answer}})
    if config.defaults.reference_column in reading.column_names:
        return config
    return with_flags(config, {"defaults": {"reference_column": reading.answer}})


def _check_tasks(columns: Columns, reading: InputReading) -> None:
    """Raises InputError if the tasks cannot be asked of such rows."""
    if reading.prompt is None:
        for task in load_tasks(columns):
            if task.takes_prompts and "{context}" in task.prompt:
                raise InputError(
                    f"task {task.name}: its prompt has {{prompt}} and {{context}}, and the data holds texts without "
                    "prompts; leave {prompt} out, or set defaults.prompt_column"
                )
        return
    if "," in columns.task_type:
        raise InputError(
            f"--task {columns.task_type}: column {reading.prompt} holds prompts, which are asked once; name one task"
        )
    own = task_of_prompts(columns)
    if own and own.is_own and not own.takes_prompts:
        raise InputError(
            f"task {own.name}: its prompt has no {{prompt}}, and column {reading.prompt} holds prompts: they would not "
            "be asked. Write {prompt} into it (and {context} for the column context), or set "
            "defaults.prompt_column: null to make prompts from texts"
        )


def describe_answers(config: DistillConfig) -> str | None:
    """One line about the answers in the raw data of a settled `config`; None if it has none."""
    if not config.has_answers_in_input:
        return None
    reading, column = read_input(config), config.answers.column
    name = Path(config.input.path).name
    where = f"column {column} of {name}, {reading.describe_count(column)}" if column else name
    line = f"answers: {where}; no teacher is asked"
    hint = ". --provider NAME asks a teacher instead, and keeps them as the reference"
    return line + (hint if config.answers.from_input else "")
