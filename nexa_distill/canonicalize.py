"""Raw rows become canonical prompts.

Reads:  `input.path` (see `raw_input.py`), `defaults.prompts`/TASK.txt
Writes: `storage.canonical` (contracts.CANONICAL): one row per prompt, duplicates included
Keeps:  every raw row; a row that cannot become a prompt is an error (65), never skipped

A raw file with `defaults.prompt_column` holds prompts that already exist, and
`defaults.prompt_template` is laid around each. Otherwise the text in
`defaults.context_column` (or `text_column`) is cut into chunks of at most `chunking.max_tokens`
words and each chunk becomes one prompt per task type in `defaults.tasks`.

Run: python -m nexa_distill.canonicalize [--src PATH] [--dst FILE] [--limit N]
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from nexa_distill import cli
from nexa_distill.config import Chunking, Columns, DistillConfig, load_config, with_flags
from nexa_distill.contracts import CANONICAL, canonical_input, sample_id, sha256_text
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.handoff import table_writer
from nexa_distill.manifests import StageRun
from nexa_distill.raw_input import RawRow, read_raw
from nexa_distill.shingles import fold
from nexa_distill.text.words import VERSION, word_spans

ID_COLUMNS = ("task_id", "id", "sample_id")
PASSED_ON = ("domain", "system_prompt", "schema", "gold_sql", "database", "tests")
BATCH_ROWS = 4096


def chunks(text: str, chunking: Chunking) -> list[str]:
    """Windows of at most `max_tokens` words that share `overlap_tokens`; a short text is itself."""
    words = word_spans(text)
    if len(words) <= chunking.max_tokens:
        return [text]
    step = chunking.max_tokens - chunking.overlap_tokens
    windows = (words[i : i + chunking.max_tokens] for i in range(0, len(words), step))
    fresh = (w for i, w in enumerate(windows) if i == 0 or len(w) > chunking.overlap_tokens)
    return [text[window[0][0] : window[-1][1]] for window in fresh]


def canonical_rows(
    raw: Iterable[RawRow], columns: Columns, chunking: Chunking, templates: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Rows of contracts.CANONICAL. Raises InputError naming the raw row and column."""
    seen: dict[str, str] = {}
    for row in raw:
        source = _source_column(row, columns)
        text = _text(row, source)
        identity = _raw_id(row) or f"doc-{sha256_text(text)[:12]}"
        digest = sha256_text(repr(sorted(row.values.items(), key=lambda item: item[0])))
        if seen.setdefault(identity, digest) != digest:
            raise InputError(
                f"{row.where()}: id {identity!r} stands in an earlier row with other content; "
                "give each task an id of its own"
            )
        passed = {name: _text_or_none(row, name) for name in PASSED_ON}
        passed["reference"] = _text_or_none(row, columns.reference_column)
        if source == columns.prompt_column:
            yield _prompt(row, identity, text, passed, columns)
        else:
            yield from _prompts_from(row, identity, text, passed, chunking, templates)


def _prompt(
    row: RawRow, identity: str, prompt: str, passed: dict[str, Any], columns: Columns
) -> dict[str, Any]:
    context = _text_or_none(row, columns.context_column)
    task = _text_or_none(row, columns.task_type_column) or columns.task_type
    document = fold(context or prompt)
    parts = {**passed, "context": context, "prompt": prompt}
    return _row(row, identity, task, _filled(row, columns, parts), context, passed, document)


def _filled(row: RawRow, columns: Columns, parts: dict[str, str | None]) -> str:
    """`defaults.prompt_template` with what stands in braces replaced, once, by the row's text."""

    def part(match: re.Match[str]) -> str:
        text = parts.get(match[1])
        if text is None:
            raise InputError(
                f"{row.where()}: defaults.prompt_template asks for {match[0]}, and the row has none"
                f"; known: {', '.join(parts)}"
            )
        return text

    return re.sub(r"\{(\w+)\}", part, columns.prompt_template)


