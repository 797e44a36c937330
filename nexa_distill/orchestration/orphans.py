"""Find and stop orphaned stage processes by the run id in their environment.

After `kill -9` of a session's wrapper its stage gets SIGHUP and exits, unless it is busy or ignores
it; the same stage must never run twice. Needs /proc: elsewhere no process is found, and the lock of
a stage that still runs refuses a second one (exit 75).
"""

import os
import signal
import time
from pathlib import Path

PROGRESS_VARIABLE = "NEXA_PROGRESS_FILE"


def find_orphans(logs: Path) -> list[int]:
    """The pids of processes of a run in `logs`, except this process and its parent."""
    # Stages inherit the variable; its path tells runs of this project from others.
    prefix = f"{PROGRESS_VARIABLE}={logs.resolve()}/".encode()
    return [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if _has_variable(folder, prefix) and int(folder.name) not in (os.getpid(), os.getppid())
    ]


def _has_variable(folder: Path, prefix: bytes) -> bool:
    try:
        environment = (folder / "environ").read_bytes()
    except OSError:  # it has ended, or belongs to another user
        return False
    return any(variable.startswith(prefix) for variable in environment.split(b"\0"))


def stop_orphans(logs: Path, grace_seconds: float = 30.0) -> int:
    """Send SIGTERM, after the grace period SIGKILL. Returns the number of processes."""
    pids = find_orphans(logs)
    _send_signal(pids, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    # Looked up again, because a pid may belong to another process by now.
    while (remaining := find_orphans(logs)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _send_signal(remaining, signal.SIGKILL)
    return len(pids)


def _send_signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
