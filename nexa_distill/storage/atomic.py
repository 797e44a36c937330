"""Write files atomically: a reader sees the complete old file or the complete new one.

A file is written under a temporary name in its own folder, fsynced and renamed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputError, InputMissing
from nexa_distill.storage import failpoints

Json = dict[str, Any]  # a JSON object


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success fsync it and rename it to `path`.

    On any error the temporary file is removed and `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        failpoints.hit_failpoint("replace")
        # Before the rename, or a power loss could leave an empty file under the final name.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        failpoints.hit_failpoint("replace")
        temporary.replace(path)
        failpoints.hit_failpoint("replace")
        sync_folder(path.parent)
        failpoints.hit_failpoint("replace")
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of `path` whose process no longer exists (kill -9)."""
    for old in path.parent.glob(f".{path.name}.*.tmp"):
        pid = old.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdecimal() and not is_running(int(pid)):
            old.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process lives
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path, expected: str) -> str:
    """The text of a file that a user names; `expected` describes it.

    Raises InputMissing (66) if there is no such file, InputError (65) if it is not UTF-8.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise InputMissing(f"{path}: {problem}; expected {expected}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}); expected {expected}") from None


def read_json_object(path: Path) -> Json | None:
    """The object in a JSON file that we write; None if there is no such file, or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_text(path: Path, text: str) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
