"""When the work that a worker is at began, as its parent sees it.

A few bytes of shared memory: thousands of answers per second are each timed, and telling the time
by a message would cost more than most queries do.
"""

import mmap
import struct
import time

ANSWER, GOLD = 0, 1  # whose time it is
FORM = struct.Struct("=dB")


class Stopwatch:
    """Written by the worker, read by its parent; `descriptor` is a file of `FORM.size` bytes."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, FORM.size)

    def start(self, whose: int, used: float = 0.0) -> None:
        """It is `whose` time now; `used` seconds of it have gone before."""
        FORM.pack_into(self._memory, 0, time.monotonic() - used, whose)

    def read(self) -> tuple[float, int]:
        """When it began, in seconds of `time.monotonic`, and whose it is."""
        since, whose = FORM.unpack_from(self._memory)
        return since, whose
