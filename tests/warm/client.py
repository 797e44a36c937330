"""Behaves as `python` does, for `-m MODULE ...`, `SCRIPT.py ...`, `-c CODE`: see the package.

Copied to an executable file that says in its first line which Python runs it, without site-packages
(they take longer to look at than all this).
"""

# ruff: noqa: PTH100, PTH109, PTH120, PTH123
# (pathlib takes as long to import as all the rest)

import fcntl
import json
import os
import signal
import socket
import sys
import time

FOLDER = os.path.dirname(os.path.abspath(__file__))
FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
# What imports torch; all else is served by an interpreter without it.
HEAVY = (
    "nexa_train", "accelerate", "torch", "scripts/python/evaluation", "scripts/shell/training",
)  # fmt: skip


def plain(arguments: list[str]) -> None:
    """Become the interpreter itself."""
    note(os.getpid())
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


def note(pid: int) -> None:
    """Say for `Process` which process does the work."""
    with open(f"{FOLDER}/pids/{os.getpid()}", "w") as file:
        file.write(str(pid))


def connect(kind: str) -> socket.socket:
    """To the server of that kind, which the first client starts."""
    found = socket.socket(socket.AF_UNIX)
    try:
        found.connect(f"{FOLDER}/{kind}")
        return found
    except OSError:
        pass
    with open(f"{FOLDER}/{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        end = time.monotonic() + 120
        started = False
        while time.monotonic() < end:
            try:
                found.connect(f"{FOLDER}/{kind}")
                return found
            except OSError:
                if not started:
                    start(kind)
                    started = True
                time.sleep(0.02)
    raise SystemExit(f"tests/warm: the server did not start: see {FOLDER}/{kind}.log")


def start(kind: str) -> None:
    """Start the server, in a session of its own."""
    import subprocess

    with open(f"{FOLDER}/environment.json") as file:
        base = json.load(file)
    with open(f"{FOLDER}/{kind}.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, base["server"], FOLDER, kind], env=base["environment"], cwd="/",
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def main() -> None:
    arguments = sys.argv[1:]
    unbuffered = arguments[:1] == ["-u"]  # torchrun's
    arguments = arguments[unbuffered:]
    option = arguments[:1] in (["-m"], ["-c"]) and len(arguments) > 1
    if not option and not (arguments and arguments[0].endswith(".py")):
        plain(sys.argv[1:])
    name = arguments[1] if option else arguments[0]
    kind = "heavy" if any(part in name for part in HEAVY) else "light"
    kind = "pages" if name == "streamlit" else kind
    server = connect(kind)
    given: dict[str, object] = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    given["unbuffered"] = unbuffered
    given["signals"] = {  # whether they are ignored
        name: signal.getsignal(getattr(signal, name)) == signal.SIG_IGN for name in FORWARDED
    }
    socket.send_fds(server, [b"%20d" % len(data := json.dumps(given).encode())], [0, 1, 2])
    server.sendall(data)
    answer = server.makefile("r")
    pid = int(answer.readline())
    if not pid:
        plain(sys.argv[1:])
    note(pid)
    for sign in FORWARDED:
        number = getattr(signal, sign)
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(answer.readline() or "-9")
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status not in (9, 19) else None
        os.kill(os.getpid(), -status)
        time.sleep(1)
    os._exit(status)


if __name__ == "__main__":
    main()
