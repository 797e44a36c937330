"""The decisions as the pages see them: what others append meanwhile is read too, and only that."""

import threading
from pathlib import Path

from nexa_distill.annotation import event_log
from nexa_distill.annotation.annotations import Annotation, Key, current, parse


class Decisions:
    """Follows an annotations file. Thread-safe: every browser tab is a thread of one server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._end, self._lines = 0, 0
        self._events: list[Annotation] = []
        self._current: dict[Key, list[Annotation]] = {}

    def current(self) -> dict[Key, list[Annotation]]:
        """`annotations.current` of the file as it is now. Raises InputError naming a bad line."""
        with self._lock:
            if self._size() != self._end:
                self._read_on()
            return self._current

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _read_on(self) -> None:
        if self._size() < self._end:  # a torn tail was cut off, or another file stands here
            self._end, self._lines, self._events = 0, 0, []
        with self.path.open("rb") as file:
            file.seek(self._end)
            new = file.read()
        *complete, rest = new.split(b"\n")
        for line in complete:
            self._lines += 1
            if line.strip():
                self._events.append(parse(self.path, self._lines, line))
        self._end += len(new) - len(rest)
        last = [parse(self.path, self._lines + 1, rest)] if event_log.whole(rest) else []
        self._current = current([*self._events, *last])
