"""Convert raw rows that contain prompts to rows of contracts.CANONICAL.

A row is identified by its id (`defaults.id_columns`), or by its content if it has none. Raises
InputError (65) naming the raw row and the column.
"""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from nexa_distill.contracts import canonical_input, sample_id
from nexa_distill.errors import InputError
from nexa_distill.raw_data.columns import PASSED_ON, PLACEHOLDER, ColumnLayout, find_layout
from nexa_distill.raw_data.files import RawRow, Tell
from nexa_distill.settings.pipeline import Columns
from nexa_distill.text.hashing import sha256_text
from nexa_distill.text.ngrams import normalize_document

LARGEST_EXACT = 2.0**53  # from here a float64 no longer tells neighbouring integers apart
WAY = (
    ": a conversation is not read; write the user's message into a column user_prompt and the "
    "system's into system_prompt"
)
Passed = dict[str, str | None]


class RowReader:
    """Layout, identity and copied columns of raw rows. `tell` gets each note once.

    `answer`: the column of the rows' answers, if they have one.
    """

    def __init__(self, columns: Columns, tell: Tell, answer: str | None = None) -> None:
        self.columns, self._tell, self._answer = columns, tell, answer
        self._told: set[str] = set()
        self._layouts: dict[tuple[tuple[str, type], ...], ColumnLayout] = {}
        self._contents: dict[str, tuple[str, str]] = {}  # id -> (content, where it was read)

    def layout_of(self, row: RawRow) -> ColumnLayout:
        """How `row` is read; notes about it are passed to `tell`."""
        # A layout depends on names and types alone, so it is found once per shape of row.
        shape = tuple((name, type(value)) for name, value in row.values.items())
        layout = self._layouts.get(shape)
        if layout is None:
            where = row.describe_location()
            layout = self._layouts[shape] = find_layout(row.values, self.columns, where, self._answer)
            for note in layout.notes:
                self.tell_once(note)
        return layout

    def tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)

    def passed_columns(self, row: RawRow) -> Passed:
        """The columns that are copied to every prompt of the row; numbers become text."""
        kept: Passed = {name: text_or_none(row, name, numbers=True) for name in PASSED_ON}
        reference = self.columns.reference_column
        return {**kept, "reference": text_or_none(row, reference, numbers=True)}

    def row_identity(self, row: RawRow, text: str, content: tuple[Any, ...]) -> str:
        """The task id of the row. Raises InputError if an earlier row has it with other content."""
        ids = ((name, row.values.get(name)) for name in self.columns.id_columns)
        named = next((name for name, value in ids if value is not None and str(value).strip()), None)
        if named is None:
            return f"doc-{sha256_text(text)[:12]}"
        identity, digest = str(row.values[named]), sha256_text(repr(content))
        first, where = self._contents.setdefault(identity, (digest, row.describe_location()))
        if first != digest:
            raise InputError(
                f"{row.describe_location()}: {named} {identity!r} is also the id of an earlier row "
                f"with other content ({where}); give each row an id of its own. If {named} names a "
                "document of several rows, write defaults: {id_columns: []}: rows are then named "
                "by content"
            )
        return identity

    def prompt_row(self, row: RawRow, layout: ColumnLayout) -> dict[str, Any]:
        columns, prompt = self.columns, required_text(row, str(layout.prompt))
        if _is_conversation(prompt):
            raise InputError(f"{row.describe_location()}: column {layout.prompt} holds messages as JSON{WAY}")
        addition = addition_text(row, layout.addition) if layout.addition else None
        if addition and addition.strip():
            prompt = f"{prompt}\n\n{addition}"
        context, passed = text_or_none(row, layout.context or columns.context_column), self.passed_columns(row)
        task = text_or_none(row, columns.task_type_column) or columns.task_type
        identity = self.row_identity(row, prompt, (prompt, context, task, sorted(passed.items())))
        full = self._fill_template(row, layout, prompt, context, passed)
        document = normalize_document(context if context and context.strip() else prompt)
        return canonical_row(row, identity, task, full, context, passed, document)

    def _fill_template(
        self, row: RawRow, layout: ColumnLayout, prompt: str, context: str | None, passed: Passed
    ) -> str:
        """Fill `defaults.prompt_template`: each {column} is replaced, once, by its text."""
        template = self.columns.prompt_template
        shown = "{context}" in template or not context or context.strip() in prompt
        if not shown and layout.with_context:
            template = template.replace("{prompt}", "{context}\n\n{prompt}")
        elif not shown:
            self.tell_once(
                f"column {self.columns.context_column} is carried along and not shown to the "
                "teacher: defaults.prompt_template has no {context}"
            )
        if template == "{prompt}":
            return prompt
        texts = {name: value for name, value in row.values.items() if isinstance(value, str)}
        parts = {**texts, **passed, "context": context, "prompt": prompt}
        return PLACEHOLDER.sub(lambda place: _template_part(row, place[1], parts), template)


