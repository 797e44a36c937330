"""An append-only file of events, one JSON object per line.

Writers take turns (flock). An event is on disk before `append` returns. After a crash the file
contains every acknowledged event, and perhaps an incomplete last line: readers skip it, and the
next writer moves it to `<name>.torn`.
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
    """Write one event. Raises OSError if it is not on disk; then it may be appended again."""
    line = json.dumps(event, ensure_ascii=True).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        # The lock covers repair and write: in between, another writer's half line would look like a torn one.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _repair_tail(descriptor, path)
        failpoints.hit_failpoint("event")
        if os.write(descriptor, line) < len(line):
            raise OSError(f"{path}: only a part of an event could be written; free space")
        failpoints.hit_failpoint("event")
        os.fsync(descriptor)
        failpoints.hit_failpoint("event")
    finally:
        os.close(descriptor)
    # The name of a new file is in its folder: without this sync a crash could lose the whole file.
    if new:
        sync_folder(path.parent)


def _repair_tail(descriptor: int, path: Path) -> None:
    """Terminate a complete last line that lacks its newline; move away an incomplete one."""
    end = os.fstat(descriptor).st_size
    tail = _read_tail(descriptor, end)
    if not tail:
        return
    if is_complete_event(tail):
        # Only its newline is missing: the event is complete, and counts.
        os.write(descriptor, b"\n")
        return
    # Copied and synced before it is cut: a crash in between leaves the bytes twice, never lost.
    with path.with_name(f"{path.name}.torn").open("ab") as torn:
        torn.write(tail + b"\n")
        torn.flush()
        os.fsync(torn.fileno())
    os.ftruncate(descriptor, end - len(tail))


def _read_tail(descriptor: int, end: int) -> bytes:
    # Backwards in blocks: the log may be large, and its last line longer than a block.
    tail = b""
    while end and b"\n" not in tail:
        start = max(0, end - TAIL_BYTES)
        tail, end = os.pread(descriptor, end - start, start) + tail, start
    return tail.rpartition(b"\n")[2]


def is_complete_event(line: bytes) -> bool:
    try:
        # The beginning of an object is never valid JSON, so a torn line does not parse.
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank; an incomplete last line is skipped and logged."""
    if not path.exists():
        return
    file_lines = path.read_bytes().split(b"\n")
    if file_lines[-1] and not is_complete_event(file_lines[-1]):
        log.warning("%s: skipped the incomplete last line: %r", path, file_lines.pop()[:80])
    yield from ((number, line) for number, line in enumerate(file_lines, 1) if line.strip())
