"""A run's folder, `logs/<run_id>/`: what the launcher and the sessions write there, read back.

`plan` (see `write_plan`) and, per session, `.pid` (of its wrapper), `.started`, `.progress`
(`console/progress.py`), `.log` and, last, `.exit` with the exit code. `logs/latest` is the newest
run. A wrapper that is gone without an exit file was killed; its code is 137.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nexa_distill.console.progress import clock
from nexa_distill.errors import InputError
from nexa_distill.orchestration.planning import Step

STOP_CODES = (129, 130, 143)
KILLED, UPSTREAM_FAILED = 137, 75


def new_run_dir(logs: Path) -> Path:
    """`logs/<UTC time>-<pid>`, not made yet."""
    return logs / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"


def write_plan(run_dir: Path, steps: list[Step]) -> None:
    """The sessions that run, in a form that bash reads without eval: NUL-terminated fields
    session, after, ready_by, ready_file, number of words, the words of the command.
    """
    run_dir.mkdir(parents=True)
    fields = [
        word
        for step in steps
        if step.runs
        for word in (
            step.session,
            step.after,
            step.ready_by,
            step.ready_file,
            str(len(step.command)),
            *step.command,
        )
    ]
    (run_dir / "plan").write_text("".join(f"{word}\0" for word in fields), encoding="utf-8")


def planned_sessions(run_dir: Path) -> list[str]:
    """The run's sessions in order. Raises InputError when the folder holds no plan."""
    plan = run_dir / "plan"
    if not plan.is_file():
        raise InputError(f"{run_dir}: not the folder of a run (there is no {plan})")
    words, names = iter(plan.read_text(encoding="utf-8").split("\0")[:-1]), []
    for session in words:
        names.append(session)
        _after, _by, _file, count = (next(words) for _ in range(4))
        for _ in range(int(count)):
            next(words)
    return names


def latest_run(logs: Path) -> Path | None:
    """The newest run's folder, or None when nothing has run."""
    link = logs / "latest"
    return link.resolve() if (link / "plan").is_file() else None


@dataclass(frozen=True)
class SessionState:
    """What is known of one session. `elapsed` and `left` are seconds, `rate` is rows/s."""

    name: str
    state: str
    code: int | None
    elapsed: float
    step: str = ""
    done: int = 0
    total: int = 0
    rate: float = 0.0
    note: str = ""

    @property
    def left(self) -> float | None:
        """The estimate, or None when there is nothing to estimate from."""
        known = self.code is None and self.rate > 0 and self.total > self.done
        return (self.total - self.done) / self.rate if known else None

    def line(self) -> str:
        """One line for a person."""
        parts = [f"{self.name:<11}", f"{self.state:<11}"]
        if self.state != "waiting":
            parts.append(f"{clock(self.elapsed):>8}")
        if self.total:
            parts.append(f"{self.step} {self.done}/{self.total}")
        if self.total and self.code is None:
            parts.append(f"{self.rate:.1f}/s")
        if self.left is not None:
            parts.append(f"about {clock(self.left)} left")
        return "  ".join([*parts, self.note]).rstrip()


def read_session(run_dir: Path, name: str) -> SessionState:
    """The session's state: waiting, running, done, stopped, failed N or not started (75).

    A wrapper that died without an exit file gets one here, with 137, so that everyone sees it.
    """
    gone = not _is_alive(run_dir, name)  # before the exit file is looked for: it is written first
    code = _read_code(run_dir / f"{name}.exit")
    if code is None and gone:
        code = KILLED
        (run_dir / f"{name}.exit").write_text(f"{code}\n")
    started = _modified(run_dir / f"{name}.started")
    ended = time.time() if code is None else (_modified(run_dir / f"{name}.exit") or time.time())
    progress = _read_progress(run_dir / f"{name}.progress")
    return SessionState(
        name, _word(code, started), code, ended - started if started else 0.0, **progress
    )


def _word(code: int | None, started: float | None) -> str:
    if code is None:
        return "waiting" if started is None else "running"
    if code == UPSTREAM_FAILED and started is None:
        return "not started"
    if code in STOP_CODES:
        return "stopped"
    return f"failed {code}" if code else "done"


def _read_code(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _modified(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _read_progress(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return {key: state[key] for key in ("step", "done", "total", "rate", "note")}
    except (OSError, ValueError, KeyError):
        return {}


def _is_alive(run_dir: Path, name: str) -> bool:
    """Whether the wrapper runs: its pid exists and is still that command, not a later process."""
    try:
        pid = int((run_dir / f"{name}.pid").read_text())
    except (OSError, ValueError):
        # Not started yet, unless the launcher itself died while it was starting the sessions.
        return time.time() - (_modified(run_dir / "plan") or 0.0) < 60
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return f"{name} {run_dir.resolve()}" in _command_line(pid)


def _command_line(pid: int) -> str:
    proc = Path(f"/proc/{pid}/cmdline")
    if proc.parent.parent.joinpath("self").exists():
        try:
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    ps = ["ps", "-o", "args=", "-p", str(pid)]
    return subprocess.run(ps, capture_output=True, text=True, check=False).stdout


def running_sessions(run_dir: Path | None) -> list[str]:
    """The sessions of a run that have not ended."""
    if run_dir is None:
        return []
    return [name for name in planned_sessions(run_dir) if read_session(run_dir, name).code is None]


def exit_code(states: list[SessionState]) -> int:
    """0 if every session ended with 0, else the first failing one's code: those after it say 75."""
    return next((state.code for state in states if state.code), 0)


def failures(run_dir: Path, states: list[SessionState]) -> Iterator[str]:
    """What failed or was stopped, the error it ended with, and where its log is."""
    for state in states:
        if state.code and state.state != "not started":
            log = run_dir / f"{state.name}.log"
            yield f"{state.name} ended with code {state.code}; its log: {_relative(log)}"
            yield from (f"  {line}" for line in _last_error(log))


def _last_error(log: Path) -> list[str]:
    """The last line that says error, or else the last line that is not the wrapper's."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    own = [line for line in lines if line.strip() and not line.startswith("[nexa]")]
    return ([line for line in own if line.startswith("error:")] or own)[-1:]


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
