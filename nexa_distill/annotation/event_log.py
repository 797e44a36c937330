"""An append-only file of events, one JSON object per line: what people decide, as they decide it.

Writers take turns (flock). An event is on disk before `append` returns; after a crash the file
holds every event that was acknowledged, and at its end perhaps a piece of one that was not. Such
a piece is moved to `<name>.torn` by the next writer, and readers leave it out.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_distill.storage import failpoints
from nexa_distill.storage.atomic import sync_folder

log = logging.getLogger(__name__)
TAIL_BYTES = 1 << 16


def append(path: Path, event: Mapping[str, Any]) -> None:
    """Write one event. Raises OSError when it is not on disk; then it may be sent again."""
    line = json.dumps(event, ensure_ascii=True).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _mend_tail(descriptor, path)
        failpoints.hit("event")
        if os.write(descriptor, line) < len(line):
            raise OSError(f"{path}: only a part of an event could be written; free space")
        failpoints.hit("event")
        os.fsync(descriptor)
        failpoints.hit("event")
    finally:
        os.close(descriptor)
    if new:
        sync_folder(path.parent)


def _mend_tail(descriptor: int, path: Path) -> None:
    """Complete a last line that lacks only its end, and move away one that is half-written."""
    end = os.fstat(descriptor).st_size
    tail = _tail(descriptor, end)
    if not tail:
        return
    if whole(tail):
        os.write(descriptor, b"\n")
        return
    with path.with_name(f"{path.name}.torn").open("ab") as torn:
        torn.write(tail + b"\n")
        torn.flush()
        os.fsync(torn.fileno())
    os.ftruncate(descriptor, end - len(tail))


def _tail(descriptor: int, end: int) -> bytes:
    """What stands behind the last line end."""
    tail = b""
    while end and b"\n" not in tail:
        start = max(0, end - TAIL_BYTES)
        tail, end = os.pread(descriptor, end - start, start) + tail, start
    return tail.rpartition(b"\n")[2]


def whole(line: bytes) -> bool:
    """Whether it is a complete JSON object (the beginning of one never is)."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank; a torn last line is left out and logged.

    A file that is not there has none.
    """
    if not path.exists():
        return
    found = path.read_bytes().split(b"\n")
    if found[-1] and not whole(found[-1]):
        log.warning("%s: the half-written last line is left out: %r", path, found.pop()[:80])
    yield from ((number, line) for number, line in enumerate(found, 1) if line.strip())
