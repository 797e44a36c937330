"""Context of the inspection pages: configuration, inspected file, annotator, cached tables.

The caches are shared by all browser tabs of one server.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from nexa_distill.annotation import annotations
from nexa_distill.annotation.annotations import Annotation, Key
from nexa_distill.contracts import CHECK_TABLES
from nexa_distill.errors import UsageError
from nexa_distill.inspection.annotation_view import AnnotationFollower
from nexa_distill.inspection.table_view import AnswerTable, ChecksFile
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.manifests import sealed_hash

ATTEMPTS = ("collected_dataset", "regen_dataset")


@dataclass(frozen=True)
class PageContext:
    """`src`: the file on the Inspect page; `labels`: the decisions file."""

    config: DistillConfig
    config_path: Path
    src: Path
    labels: Path
    start: int
    annotator: str

    def load_answers(self, path: Path | None = None) -> AnswerTable:
        """The rows of `src`, or of another table of answers; read again if the file changed."""
        file = file_state(path or self.src)
        check_seal_once(file, self.config)
        return _cached_answers(file)

    def load_checks(self) -> list[ChecksFile]:
        paths = (self.config.storage.path_of(key) for key in CHECK_TABLES)
        return [_cached_checks(file_state(path)) for path in paths if path.exists()]

    def load_decisions(self) -> dict[Key, list[Annotation]]:
        return _cached_decisions(self.labels).current_decisions()

    def write_decision(self, key: Key, action: str, **comments: str | None) -> None:
        """Write a decision of this annotator; it is on disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = {
            "sample_id": key[0],
            "attempt": key[1],
            "action": action,
            **comments,
            "annotator": self.annotator,
            "timestamp": now,
        }
        annotations.append(self.labels, Annotation.model_validate(event))
        # After the decision, from which the other file is made.
        self.refresh_rejected()

    def refresh_rejected(self) -> None:
        """Update `storage.rejected_labels`, if `labels` is the storage's own file."""
        storage = self.config.storage
        if self.labels.resolve() == storage.path_of("annotations").resolve():
            annotations.write_rejected(storage, self.load_decisions())

    def other_attempts(self, key: Key) -> list[tuple[Path, int]]:
        places = []
        for path in dict.fromkeys([self.src, *map(self.config.storage.path_of, ATTEMPTS)]):
            if path.exists():
                answers = self.load_answers(path)
                places += [(path, int(n)) for n in answers.numbers_of(key[0])]
        # Reversed, so that of two files with the same answer the first counts.
        keys = {self.load_answers(path).key_at(n): (path, n) for path, n in reversed(places)}
        return [place for other, place in sorted(keys.items()) if other != key]


class FileState(NamedTuple):
    """Path, modification time (ns) and size of a file: the key of the caches."""

    path: Path
    changed: int
    size: int


def file_state(path: Path) -> FileState:
    if not path.exists():
        return FileState(path, 0, 0)
    stat = path.stat()
    return FileState(path, stat.st_mtime_ns, stat.st_size)


@st.cache_resource(max_entries=8, show_spinner=False)
def _cached_answers(file: FileState) -> AnswerTable:
    return AnswerTable(file.path)


@st.cache_resource(max_entries=8, show_spinner=False)
def _cached_checks(file: FileState) -> ChecksFile:
    return ChecksFile(file.path)


@st.cache_resource(max_entries=32, show_spinner=False)
def check_seal_once(file: FileState, _config: DistillConfig) -> str:
    """The hash of a file, after checking its seal. Raises InputMissing (66)."""
    # Once per state of the file, because a large one takes seconds to hash.
    return sealed_hash(file.path, _config.storage)


# With a spinner, a callback could be stopped between writing a decision and moving on.
@st.cache_resource(show_spinner=False)
def _cached_decisions(path: Path) -> AnnotationFollower:
    return AnnotationFollower(path)


def require_inside(src: Path, config: DistillConfig, *, outside: bool) -> Path:
    """`src`, if it is in the project or below `storage.root`. Raises UsageError (2)."""
    real = src.resolve()
    roots = (Path.cwd().resolve(), Path(config.storage.root).resolve())
    if outside or any(real.is_relative_to(root) for root in roots):
        return src
    raise UsageError(
        f"--src {src}: is outside the project ({roots[0]}) and outside storage.root "
        f"({roots[1]}); to read it anyway, add --allow-outside"
    )