def _is_conversation(text: str) -> bool:
    """Whether all of it is a JSON list of messages, as a CSV file has them in a cell."""
    # Most prompts end here, without being parsed.
    if not text.lstrip().startswith(("[{", "[ {", "[\n")):
        return False
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(turns) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns)


def _template_part(row: RawRow, name: str, parts: dict[str, str | None]) -> str:
    text = parts.get(name)
    if text is None:
        names = ", ".join(part for part, value in parts.items() if value is not None)
        raise InputError(
            f"{row.describe_location()}: defaults.prompt_template contains {{{name}}}, and the row has none; "
            f"known: {names}"
        )
    return text


def canonical_row(
    row: RawRow, task_id: str, task: str, prompt: str, context: str | None, passed: Passed, document: str
) -> dict[str, Any]:
    """A row of contracts.CANONICAL with its key; `document` is the folded source text."""
    content = {
        "task_id": task_id,
        "template_name": task,
        "user_prompt": prompt,
        "context": context,
        "source_file": row.file,
        "source_row": row.row,
        "document_id": sha256_text(document),
        **passed,
    }
    return {"sample_id": sample_id(task_id, canonical_input(content)), **content}


def required_text(row: RawRow, column: str) -> str:
    """The text in a column. Raises InputError when it is null or empty."""
    text = text_or_none(row, column)
    if text is None or not text.strip():
        state = "null" if text is None else "empty"
        raise InputError(f"{row.describe_location()}: column {column} is {state}, expected text")
    return text


def addition_text(row: RawRow, column: str) -> str | None:
    """The text in Alpaca's `input`; an object or a list in it as JSON, an empty one as None."""
    value = row.values.get(column)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str) if value else None
    return text_or_none(row, column, numbers=True)


def text_or_none(row: RawRow, column: str, *, numbers: bool = False) -> str | None:
    """The text in a column; with `numbers` also a number, as text. Raises InputError."""
    value = row.values.get(column)
    if numbers and not isinstance(value, str | None):
        value = number_text(value)
    if value is not None and not isinstance(value, str):
        turns = isinstance(value, list) and value and isinstance(value[0], dict)
        raise InputError(
            f"{row.describe_location()}: column {column} is {type(value).__name__} ({value!r:.60}), "
            f"expected text{WAY if turns else ''}"
        )
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{row.describe_location()}: column {column} contains half of a surrogate pair at character "
                f"{error.start}, which no file can store; correct the text"
            ) from None
    return value


def number_text(value: Any) -> Any:
    """A number as text, None for NaN; any other value unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return value
    if value != value:  # NaN, with which pandas marks a missing number
        return None
    # pandas writes 5 as 5.0 in a column with nulls.
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_EXACT:
        return str(int(value))
    return str(value)


def prompt_rows(raw: Iterable[RawRow], columns: Columns, tell: Tell) -> Iterator[dict[str, Any]]:
    """Canonical rows of rows that contain prompts. Raises InputError for a row without one."""
    reader = RowReader(columns, tell)
    for row in raw:
        layout = reader.layout_of(row)
        if layout.prompt is None:
            raise InputError(
                f"{row.describe_location()}: column {layout.source} holds a text and no prompt; run `python -m "
                "nexa_distill.canonicalize --src FILE` and `python -m nexa_distill.dedup` first, "
                "or set defaults.prompt_column"
            )
        yield reader.prompt_row(row, layout)
