"""Progress for the user (a bar on a terminal, lines in a log) and for the launcher (a small JSON file).

The launcher sets `NEXA_PROGRESS_FILE` for each session and shows the file as its live line:
`{"step": str, "done": int, "total": int, "rate": rows/s, "note": str, "updated": unix seconds}`.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

WRITE_EVERY_SECONDS = 0.5
PRINT_EVERY_SECONDS = 10.0  # a line, where there is no terminal to draw a bar on


class Progress:
    """A bar over `total` rows, of which `done` are already done. Use as a context manager."""

    def __init__(self, step: str, total: int, *, done: int = 0, unit: str = "rows") -> None:
        self.step, self.total, self.done, self.note = step, total, done, ""
        self._start, self._first, self._written = time.monotonic(), done, 0.0
        file = os.environ.get("NEXA_PROGRESS_FILE")
        self._file = Path(file) if file else None
        self._unit, self._printed = unit, self._start
        self._has_lines = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=step, unit=unit, mininterval=0.5, disable=self._has_lines)

    def __enter__(self) -> Self:
        self._write_state()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._write_state()
        if self._has_lines and self.total:
            self._print_state()

    def skip_rows(self, rows: int = 1) -> None:
        """Count rows that were done before, and took no time of this run."""
        self._first += rows
        self.add(rows)

    def add(self, rows: int = 1, note: str = "") -> None:
        self.done += rows
        if note:
            self.note = note
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(rows)
        # Thousands of rows a second would otherwise be as many writes.
        if time.monotonic() - self._written > WRITE_EVERY_SECONDS:
            self._write_state()
        if self._has_lines and time.monotonic() - self._printed > PRINT_EVERY_SECONDS:
            self._print_state()

    def set_note(self, note: str) -> None:
        self.note = note
        self._bar.set_postfix_str(note)
        if time.monotonic() - self._written > WRITE_EVERY_SECONDS:
            self._write_state()

    def print_line(self, text: str) -> None:
        self._bar.clear()
        print(f"{self.step}: {text}", flush=True)
        self._bar.refresh()

    @property
    def _rate(self) -> float:
        """Rows per second of this run."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _print_state(self) -> None:
        self._printed = time.monotonic()
        rate = f", {self._rate:.1f}/s" if self.done > self._first else ""
        note = f", {self.note}" if self.note else ""
        print(f"{self.step}: {self.done} of {self.total} {self._unit}{rate}{note}", file=sys.stderr, flush=True)

    def _write_state(self) -> None:
        self._written = time.monotonic()
        if self._file is None:
            return
        state = {
            "step": self.step,
            "done": self.done,
            "total": self.total,
            "rate": round(self._rate, 3),
            "note": self.note,
            "updated": time.time(),
        }
        # Replaced as a whole, because the launcher may read it at any moment.
        temporary = self._file.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(state))
            temporary.replace(self._file)
        except OSError:  # a progress file that cannot be written never stops the work
            self._file = None


def format_duration(seconds: float) -> str:
    """`62` as `1:02`, `3602` as `1:00:02`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
