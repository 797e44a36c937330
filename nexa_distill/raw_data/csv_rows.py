"""Read the records of a CSV file separated by a comma, a tab, a semicolon or a pipe.

Grain: one record as a dict of column name to text, None for an empty cell. Quoting: RFC 4180.
Raises InputError (65) for two columns of one name and for a record with another number of cells.
"""

import csv
import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from nexa_distill.errors import InputError

DELIMITERS = (",", "\t", ";", "|")
SAMPLE_CHARACTERS, SAMPLE_RECORDS = 2**18, 100
NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a pipe"}


def read_records(path: Path, file: TextIO, delimiter: str | None = None) -> Iterator[dict[str, str | None]]:
    """Yield the records after the header. `delimiter` None = detected in header and sample."""
    # A cell may contain a whole document; the default limit is 128 KB.
    csv.field_size_limit(sys.maxsize)
    sample = file.read(SAMPLE_CHARACTERS)
    is_whole = len(sample) < SAMPLE_CHARACTERS
    first, _, rest = sample.partition("\n")
    # Excel writes a first line `sep=;`.
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:
        delimiter, sample = delimiter or first.strip()[4], rest
    delimiter = delimiter or find_delimiter(sample, is_whole=is_whole)
    lines = itertools.chain(_complete_lines(sample, file), file)
    bare = delimiter == "\t" and has_bare_quotes(sample, is_whole=is_whole)
    try:
        records = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL)
        yield from _name_cells(path, records, delimiter)
    except csv.Error as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from None


def _complete_lines(sample: str, file: TextIO) -> Iterator[str]:
    lines = io.StringIO(sample, newline="").readlines()
    if lines and not lines[-1].endswith("\n"):
        # The sample ends within a line, whose rest is still in the file.
        lines[-1] += file.readline()
    return iter(lines)


def find_delimiter(sample: str, *, is_whole: bool) -> str:
    """The separator with which the most records of the sample have as many cells as its header.

    Ties go to more columns, then to the order of `DELIMITERS`; a comma if the header has none.
    """
    # Not `csv.Sniffer`, which also accepts letters and spaces as separators.
    scores = [(_score_delimiter(sample, mark, is_whole=is_whole), mark) for mark in DELIMITERS]
    # `max` keeps the first of equal scores: the order of DELIMITERS decides.
    return max(scores, key=lambda pair: pair[0])[1]


def has_bare_quotes(sample: str, *, is_whole: bool) -> bool:
    """Whether quotes in tab-separated text are literal, as in IANA's definition of TSV."""
    # Spreadsheets quote nevertheless, so quotes are literal only if quoting breaks the records.
    quoted, text = (
        csv.reader(io.StringIO(sample, newline=""), delimiter="\t", quoting=quoting, strict=True)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)
    )
    return not _fits_header(quoted, is_whole=is_whole) and _fits_header(text, is_whole=is_whole)


def _fits_header(records: Iterator[list[str]], *, is_whole: bool) -> bool:
    """Whether all records but one truncated by the end of the sample are as long as the header."""
    lengths = []
    try:
        for record in itertools.islice(records, SAMPLE_RECORDS):
            lengths.append(len(record))
    except csv.Error as error:
        if is_whole or "end of data" not in str(error):
            return False
    # The sample may end within its last record.
    cut = 0 if is_whole or len(lengths) == SAMPLE_RECORDS else 1
    whole = [length for length in lengths[: len(lengths) - cut] if length]
    return len(set(whole)) <= 1


def _score_delimiter(sample: str, delimiter: str, *, is_whole: bool) -> tuple[bool, float, int]:
    """(whether the header contains it, share of records as long as the header, columns)."""
    lines = io.StringIO(sample, newline="")
    try:
        records = list(itertools.islice(csv.reader(lines, delimiter=delimiter), SAMPLE_RECORDS))
    except csv.Error:
        return False, 0.0, 0
    if not is_whole and len(records) > 1 and len(records) < SAMPLE_RECORDS:
        records.pop()  # truncated by the end of the sample
    header, *cells = [record for record in records if record] or [[]]
    fitting = sum(len(record) == len(header) for record in cells)
    return len(header) > 1, fitting / len(cells) if cells else 1.0, len(header)


def _name_cells(path: Path, records: Iterator[list[str]], delimiter: str) -> Iterator[dict[str, str | None]]:
    names = [name.strip() for name in next((record for record in records if record), [])]
    _refuse_same_names(path, names)
    separator = NAMES.get(delimiter, repr(delimiter))
    kept = (record for record in records if len(record) == 1 or any(record))  # no empty lines
    for number, record in enumerate(kept if names else ()):
        if len(record) != len(names):
            raise InputError(
                f"{path}: row {number} has another number of cells than the header ({len(record)}, "
                f"not {len(names)}; {separator} between them): put texts with {separator} or a "
                "line break into quotes, or set input.delimiter"
            )
        # A column without a name (the index that pandas writes) is dropped.
        yield {name: cell or None for name, cell in zip(names, record, strict=True) if name}


def _refuse_same_names(path: Path, names: list[str]) -> None:
    for place, name in enumerate(names):
        if name and name in names[:place]:
            raise InputError(
                f"{path}: columns {names.index(name) + 1} and {place + 1} are both named {name}; rename one of them"
            )
