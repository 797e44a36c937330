"""Read raw rows from a file in one of many formats, or from a folder of such files.

Grain: one raw row (in a folder of texts, one file). Formats: `formats.py`; selection of files:
`folders.py`. Raises InputMissing (66) for a missing path, InputError (65) for an unreadable row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputError, InputMissing
from nexa_distill.raw_data.folders import RawFolder, scan_folder
from nexa_distill.raw_data.formats import read_rows, read_text

Tell = Callable[[str], None]


@dataclass(frozen=True)
class RawRow:
    """`row` is 0-based in its file; in a folder of texts it is the file's position by name."""

    file: str
    row: int
    values: dict[str, Any]

    def describe_location(self) -> str:
        return f"{self.file}, row {self.row} (0-based)"


def read_raw(path: Path, delimiter: str | None = None, tell: Tell = lambda _: None) -> Iterator[RawRow]:
    """The rows of `path`, in order, streamed if the format allows it.

    `delimiter` of CSV; None = detected. `tell` gets a line about files that are left out.
    """
    if path.is_dir():
        folder = scan_folder(path)
        if line := folder.describe_left_out():
            tell(line)
        if folder.is_of_texts:
            yield from _read_texts(folder, tell)
            return
        files = {file: str(file.relative_to(path)) for file in folder.files}
    elif not path.exists():
        raise InputMissing(f"{path}: no such file or folder; pass --input PATH (or set input.path)")
    else:
        files = {path: path.name}
    for file, name in files.items():
        for number, values in enumerate(read_rows(file, delimiter)):
            yield RawRow(name, number, values)


def _read_texts(folder: RawFolder, tell: Tell) -> Iterator[RawRow]:
    number = 0
    for file, identity in folder.file_ids().items():
        name, values = str(file.relative_to(folder.path)), read_text(file)
        # A prompt about nothing would be paid for.
        if values["text"].strip():
            yield RawRow(name, number, {**values, "id": identity})
            number += 1
        else:
            tell(f"{file}: left out, it holds no text")
    if not number:
        raise InputError(f"{folder.path}: every text in it is empty; put text into the files")
