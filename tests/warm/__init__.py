"""Python with its libraries imported already: a command of a test starts in a tenth of the time.

Most tests of a command wait for nothing but `import torch`. `python()` stands for `sys.executable`
in their command lines: a file (`client.py`) that asks a server (`server.py`), which has imported
the libraries once, to fork. The fork is a process of its own, with the arguments, environment,
folder and files of the command, and imports all modules of the project itself; exit code and
signals are those of the command. With `pytest --full` it is the interpreter itself.

A test that kills what it started uses `Process`, or the interpreter itself: the server ends what
was asked for by a client that was killed, but a moment later.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "NEXA_TESTS_WARM"  # names the folder of client, servers and pids

HERE = Path(__file__).resolve().parent


def is_prepared() -> bool:
    """Whether `prepare` wrote a client."""
    return FOLDER in os.environ


def python() -> str:
    """What commands of tests begin with: the client, where there is one."""
    return str(Path(os.environ[FOLDER]) / "python") if is_prepared() else sys.executable


def prepare() -> Callable[[], None]:
    """Write the client for this process and those it starts. Returns what takes it away again."""
    folder = Path(tempfile.mkdtemp(prefix="nexa-warm-"))
    (folder / "pids").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings = {"environment": environment, "owner": os.getpid(), "server": str(HERE / "server.py")}
    (folder / "environment.json").write_text(json.dumps(settings))
    client = folder / "python"
    client.write_text(f"#!{sys.executable} -IS\n{(HERE / 'client.py').read_text()}")
    client.chmod(0o755)
    os.environ[FOLDER] = str(folder)

    def end() -> None:
        del os.environ[FOLDER]
        shutil.rmtree(folder, ignore_errors=True)

    return end


class Process(subprocess.Popen[Any]):
    """A command that may begin with `python()`. Signals go to the process, not to its client."""

    @property
    def real_pid(self) -> int:
        """The process that runs the command."""
        if str(self.args[0]) != python() or python() == sys.executable:  # type: ignore[index]
            return self.pid
        file = Path(os.environ[FOLDER]) / "pids" / str(self.pid)
        while not (file.exists() and (text := file.read_text())):
            if self.poll() is not None:
                return self.pid
            time.sleep(0.002)
        return int(text)

    def send_signal(self, sig: int) -> None:
        """Send it, if the command is not over."""
        if self.poll() is None:
            try:
                os.kill(self.real_pid, sig)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)
