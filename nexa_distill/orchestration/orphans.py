"""Stages that outlived their session: found by the run that stands in their environment, and ended.

After `kill -9` of a session's wrapper the stage gets a hang-up and ends by itself, unless it is
busy or ignores it; two of the same stage must never work at once. Needs /proc: elsewhere nothing
is found, and a stage that still works is met by its own lock (exit 75).
"""

import os
import signal
import time
from pathlib import Path

VARIABLE = "NEXA_PROGRESS_FILE"


def find(logs: Path) -> list[int]:
    """The pids of processes that belong to a run in `logs`, this one and its parents excepted."""
    wanted = f"{VARIABLE}={logs.resolve()}/".encode()
    return [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if _belongs(folder, wanted) and int(folder.name) not in (os.getpid(), os.getppid())
    ]


def _belongs(folder: Path, wanted: bytes) -> bool:
    try:
        environment = (folder / "environ").read_bytes()
    except OSError:  # gone meanwhile, or somebody else's
        return False
    return any(variable.startswith(wanted) for variable in environment.split(b"\0"))


def end(logs: Path, grace_seconds: float = 30.0) -> int:
    """TERM to each of them, KILL to those that are there after the grace. Returns how many."""
    found = find(logs)
    _signal(found, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while (left := find(logs)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal(left, signal.SIGKILL)
    return len(found)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
