"""Run a command and print what it took: `measured.py COMMAND...`, one line of JSON.

Linux counts in a child's peak memory what its parent held when it started it; this parent holds a
bare interpreter (start it with -I -S). CPU is user and system time of the command and of every
process that it waited for; peak memory is that of the largest one.
"""

import json
import os
import subprocess
import sys
import time

LAUNCHER = [sys.executable, "-I", "-S", __file__]


def peak_memory(command: list[str]) -> tuple[float, float]:
    """Peak memory in MB, and seconds. Raises RuntimeError with the command's last words."""
    done = subprocess.run([*LAUNCHER, *command], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if found["code"]:
        raise RuntimeError(f"{' '.join(command)}: exit {found['code']}: {done.stderr[-2000:]}")
    return found["peak_mb"], found["wall_seconds"]


def main() -> None:
    started = time.monotonic()
    quiet = (os.POSIX_SPAWN_DUP2, 2, 1)  # standard output belongs to the figures
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[quiet])
    _, status, used = os.wait4(child, 0)
    figures = {
        "code": os.waitstatus_to_exitcode(status),
        "wall_seconds": time.monotonic() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1024,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
