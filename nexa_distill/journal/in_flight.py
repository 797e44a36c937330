"""Which attempts may be on the wire: a file of ids that a killed process leaves behind.

Attempts are journaled some way ahead of their sends. After a kill -9 this file tells those that
were really sent, and perhaps billed, from those that were only about to be. It is a shared memory
mapping, so marking an attempt costs no system call; the kernel keeps it when the process dies. A
power loss may take it: then the boot id is another one, and nothing is known.
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
            # Written, not truncated: a page that needs space later would end us by SIGBUS.
            file.write(_boot_id().ljust(size, b"\0"))
            file.flush()
            self._map = mmap.mmap(file.fileno(), size)
        self._ids = memoryview(self._map)[HEADER_BYTES:].cast("q")
        self._free = list(range(places))
        self._place: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._place)

    @property
    def full(self) -> bool:
        """Whether one more attempt has no place."""
        return not self._free

    def add(self, attempt: int) -> None:
        """From now on the attempt may be on the wire."""
        place = self._place[attempt] = self._free.pop()
        self._ids[place] = attempt

    def remove(self, attempt: int) -> None:
        """How the attempt ended is on disk."""
        place = self._place.pop(attempt)
        self._ids[place] = 0
        self._free.append(place)

    def close(self) -> None:
        """Release the mapping; the file stays."""
        self._ids.release()
        self._map.close()


def left_behind(path: Path) -> set[int] | None:
    """The attempts that a process which is gone had on the wire; None when that is not known."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return None
    boot, ids = found[:HEADER_BYTES].rstrip(b"\0"), found[HEADER_BYTES:]
    if not boot or boot != _boot_id() or len(ids) % 8:
        return None
    return set(memoryview(ids).cast("q")) - {0}


def _boot_id() -> bytes:
    """Changes when the machine starts anew; empty where the system does not say (macOS)."""
    try:
        return BOOT_ID.read_bytes().strip()
    except OSError:
        return b""
