"""The current decisions for the inspection pages, updated with what others append."""

import threading
from pathlib import Path

from nexa_distill.annotation import event_log
from nexa_distill.annotation.annotations import Annotation, Key, latest_decisions, parse_line


class AnnotationFollower:
    """Follows an annotations file. Thread-safe: every browser tab is a thread of one server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._end, self._lines = 0, 0
        self._events: list[Annotation] = []
        self._current: dict[Key, list[Annotation]] = {}

    def current_decisions(self) -> dict[Key, list[Annotation]]:
        """`annotations.latest_decisions` of the file as it is now. Raises InputError naming a bad line."""
        with self._lock:
            if self._file_size() != self._end:
                self._read_new()
            return self._current

    def _file_size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _read_new(self) -> None:
        if self._file_size() < self._end:  # an incomplete last line was removed, or it is another file
            self._end, self._lines, self._events = 0, 0, []
        with self.path.open("rb") as file:
            file.seek(self._end)
            new = file.read()
        *complete, rest = new.split(b"\n")
        for line in complete:
            self._lines += 1
            if line.strip():
                self._events.append(parse_line(self.path, self._lines, line))
        self._end += len(new) - len(rest)
        # A complete last line counts without its newline; it is read again with it.
        last = [parse_line(self.path, self._lines + 1, rest)] if event_log.is_complete_event(rest) else []
        self._current = latest_decisions([*self._events, *last])
