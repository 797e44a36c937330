"""Places where a test can make this process die or an operation fail.

`NEXA_FAILPOINT=name:n` kills the process (SIGKILL, as a power button would) at the n-th time that
`hit(name)` is reached; `name:n:ENOSPC` raises that OSError instead. Unset, `hit` does nothing.
Tests loop over n = 1, 2, ... until a run ends without reaching its failpoint.
"""

import errno
import os
import signal
from collections import Counter

_WANTED = os.environ.get("NEXA_FAILPOINT", "").split(":")
_HITS: Counter[str] = Counter()


def hit(name: str) -> None:
    """Die or raise here, if a test asked for it."""
    if name != _WANTED[0]:
        return
    _HITS[name] += 1
    if _HITS[name] != int(_WANTED[1]):
        return
    if len(_WANTED) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    code = int(getattr(errno, _WANTED[2]))
    raise OSError(code, os.strerror(code))
