"""What every page of the inspection room works with: the configuration, the file that is looked at,
who looks, and what is held in memory for all browser tabs of one server.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from nexa_distill.annotation import annotations
from nexa_distill.annotation.annotations import Annotation, Key
from nexa_distill.errors import UsageError
from nexa_distill.inspection.annotation_view import Decisions
from nexa_distill.inspection.table_view import Answers, Checks
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.manifests import sealed_hash

CHECKS = ("rules_checks", "exec_checks", "judge_checks")
ATTEMPTS = ("collected_dataset", "regen_dataset")


@dataclass(frozen=True)
class Room:
    """One look at a run: `src` is the file on the Inspect page, `labels` the decisions file."""

    config: DistillConfig
    config_path: Path
    src: Path
    labels: Path
    start: int
    annotator: str

    def answers(self, path: Path | None = None) -> Answers:
        """The rows of `src`, or of another table of answers; read again when the file is new."""
        file = look(path or self.src)
        sealed_once(file, self.config)
        return _answers(file)

    def checks(self) -> list[Checks]:
        """The checks files that are there."""
        paths = (self.config.storage.path(key) for key in CHECKS)
        return [_checks(look(path)) for path in paths if path.exists()]

    def decided(self) -> dict[Key, list[Annotation]]:
        """The current decisions on every answer."""
        return _decisions(self.labels).current()

    def decide(self, key: Key, action: str, **said: str | None) -> None:
        """Write a decision of this annotator; it is on disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = {
            "sample_id": key[0],
            "attempt": key[1],
            "action": action,
            **said,
            "annotator": self.annotator,
            "timestamp": now,
        }
        annotations.append(self.labels, Annotation.model_validate(event))
        self.refresh_rejected()

    def refresh_rejected(self) -> None:
        """Bring `storage.rejected_labels` up to date, where its own decisions are looked at."""
        storage = self.config.storage
        if self.labels.resolve() == storage.path("annotations").resolve():
            annotations.write_rejected(storage, self.decided())

    def other_attempts(self, key: Key) -> list[tuple[Path, int]]:
        """(file, row) of every other answer to the same prompt."""
        found = []
        for path in dict.fromkeys([self.src, *map(self.config.storage.path, ATTEMPTS)]):
            if path.exists():
                answers = self.answers(path)
                found += [(path, int(n)) for n in answers.numbers_of(key[0])]
        keys = {self.answers(path).key(n): (path, n) for path, n in reversed(found)}
        return [place for other, place in sorted(keys.items()) if other != key]


class File(NamedTuple):
    """A file as it is now: what is held in memory of it is true for this state of it."""

    path: Path
    changed: int
    size: int


def look(path: Path) -> File:
    """The file's state; of one that is not there, zeros."""
    if not path.exists():
        return File(path, 0, 0)
    found = path.stat()
    return File(path, found.st_mtime_ns, found.st_size)


@st.cache_resource(max_entries=8, show_spinner=False)
def _answers(file: File) -> Answers:
    return Answers(file.path)


@st.cache_resource(max_entries=8, show_spinner=False)
def _checks(file: File) -> Checks:
    return Checks(file.path)


@st.cache_resource(max_entries=32, show_spinner=False)
def sealed_once(file: File, _config: DistillConfig) -> str:
    """The hash of a file, after checking its seal. Raises InputMissing (66)."""
    return sealed_hash(file.path, _config.storage)


@st.cache_resource(show_spinner=False)  # a spinner could end a callback between write and move
def _decisions(path: Path) -> Decisions:
    return Decisions(path)


def allowed(src: Path, config: DistillConfig, *, outside: bool) -> Path:
    """`src`, if it stands in the project or below `storage.root`. Raises UsageError (2)."""
    real = src.resolve()
    roots = (Path.cwd().resolve(), Path(config.storage.root).resolve())
    if outside or any(real.is_relative_to(root) for root in roots):
        return src
    raise UsageError(
        f"--src {src}: stands outside the project ({roots[0]}) and outside storage.root "
        f"({roots[1]}); if it is meant, add --allow-outside"
    )
