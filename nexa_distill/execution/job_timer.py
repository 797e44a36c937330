"""Start time of a worker's current job, in memory shared with its parent.

A message per job would cost more than most queries: thousands of answers are checked per second.
"""

import mmap
import struct
import time

ANSWER, GOLD = 0, 1  # what is running
FORM = struct.Struct("=dB")


class Stopwatch:
    """Written by the worker, read by its parent; `descriptor` is a file of `FORM.size` bytes."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, FORM.size)

    def start(self, whose: int, used: float = 0.0) -> None:
        """Start timing `whose` code, which has already used `used` seconds."""
        FORM.pack_into(self._memory, 0, time.monotonic() - used, whose)

    def read(self) -> tuple[float, int]:
        """The start in seconds of `time.monotonic`, and what is running."""
        since, whose = FORM.unpack_from(self._memory)
        return since, whose