def _prompts_from(
    row: RawRow, identity: str, text: str, passed: dict[str, Any], chunking: Chunking,
    templates: dict[str, str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    document, pieces = fold(text), chunks(text, chunking)
    for number, piece in enumerate(pieces):
        part = f"{identity}:chunk-{number}" if len(pieces) > 1 else identity
        for task, template in templates.items():
            prompt = template.replace("{context}", piece)
            yield _row(row, f"{part}:{task}", task, prompt, piece, passed, document)


def _row(
    row: RawRow, task_id: str, task: str, prompt: str, context: str | None,
    passed: dict[str, Any], document: str,
) -> dict[str, Any]:  # fmt: skip
    made = {
        "task_id": task_id, "template_name": task, "user_prompt": prompt, "context": context,
        "source_file": row.file, "source_row": row.row, "document_id": sha256_text(document),
        **passed,
    }  # fmt: skip
    return {"sample_id": sample_id(task_id, canonical_input(made)), **made}


def _source_column(row: RawRow, columns: Columns) -> str:
    wanted = (columns.prompt_column, columns.context_column, columns.text_column)
    for name in wanted:
        if name in row.values:
            return name
    hints = (did_you_mean(name, row.values) for name in wanted)
    hint = next((h for h in hints if h), "")
    raise InputError(
        f"{row.where()}: none of the columns {', '.join(wanted)} is there{hint}; "
        f"found: {', '.join(row.values)}. Rename the column, or set its name in `defaults:`"
    )


def _text(row: RawRow, column: str) -> str:
    text = _text_or_none(row, column)
    if text is None or not text.strip():
        found = "null" if text is None else "empty"
        raise InputError(f"{row.where()}: column {column} is {found}, expected text")
    return text


def _text_or_none(row: RawRow, column: str) -> str | None:
    value = row.values.get(column)
    if value is not None and not isinstance(value, str):
        raise InputError(
            f"{row.where()}: column {column} is {type(value).__name__} ({value!r:.60}), "
            "expected text"
        )
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{row.where()}: column {column} holds half of a surrogate pair at character "
                f"{error.start}, which no file can store; correct the text"
            ) from None
    return value


def _raw_id(row: RawRow) -> str | None:
    found = (row.values[name] for name in ID_COLUMNS if row.values.get(name) is not None)
    identity = next(found, None)
    return None if identity is None else str(identity)


def load_templates(columns: Columns) -> dict[str, str]:
    """Task type -> prompt text with its `{context}` placeholder. Raises InputError."""
    folder = Path(columns.prompts)
    texts = {}
    for task in columns.tasks:
        file = folder / f"{task}.txt"
        if not file.is_file():
            known = sorted(p.stem for p in folder.glob("*.txt"))
            raise InputError(
                f"{file}: no prompt for task type {task}{did_you_mean(task, known)}; "
                "write the file, or change defaults.tasks"
            )
        try:
            texts[task] = file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error})") from None
        if "{context}" not in texts[task]:
            raise InputError(
                f"{file}: holds no {{context}} placeholder, so no text would be asked about"
            )
    return texts


def settings(config: DistillConfig) -> dict[str, Any]:
    """What decides the canonical prompts, next to the raw data."""
    return {
        "limit": config.input.limit,
        "passed_on": PASSED_ON,
        "columns": config.defaults.model_dump(exclude={"prompts"}),
        "templates": load_templates(config.defaults),
        "chunking": config.chunking.model_dump(),
        "words": VERSION,
    }


def run(config: DistillConfig, dst: Path | None = None) -> None:
    """Write `storage.canonical` (or `dst`) from `input.path`, unless it is up to date."""
    if config.chunking.overlap_tokens >= config.chunking.max_tokens:
        raise InputError(
            f"chunking.overlap_tokens is {config.chunking.overlap_tokens}: it must be less than "
            f"chunking.max_tokens ({config.chunking.max_tokens})"
        )
    src, dst = Path(config.input.path), dst or config.storage.path("canonical")
    if not src.exists():
        next(read_raw(src))
    stage = StageRun("canonicalize", config.storage, inputs=[src], settings=settings(config))
    if stage.is_current(dst):
        print(f"canonicalize: {dst} is up to date")
        return
    raw = itertools.islice(read_raw(src), config.input.limit)
    rows = canonical_rows(raw, config.defaults, config.chunking, load_templates(config.defaults))
    with table_writer(dst, CANONICAL) as out:
        for batch in _batches(rows):
            out.write(pa.Table.from_pylist(batch, schema=CANONICAL))
        if not out.rows:
            raise InputError(f"{src}: holds no rows")
    stage.seal(dst, rows_in=out.rows, rejected=0)
    print(f"canonicalize: {out.rows} prompts from {src} -> {dst}")


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        yield batch


def main() -> int:
    """Command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--src", metavar="PATH", help="raw data (default: input.path)")
    parser.add_argument("--dst", type=Path, metavar="FILE", help="default: storage.canonical")
    parser.add_argument("--limit", type=cli.count, metavar="N", help="first N raw rows")
    args = parser.parse_args()
    flags = {"input": {"path": args.src, "limit": args.limit}}
    run(with_flags(load_config(args.config), flags), args.dst)
    return 0


if __name__ == "__main__":
    cli.run(main)
