"""Raw rows from whatever a person has: Parquet, JSONL, JSON, CSV, or a folder of .txt and .md.

Grain: one raw row (for a folder, one file, as `{"text": ..., "id": name without ending}`).
Raises InputMissing (66) for a missing path and InputError (65) for a file that cannot be read,
naming the row. Not covered: compressed files, nested folders' names as ids.
"""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.errors import InputError, InputMissing

TEXT_ENDINGS = (".txt", ".md")


@dataclass(frozen=True)
class RawRow:
    """`row` is 0-based in its file; for a folder it counts the files in name order."""

    file: str
    row: int
    values: dict[str, Any]

    def where(self) -> str:
        """For messages."""
        return f"{self.file}, row {self.row} (0-based)"


def read_raw(path: Path) -> Iterator[RawRow]:
    """The rows of `path`, in order, streamed where the format allows it."""
    if path.is_dir():
        yield from _folder(path)
        return
    if not path.exists():
        raise InputMissing(f"{path}: no such file or folder; pass --input PATH (or set input.path)")
    readers = {".parquet": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json}
    readers |= {".csv": _csv} | dict.fromkeys(TEXT_ENDINGS, _text)
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: cannot tell the format from the ending; expected one of "
            f"{', '.join(readers)} or a folder of {' and '.join(TEXT_ENDINGS)}"
        )
    try:
        for number, values in enumerate(readers[path.suffix.lower()](path)):
            yield RawRow(path.name, number, values)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}); convert it first") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(4096):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a complete Parquet file ({error})") from None


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        numbered = ((n, line) for n, line in enumerate(file) if line.strip())
        for number, line in numbered:
            yield _object(path, f"line {number + 1}", _loads(path, f"line {number + 1}", line))


def _json(path: Path) -> Iterator[dict[str, Any]]:
    values = _loads(path, "the file", path.read_text(encoding="utf-8-sig"))
    if not isinstance(values, list):
        raise InputError(f"{path}: expected a list of objects, found {type(values).__name__}")
    for number, value in enumerate(values):
        yield _object(path, f"item {number}", value)


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file)):
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}: row {number} has another number of cells than the header"
                    )
                yield {name: cell or None for name, cell in row.items()}
        except csv.Error as error:
            raise InputError(f"{path}: not a readable CSV file ({error})") from None


def _text(path: Path) -> Iterator[dict[str, Any]]:
    yield {"id": path.stem, "text": path.read_text(encoding="utf-8-sig")}


def _folder(path: Path) -> Iterator[RawRow]:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_ENDINGS)
    if not files:
        raise InputError(f"{path}: holds no {' or '.join(TEXT_ENDINGS)} file")
    for number, file in enumerate(files):
        name = file.relative_to(path)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error}); convert it first") from None
        yield RawRow(str(name), number, {"id": str(name.with_suffix("")), "text": text})


def _loads(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: {where} is not valid JSON ({error})") from None


def _object(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {where} is {type(value).__name__}, expected an object")
    return value
