"""A command that is forked behaves as one that the interpreter runs, and is as easily killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm

SEES = """import os, sys
print(sys.argv, __name__, sys.path[0], os.getcwd(), os.environ.get("SEEN"), sys.stdin.read())
print("on stderr", file=sys.stderr)
if len(sys.argv) > 1:
    os.kill(os.getpid(), int(sys.argv[1]))
raise SystemExit(7)
"""
WAITS = """import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""
forked = pytest.mark.skipif(not warm.is_prepared(), reason="--full forks nothing")


def outcome(python: str, folder: Path, *command: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [python, *command], cwd=folder, env=os.environ | {"SEEN": "this"}, input="typed",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.partition("Traceback")[0]


@pytest.mark.parametrize("how", [("sees.py",), ("-m", "sees"), ("-u", "-m", "sees"), ("-c", SEES)])
@pytest.mark.parametrize("words", [(), ("15",), ("9",), ("2",)], ids=str)
def test_it_is_told_and_tells_what_the_interpreter_is_and_does(
    tmp_path: Path, how: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (tmp_path / "sees.py").write_text(SEES)
    found = outcome(warm.python(), tmp_path, *how, *words)
    assert found == outcome(sys.executable, tmp_path, *how, *words)
    assert found[0] == (-int(words[0]) if words else 7)


@forked
@pytest.mark.parametrize(("name", "is_forked"), [("SEEN", True), ("SSL_CERT_FILE", False)])
def test_what_a_library_reads_when_it_is_imported_is_read(name: str, is_forked: bool) -> None:
    command = [warm.python(), "-c", "import sys; print('pyarrow' in sys.modules)"]
    done = subprocess.run(command, env=os.environ | {name: "other"}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(is_forked)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_killed_is_gone_when_it_has_been_waited_for(tmp_path: Path, sent: signal.Signals) -> None:
    for _ in range(3):
        command = [warm.python(), "-c", WAITS, str(tmp_path / "lock")]
        with warm.Process(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            process.send_signal(sent)
            assert process.wait(20) == -sent


@forked
def test_nothing_outlives_a_client_that_is_killed(tmp_path: Path) -> None:
    command = [warm.python(), "-c", WAITS, str(tmp_path / "lock")]
    with warm.Process(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        worker = process.real_pid
        assert worker != process.pid
        os.kill(process.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
