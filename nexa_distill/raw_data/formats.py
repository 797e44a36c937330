"""Read the rows of one raw file by its ending: Parquet, JSON, JSON lines, CSV, text, compressed.

Grain: one row as a dict of column name to value; a text file is one row. Raises InputError (65)
naming file and row if it is unreadable, not UTF-8, or has two columns of one name.
"""

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.errors import InputError
from nexa_distill.raw_data.csv_rows import read_records
from nexa_distill.raw_data.front_matter import split_front_matter

Values = dict[str, Any]
MARKDOWN_ENDINGS = (".md", ".markdown")
TEXT_ENDINGS = (".txt", *MARKDOWN_ENDINGS)
HEAD_BYTES = 1000
BLANK = re.compile(r"\s*")


def _open_zstd(path: Path) -> IO[bytes]:
    # pyarrow reads zstd of several frames; Python has no zstd of its own before 3.14.
    stream: IO[bytes] = pa.input_stream(str(path), compression="zstd")
    return stream


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}


def split_endings(path: Path) -> tuple[str, str, str]:
    """(name without endings, format ending, compression ending), endings in lower case."""
    packed = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    inner = Path(path.name[: -len(packed)]) if packed else Path(path.name)
    return inner.stem, inner.suffix.lower(), packed


def has_rows(path: Path) -> bool:
    """Whether the ending is that of a table, which contains many rows."""
    _, ending, packed = split_endings(path)
    return ending in TABLE_READERS and not (packed and ending == ".parquet")


def has_text(path: Path) -> bool:
    return split_endings(path)[1] in TEXT_ENDINGS


def read_rows(path: Path, delimiter: str | None = None) -> Iterator[Values]:
    """Yield the rows of a file in order. `delimiter` of CSV; None = detected in its header."""
    _, ending, packed = split_endings(path)
    if packed and ending == ".parquet":
        raise InputError(f"{path}: Parquet is compressed inside; unpack it (without {packed})")
    if ending in TEXT_ENDINGS:
        yield read_text(path)
    elif ending in (".csv", ".tsv"):
        with open_text(path) as file:
            yield from read_records(path, file, delimiter or ("\t" if ending == ".tsv" else None))
    elif ending in TABLE_READERS:
        yield from TABLE_READERS[ending](path)
    else:
        raise InputError(
            f"{path}: cannot tell the format from the ending; expected one of "
            f"{', '.join((*TABLE_READERS, *TEXT_ENDINGS))} (all but Parquet also with "
            f"{', '.join(COMPRESSIONS)} behind it), or a folder of such files"
        )


def read_text(path: Path) -> Values:
    """A text as one row: `id` (its name without endings), `text`, and Markdown front matter."""
    with open_text(path, newline=None) as file:
        text = file.read()
    name, ending, _ = split_endings(path)
    metadata, body = split_front_matter(text) if ending in MARKDOWN_ENDINGS else ({}, text)
    return {"id": name, "text": body, **metadata}


@contextmanager
def open_text(path: Path, newline: str | None = "") -> Iterator[TextIO]:
    """Open the file decompressed. Raises InputError if it is truncated or not UTF-8."""
    packed = split_endings(path)[2]
    open_bytes = COMPRESSIONS.get(packed, partial(Path.open, mode="rb"))
    try:
        with open_bytes(path) as file:
            head = file.read(HEAD_BYTES)
        if head.count(b"\0") * 4 > len(head):  # UTF-16 of plain letters is UTF-8 with many zeros
            raise InputError(f"{path}: not UTF-8 (every second byte is 0: UTF-16?); convert it first")
        with (
            open_bytes(path) as file,
            # utf-8-sig, because Excel begins a UTF-8 file with a byte order mark.
            io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text,
        ):
            yield text
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}); convert it first") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        whole = f"a complete {packed} file" if packed else "readable"
        raise InputError(f"{path}: not {whole} ({error})") from None


def _read_parquet(path: Path) -> Iterator[Values]:
    try:
        parquet = pq.ParquetFile(path)
        names = parquet.schema_arrow.names
        if len(names) > len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{path}: column {twice} occurs twice; rename one of them")
        for batch in parquet.iter_batches(4096):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a complete Parquet file ({error})") from None


def _read_json_lines(path: Path) -> Iterator[Values]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.startswith("[") and number == 1:  # a list in a file named .jsonl
                break
            if line.strip():
                yield _require_object(path, f"line {number}", _decode_json(path, f"line {number}", line))
        else:
            return
    yield from _read_json(path)


def _read_json(path: Path) -> Iterator[Values]:
    """Read a list of objects, an object that contains one such list, or concatenated objects."""
    with open_text(path) as file:
        text = file.read()
    value, place = _decode_at(path, text, _blank_until(text, 0))
    # Text behind the first value: objects one after the other.
    if place < len(text):
        number = 0
        while True:
            yield _require_object(path, f"item {number}", value)
            if place >= len(text):
                return
            value, place = _decode_at(path, text, place)
            number += 1
    for number, item in enumerate(_find_items(path, value)):
        yield _require_object(path, f"item {number}", item)


def _find_items(path: Path, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    expected = f"{path}: expected a list of objects, found {type(value).__name__}"
    if not isinstance(value, dict):
        raise InputError(expected)
    lists = {
        key: items
        for key, items in value.items()
        if isinstance(items, list) and all(isinstance(item, dict) for item in items)
    }
    if len(lists) > 1:
        raise InputError(f"{expected} with the lists {', '.join(lists)}; write one of them to a file of its own")
    if not lists:
        raise InputError(f"{expected} without a list of objects; put it into [ ]")
    return next(iter(lists.values()))


def _blank_until(text: str, place: int) -> int:
    blank = BLANK.match(text, place)
    return blank.end() if blank else place


def _decode_at(path: Path, text: str, place: int) -> tuple[Any, int]:
    """The JSON value at `place`, and the position of the next one."""
    try:
        value, end = DECODER.raw_decode(text, place)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the file is not valid JSON ({error})") from None
    return value, _blank_until(text, end)


def _decode_json(path: Path, where: str, text: str) -> Any:
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {where} is not valid JSON ({error})") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> Values:
    values = dict(pairs)
    if len(values) < len(pairs):  # json itself silently keeps the last one
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice: rename one of them")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_each_key_once)


def _require_object(path: Path, where: str, value: Any) -> Values:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {where} is {type(value).__name__}, expected an object")
    return value


TABLE_READERS: dict[str, Callable[[Path], Iterator[Values]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": read_rows,
    ".tsv": read_rows,
}
