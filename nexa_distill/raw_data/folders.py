"""Select and order the files of a folder that are raw data.

A folder contains texts (one row per file) or tables in pieces (shards); with both, the tables are
left out. Hidden files and folders and `__MACOSX` are skipped.
Raises InputError (65) if no file remains or the tables have two formats.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from nexa_distill.errors import InputError
from nexa_distill.raw_data.formats import TABLE_READERS, TEXT_ENDINGS, has_rows, has_text, split_endings

ABOUT = re.compile(r"(readme|license|licence|notice|changelog|citation)\b", re.IGNORECASE)
SHOWN = 3


@dataclass
class RawFolder:
    """`files` in order, all texts or all tables; `left_out`: reason -> names of files."""

    path: Path
    files: list[Path]
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def is_of_texts(self) -> bool:
        return has_text(self.files[0])

    def file_ids(self) -> dict[Path, str]:
        """File -> relative name without endings; with them if two files would share it."""
        names = {file: file.relative_to(self.path) for file in self.files}
        short = {file: name.with_name(split_endings(file)[0]) for file, name in names.items()}
        counts = Counter(short.values())
        return {file: str(name if counts[name] == 1 else names[file]) for file, name in short.items()}

    def describe_left_out(self) -> str | None:
        if not self.left_out:
            return None
        total = sum(map(len, self.left_out.values()))
        parts = [f"{len(names)} {why} ({_list_names(names)})" for why, names in self.left_out.items()]
        return f"{self.path}: {total} of its files left out: {'; '.join(parts)}"


def scan_folder(path: Path) -> RawFolder:
    files = sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: _natural_order(path, p))
    folder = RawFolder(path, [])
    visible = [file for file in files if not _is_hidden(file.relative_to(path))]
    hidden = [str(f.relative_to(path)) for f in files if _is_hidden(f.relative_to(path))]
    if hidden:
        folder.left_out["hidden"] = hidden
    texts = [file for file in visible if has_text(file) and file.stat().st_size]
    tables = [file for file in visible if has_rows(file)]
    # A README or LICENSE beside tables is not a text of the data set.
    if tables and all(ABOUT.match(file.name) for file in texts):
        folder.files = _of_one_format(path, tables)
    else:
        folder.files = texts
    if not folder.files:
        raise InputError(
            f"{path}: holds no {', '.join(TEXT_ENDINGS)} file and no table "
            f"({', '.join(TABLE_READERS)}); found: {_list_names(list(map(str, visible))) or 'nothing'}"
        )
    read = set(folder.files)
    for file in visible:
        if file not in read:
            empty = has_text(file) and not file.stat().st_size
            why = "empty" if empty else file.suffix.lower() or "without an ending"
            folder.left_out[why].append(str(file.relative_to(path)))
    return folder


def _of_one_format(path: Path, tables: list[Path]) -> list[Path]:
    formats: dict[str, list[Path]] = defaultdict(list)
    for file in tables:
        ending = split_endings(file)[1]
        formats[".jsonl" if ending == ".ndjson" else ending].append(file)
    if len(formats) > 1:  # JSON beside tables of another format describes them
        formats.pop(".json", None)
    if len(formats) > 1:
        counts = ", ".join(f"{len(files)} {ending}" for ending, files in formats.items())
        raise InputError(
            f"{path}: holds tables of different formats ({counts}), perhaps of the same rows; "
            "pass one file, or a folder with one format, as --input"
        )
    return next(iter(formats.values()))


def _is_hidden(name: Path) -> bool:
    return any(part.startswith((".", "~$")) or part == "__MACOSX" for part in name.parts)


def _natural_order(folder: Path, path: Path) -> list[tuple[int, int | str]]:
    # Numbers by value: part-9 comes before part-10.
    pieces = re.split(r"(\d+)", str(path.relative_to(folder)))
    # Pairs, because a number cannot be compared with a text.
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces if piece]


def _list_names(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
