"""Find the SQLite files named in the column `database`.

Reads  `execution.databases`, or (null) the folder of the raw data: NAME, NAME with one of
       `ENDINGS`, or such a file in a folder NAME (the layout of Spider and BIRD)
Raises InputMissing (66) for a name without a file, InputError (65) for a file that is not a
       database or has a write-ahead log
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from nexa_distill.errors import InputError, InputMissing

ENDINGS = (".sqlite", ".db", ".sqlite3")


def find_databases(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Name -> its file below `folder`. Each file is opened once to validate it."""
    return {name: _find_database(name, folder) for name in sorted(names)}


def database_folder(configured: str | None, raw: Path) -> Path:
    if configured:
        return Path(configured)
    return raw if raw.is_dir() else raw.parent


def _find_database(name: str, folder: Path) -> Path:
    # Names come from the data: none may lead out of the folder.
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"database {name!r} is not a file name; expected NAME or NAME.sqlite")
    files = [f"{name}{ending}" for ending in ENDINGS]
    places = [folder / name, *(folder / f for f in files), *(folder / name / f for f in files)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputMissing(
            f"{folder}: holds no database {name} (looked for {', '.join(map(str, places))}); "
            "set execution.databases or pass --databases DIR"
        )
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise InputError(
            f"{log}: contains changes that are not in the database yet; run "
            f"`sqlite3 {path} 'PRAGMA wal_checkpoint(TRUNCATE)'`"
        )
    try:
        # immutable: without locks, and without new files beside a database that may be read-only.
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True) as base:
            base.execute("SELECT count(*) FROM sqlite_master")
        base.close()
    except sqlite3.Error as error:
        raise InputError(f"{path}: not an SQLite database ({error})") from None
    return path
