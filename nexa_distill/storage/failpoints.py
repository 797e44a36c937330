"""Failpoints: places where a test can kill this process or make an operation fail.

`NEXA_FAILPOINT=name:n` kills the process (SIGKILL, like a power loss) the n-th time that the
failpoint `name` is reached; `name:n:ENOSPC` raises that OSError instead.
Tests loop over n = 1, 2, ... until a run ends without reaching its failpoint.
"""

import errno
import os
import signal
from collections import Counter

_WANTED = os.environ.get("NEXA_FAILPOINT", "").split(":")
_HITS: Counter[str] = Counter()


def hit_failpoint(name: str) -> None:
    """Kill the process or raise an OSError, if NEXA_FAILPOINT names this place."""
    if name != _WANTED[0]:
        return
    _HITS[name] += 1
    if _HITS[name] != int(_WANTED[1]):
        return
    if len(_WANTED) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    code = int(getattr(errno, _WANTED[2]))
    raise OSError(code, os.strerror(code))
