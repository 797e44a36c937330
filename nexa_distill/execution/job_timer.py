"""Start time of a worker's current job, in memory shared with its parent.

A message per job would cost more than most queries: thousands of answers are checked per second.
"""

import mmap
import struct
import time

ANSWER, GOLD = 0, 1  # what is running
TIMER_FORMAT = struct.Struct("=dB")


class JobTimer:
    """Written by the worker, read by its parent; `descriptor` is a file of `TIMER_FORMAT.size` bytes."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, TIMER_FORMAT.size)

    def start(self, whose: int, used: float = 0.0) -> None:
        """Start timing `whose` code, which has already used `used` seconds."""
        TIMER_FORMAT.pack_into(self._memory, 0, time.monotonic() - used, whose)

    def read(self) -> tuple[float, int]:
        """The start in seconds of `time.monotonic`, and what is running."""
        since, whose = TIMER_FORMAT.unpack_from(self._memory)
        return since, whose
