"""File of the ids of all attempts in flight; it survives a killed process.

Attempts are journaled some time before their sends. After a kill -9 this file tells the attempts
that were sent, and perhaps billed, from those that were not.
"""

import mmap
from pathlib import Path

HEADER_BYTES = 64
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class InFlight:
    """At most `places` attempts at a time; an id is a positive number. One writer."""

    def __init__(self, path: Path, places: int) -> None:
        size = HEADER_BYTES + 8 * places
        with path.open("w+b") as file:
            # Written, not truncated: a page that needs disk space later would kill us by SIGBUS.
            file.write(_read_boot_id().ljust(size, b"\0"))
            file.flush()
            # Marking an attempt in the mapping costs no system call, and the kernel writes it even
            # if the process dies. After a power loss the boot id differs, and the file is ignored.
            self._map = mmap.mmap(file.fileno(), size)
        self._ids = memoryview(self._map)[HEADER_BYTES:].cast("q")
        self._free = list(range(places))
        self._place: dict[int, int] = {}

    @property
    def is_full(self) -> bool:
        return not self._free

    def add_attempt(self, attempt: int) -> None:
        place = self._place[attempt] = self._free.pop()
        self._ids[place] = attempt

    def remove_attempt(self, attempt: int) -> None:
        """Unmark an attempt whose outcome is on disk."""
        place = self._place.pop(attempt)
        self._ids[place] = 0
        self._free.append(place)

    def close(self) -> None:
        self._ids.release()
        self._map.close()


def load_orphaned_ids(path: Path) -> set[int] | None:
    """The attempts that a dead process had in flight; None if unknown."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    boot, ids = raw[:HEADER_BYTES].rstrip(b"\0"), raw[HEADER_BYTES:]
    # Of another boot, or cut off: what it says is not about these attempts.
    if not boot or boot != _read_boot_id() or len(ids) % 8:
        return None
    return set(memoryview(ids).cast("q")) - {0}


def _read_boot_id() -> bytes:
    try:
        # Another one after every boot; macOS has none.
        return BOOT_ID.read_bytes().strip()
    except OSError:
        return b""
