"""The launcher's window: a line per session, and one of the whole run.

On a terminal the lines are drawn over each other; elsewhere a line is printed when a session changes
and every half minute. Colours only on a terminal, and not with NO_COLOR (no-color.org).
"""

import os
import shutil
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from nexa_distill.console.progress import format_duration
from nexa_distill.orchestration.run_folder import SessionState, planned_sessions, read_record, read_session
from nexa_distill.orchestration.stages import TEACHER

PLAIN_EVERY_SECONDS = 30.0
BAR_CELLS = 16
OLDER_RUNS = 20  # looked at for the usual duration of a session
COLOURS = {"running": "36", "done": "32", "waiting": "2", "not needed": "2", "not started": "2"}  # ANSI SGR
FAILED_COLOUR = "31"


class Window:
    """Shows the states of a run's sessions. `usual`: seconds of each session in earlier runs."""

    def __init__(self, out: TextIO, started: float, usual: Mapping[str, float]) -> None:
        self._out, self._started, self._usual = out, started, usual
        self._is_terminal = out.isatty()
        self._drawn, self._printed, self._keys = 0, 0.0, list[str]()

    def show_states(self, states: Sequence[SessionState]) -> None:
        if self._is_terminal:
            self._draw(states)
        else:
            self._print_changes(states)

    def _draw(self, states: Sequence[SessionState]) -> None:
        width = shutil.get_terminal_size().columns - 1
        rows = [(state.state, session_line(state)) for state in states]
        lines = [_colour("running", "1"), *(_colour(state) for state, _ in rows)]
        texts = [run_line(states, time.time() - self._started, self._usual), *(text for _, text in rows)]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        drawn = "".join(f"\x1b[2K{start}{text[:width]}{end}\n" for (start, end), text in zip(lines, texts, strict=True))
        print(up + drawn, end="", file=self._out, flush=True)
        self._drawn = len(texts)

    def _print_changes(self, states: Sequence[SessionState]) -> None:
        keys = [f"{state.name} {state.state} {state.step}" for state in states]
        is_due = time.monotonic() - self._printed > PLAIN_EVERY_SECONDS
        for key, state in zip(keys, states, strict=True):
            has_changed = key not in self._keys and state.state not in ("waiting", "not needed")
            if has_changed or (is_due and state.state == "running"):
                print(session_line(state), file=self._out, flush=True)
                self._printed = time.monotonic()
        self._keys = keys


def _colour(state: str, code: str = "") -> tuple[str, str]:
    if "NO_COLOR" in os.environ:
        return "", ""
    return f"\x1b[{code or COLOURS.get(state, FAILED_COLOUR)}m", "\x1b[0m"


def session_line(state: SessionState) -> str:
    """Name, state, time, step, rows, a bar, rate and time left in columns; what is not known is blank."""
    elapsed = "" if state.state in ("waiting", "not needed") else format_duration(state.elapsed)
    cells = [f"{state.name:<12}", f"{state.state:<11}", f"{elapsed:>8}"]
    if state.total:
        cells.append(f"{state.step} {state.done}/{state.total}".ljust(30))
    if state.total and state.code is None:
        cells += [_bar(state.done / state.total), f"{state.rate:.1f}/s".rjust(9) if state.rate else " " * 9]
    if state.seconds_left is not None:
        cells.append(f"about {format_duration(state.seconds_left)} left")
    return "  ".join([*cells, state.note]).rstrip()


def _bar(share: float) -> str:
    filled = round(min(share, 1.0) * BAR_CELLS)
    return "━" * filled + "┄" * (BAR_CELLS - filled)


def run_line(states: Sequence[SessionState], elapsed: float, usual: Mapping[str, float]) -> str:
    """`Step 3 of 6 · 4:12 · about 5:00 left`; the rest only if every later session has ended before."""
    steps = [state for state in states if state.name != TEACHER]
    # Not the number of those that have ended: behind a failed session the others end at once.
    current = next((place for place, state in enumerate(steps, 1) if state.code is None), len(steps))
    parts = [f"Step {current} of {len(steps)}", format_duration(elapsed)]
    left = seconds_left([state for state in steps if state.code is None], usual)
    if left:
        parts.append(f"about {format_duration(left)} left")
    return " · ".join(parts)


def seconds_left(open_states: Iterable[SessionState], usual: Mapping[str, float]) -> float | None:
    """Of the sessions that have not ended; None if one of them cannot be estimated."""
    total = 0.0
    for state in open_states:
        rest = [usual[state.name] - state.elapsed] if state.name in usual else []
        rest += [state.seconds_left] if state.seconds_left is not None else []
        if not rest:
            return None
        total += max(0.0, *rest)
    return total


def usual_seconds(run_dir: Path) -> dict[str, float]:
    """By session, how long it took when it last ended well in an older run of the same files."""
    record, usual = read_record(run_dir), dict[str, float]()
    older = sorted(
        (plan.parent for plan in run_dir.parent.glob("*/plan") if plan.parent.name < run_dir.name), reverse=True
    )
    for folder in [run for run in older if not run.is_symlink()][:OLDER_RUNS]:
        earlier = read_record(folder)
        if record and earlier and earlier.root == record.root:
            states = [read_session(folder, name) for name in planned_sessions(folder)]
            usual = {state.name: state.elapsed for state in states if state.code == 0} | usual
    return usual


def wrap_lines(lines: Iterable[str], out: TextIO) -> Iterator[str]:
    """Long lines cut at words where they are shown on a terminal."""
    width = shutil.get_terminal_size().columns - 1
    for line in lines:
        if out.isatty() and len(line) > width:
            yield from textwrap.wrap(
                line, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
            )
        else:
            yield line
