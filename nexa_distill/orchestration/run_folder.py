"""A run's folder, `logs/<run_id>/`: written by the launcher and the sessions, read here.

It contains `plan` (see `write_plan`), `config/` (`frozen_config.py`), `run.json` (`RunRecord`) and, per
session, `.pid` (of its wrapper), `.started`, `.progress` (`console/progress.py`), `.log`, `.seconds` and,
last, `.exit` with the exit code. `logs/latest` is the newest run. A wrapper that has ended without an exit
file was killed; its code is 137.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from nexa_distill.errors import InputError
from nexa_distill.orchestration.frozen_config import CONFIG_FILE
from nexa_distill.orchestration.planning import Request, Step
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import is_running, read_json_object, write_json

STOP_CODES = (129, 130, 143)
KILLED, UPSTREAM_FAILED = 137, 75


def new_run_dir(logs: Path) -> Path:
    """The path `logs/<UTC time>-<pid>`; the folder is not created."""
    return logs / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"


def write_plan(run_dir: Path, steps: list[Step]) -> None:
    """Write the sessions that run as NUL-terminated fields: session, after, ready_by, ready_file,
    number of words, the words of the command.
    """
    # bash can read this form without eval.
    run_dir.mkdir(parents=True, exist_ok=True)
    fields = [
        word
        for step in steps
        if step.runs
        for word in (step.session, step.after, step.ready_by, step.ready_file, str(len(step.command)), *step.command)
    ]
    (run_dir / "plan").write_text("".join(f"{word}\0" for word in fields), encoding="utf-8")


def planned_sessions(run_dir: Path) -> list[str]:
    """The run's sessions in order. Raises InputError if the folder contains no plan."""
    plan = run_dir / "plan"
    if not plan.is_file():
        raise InputError(f"{run_dir}: not the folder of a run (there is no {plan})")
    # Each field ends with NUL, so the last piece is empty.
    words, names = iter(plan.read_text(encoding="utf-8").split("\0")[:-1]), []
    for session in words:
        names.append(session)
        _after, _by, _file, count = (next(words) for _ in range(4))
        for _ in range(int(count)):
            next(words)
    return names


class RunRecord(NamedTuple):
    """What was launched, as `run.json`."""

    name: str | None  # of --name
    root: str  # `storage.root`
    config: str  # the file that was named, before flags
    input: str
    limit: int | None
    created_at: str


def describe_launch(request: Request, config: DistillConfig) -> RunRecord:
    storage, source = config.storage, config.input
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return RunRecord(request.name, storage.root, str(request.config), source.path, source.limit, now)


def write_record(run_dir: Path, record: RunRecord) -> None:
    write_json(run_dir / "run.json", record._asdict())


def read_record(run_dir: Path) -> RunRecord | None:
    """None for a run of an earlier version."""
    values = read_json_object(run_dir / "run.json")
    return RunRecord(**values) if values and values.keys() == set(RunRecord._fields) else None


def frozen_config_path(run_dir: Path) -> Path | None:
    path = run_dir / "config" / CONFIG_FILE
    return path if path.is_file() else None


def latest_run(logs: Path, root: str | None = None) -> Path | None:
    """The newest run in `logs`, or the newest with this `storage.root`."""
    link = logs / "latest"
    latest = link.resolve() if (link / "plan").is_file() else None
    if root is None or latest is None:
        return latest
    # The names begin with the time.
    runs = sorted((plan.parent for plan in logs.glob("*/plan") if not plan.parent.is_symlink()), reverse=True)
    return next((run for run in runs if (record := read_record(run)) is None or record.root == root), None)


@dataclass(frozen=True)
class SessionState:
    """The state of one session. `elapsed` and `seconds_left` are seconds, `rate` is rows/s."""

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
    def seconds_left(self) -> float | None:
        has_rate = self.code is None and self.rate > 0 and self.total > self.done
        return (self.total - self.done) / self.rate if has_rate else None


def read_session(run_dir: Path, name: str) -> SessionState:
    """The session's state: waiting, running, done, not needed, stopped, failed N or not started (75).

    A wrapper that died without an exit file gets one here, with 137.
    """
    # A wrapper writes its exit file before it ends: test the process first, then the file.
    gone = not _is_alive(run_dir, name)
    code = _read_number(run_dir / f"{name}.exit")
    if code is None and gone:
        code = KILLED
        (run_dir / f"{name}.exit").write_text(f"{code}\n")
    started = _modified_time(run_dir / f"{name}.started")
    ended = time.time() if code is None else (_modified_time(run_dir / f"{name}.exit") or time.time())
    # Written at the end, because a copied folder has other times.
    seconds = _read_number(run_dir / f"{name}.seconds")
    elapsed = ended - started if started and seconds is None else float(seconds or 0)
    progress = _read_progress(run_dir / f"{name}.progress")
    return SessionState(name, _state_word(code, started), code, elapsed, **progress)


def _state_word(code: int | None, started: float | None) -> str:
    if code is None:
        return "waiting" if started is None else "running"
    if started is None and code in (0, UPSTREAM_FAILED):
        return "not started" if code else "not needed"
    if code in STOP_CODES:
        return "stopped"
    return f"failed {code}" if code else "done"


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _modified_time(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _read_progress(file: Path) -> dict[str, Any]:
    state = read_json_object(file) or {}
    return {key: state[key] for key in ("step", "done", "total", "rate", "note") if key in state}


def _is_alive(run_dir: Path, name: str) -> bool:
    try:
        pid = int((run_dir / f"{name}.pid").read_text())
    except (OSError, ValueError):
        # Not started yet, unless the launcher died while it was starting the sessions.
        return time.time() - (_modified_time(run_dir / "plan") or 0.0) < 60
    # A later process may have the same pid.
    return is_running(pid) and f"{name} {run_dir.resolve()}" in _command_line(pid)


def _command_line(pid: int) -> str:
    proc = Path(f"/proc/{pid}/cmdline")
    if proc.parent.parent.joinpath("self").exists():
        try:
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    # A system without /proc (macOS).
    ps = ["ps", "-o", "args=", "-p", str(pid)]
    return subprocess.run(ps, capture_output=True, text=True, check=False).stdout


def running_sessions(run_dir: Path | None) -> list[str]:
    if run_dir is None:
        return []
    return [name for name in planned_sessions(run_dir) if read_session(run_dir, name).code is None]


def exit_code(states: list[SessionState]) -> int:
    """0 if every session ended with 0, else the code of the first that failed."""
    # The sessions after a failed one end with 75.
    return next((state.code for state in states if state.code), 0)


def describe_failures(run_dir: Path, states: list[SessionState]) -> Iterator[str]:
    for state in states:
        if state.code and state.state != "not started":
            log = run_dir / f"{state.name}.log"
            yield f"{state.name} ended with code {state.code}; its log: {relative_path(log)}"
            yield from (f"  {line}" for line in _last_error(log))


def _last_error(log: Path) -> list[str]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    own = [line for line in lines if line.strip() and not line.startswith("[nexa]")]
    # Without a line of ours, the last words of the stage.
    return ([line for line in own if line.startswith("error:")] or own)[-1:]


def relative_path(path: Path) -> Path:
    """Below the current directory, if it is there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
