"""Decisions of people that stand: about an answer that is there, and made when it was.

A decision names (sample_id, attempt). When the teacher was asked again since, another text has that
key, so a decision that is older than the answer counts no more; nor does one about an answer that
is not there. Both stay in the log of annotations, and are counted here.

An edit makes a further answer. Edits have attempt numbers of their own, from `EDITS_FROM` on, in
the order in which the texts of a sample first stand in the log: the log is only appended to, so
no number ever changes, whatever else is rejected or asked again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from nexa_distill.annotation import annotations
from nexa_distill.annotation.annotations import Annotation
from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import read_text
from nexa_distill.storage.manifests import repairs
from nexa_distill.storage.tables import read_batches

ANSWERS = TABLES["collected_dataset"]
Key = tuple[str, int]  # sample_id, attempt
DECISIONS = (
    "a JSONL file of decisions. The inspection app writes one at the first decision: "
    "`streamlit run nexa_distill/ui_inspect.py`"
)
EDITS_FROM = 1_000_000
SEED = "seed"  # annotator of decisions that name none


class Edit(NamedTuple):
    """A text that a person wrote. `of`: the attempt that it replaces; `attempt`: its own."""

    attempt: int
    of: int
    by: Annotation


@dataclass
class Standing:
    """`by`: answer -> its decisions, one per person; `edits`: sample -> its edited texts.

    `left_out`: decisions about answers that are not there, or are newer than the decision.
    """

    by: dict[Key, list[Annotation]] = field(default_factory=dict)
    edits: dict[str, list[Edit]] = field(default_factory=dict)
    left_out: int = 0

    def accepted(self, key: Key) -> bool | None:
        """Whether people accept the answer; null when they do not agree."""
        views = {decision.action == "accept" for decision in self.by[key]}
        return views.pop() if len(views) == 1 else None

    def words(self, key: Key) -> str:
        """What was said against the answer."""
        said = [
            text
            for one in self.by.get(key, [])
            if one.action != "accept"
            for text in (one.reason, one.note)
            if text
        ]
        return "; ".join(dict.fromkeys(said))

    def asked_again(self, key: Key) -> bool:
        """Whether somebody asks for another answer, and nobody accepts this one."""
        found = self.by.get(key, [])
        return any(one.action == "regenerate" for one in found) and self.accepted(key) is False


def standing(config: DistillConfig) -> Standing:
    """The decisions of `storage.annotations`; none when there is no such file."""
    path, found = config.storage.path("annotations"), Standing()
    if not path.exists():
        return found
    events = annotations.read(path)
    made = dict(_made(config, {event.sample_id for event in events}))
    numbers = _numbers(events)
    for key, views in annotations.current(events).items():
        for one in views:
            at, decided = made.get(key), time_of(one)
            own = numbers.get(_text(one), EDITS_FROM)
            of_itself = one.action == "edit" and own <= one.attempt
            if key not in made or of_itself or (at and decided and decided < at):
                found.left_out += 1
                continue
            found.by.setdefault(key, []).append(one)
            if one.action == "edit":
                edit = Edit(own, one.attempt, one)
                found.edits.setdefault(one.sample_id, []).append(edit)
    return found


def _made(config: DistillConfig, samples: set[str]) -> Iterator[tuple[Key, datetime | None]]:
    """When the answers to these samples arrived; null = not known."""
    wanted, storage = pa.array(sorted(samples), pa.string()), config.storage
    columns = ["sample_id", "attempt", "created_at"]
    for path in (storage.path("collected_dataset"), *repairs(storage)):
        for rows in read_batches(path, ANSWERS, columns=columns):
            rows = rows.filter(pc.is_in(rows["sample_id"], wanted))
            for row in rows.to_pylist():
                yield (row["sample_id"], row["attempt"]), row["created_at"]


def time_of(one: Annotation) -> datetime | None:
    """When the decision was made, UTC; null = not said. Raises InputError."""
    if one.timestamp is None:
        return None
    try:
        at = datetime.fromisoformat(one.timestamp)
    except ValueError:
        raise InputError(
            f"decision on {one.sample_id}, attempt {one.attempt}: timestamp is {one.timestamp!r}, "
            "expected ISO 8601, as 2026-11-25T06:00:00+00:00"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _text(one: Annotation) -> tuple[str, int, str | None, str | None]:
    return one.sample_id, one.attempt, one.annotator, one.edited_output


def _numbers(events: list[Annotation]) -> dict[tuple[str, int, str | None, str | None], int]:
    """The attempt number of every edited text that was ever in the log."""
    found: dict[tuple[str, int, str | None, str | None], int] = {}
    count: dict[str, int] = {}
    for event in events:
        if event.action == "edit" and _text(event) not in found:
            found[_text(event)] = EDITS_FROM + count.get(event.sample_id, 0)
            count[event.sample_id] = count.get(event.sample_id, 0) + 1
    return found


def decisions_of(path: Path, src: Path) -> list[Annotation]:
    """The decisions of a file: lines of the log, or seeds `{index | sample_id, action, ...}`.

    A seed is about the answer in row `index` (0-based) of `src`, the file that was looked at, or
    about the last attempt that is there of `sample_id`. Raises InputMissing where there is no such
    file, InputError naming the line.
    """
    answers = _Inspected(src)
    found = []
    for number, line in enumerate(read_text(path, DECISIONS).split("\n"), 1):
        if line.strip():
            try:
                found.append(_decision(json.loads(line), answers))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}: line {number}: {error}; found {line[:80]!r}") from None
    return found


class _Inspected:
    """Keys of the file that a person looked at; read when a seed needs it."""

    def __init__(self, src: Path) -> None:
        self.src = src

    @cached_property
    def keys(self) -> list[Key]:
        found: list[Key] = []
        for rows in read_batches(self.src, ANSWERS, columns=list(ANSWERS.unique)):
            columns = (rows[name].to_pylist() for name in ANSWERS.unique)
            found += zip(*columns, strict=True)
        return found

    @cached_property
    def last(self) -> dict[str, int]:
        return dict(sorted(self.keys))

    def row(self, index: object) -> Key:
        """The answer in this row. Raises ValueError."""
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"index is {index!r}, expected a row number from 0")
        if not 0 <= index < len(self.keys):
            raise ValueError(f"index {index}: {self.src} has rows 0 to {len(self.keys) - 1}")
        return self.keys[index]

    def sample(self, sample: object) -> Key:
        """The last answer to this sample. Raises ValueError."""
        if sample not in self.last:
            raise ValueError(f"sample_id {sample!r} is not in {self.src}; pass that file by --src")
        return str(sample), self.last[str(sample)]


def _decision(line: Any, answers: _Inspected) -> Annotation:
    """Raises ValueError for what is no decision."""
    if not isinstance(line, dict) or not {"index", "sample_id"} & line.keys():
        raise ValueError("expected {sample_id or index, action, reason, note}")
    if "attempt" not in line:
        by_row = "index" in line
        key = answers.row(line["index"]) if by_row else answers.sample(line["sample_id"])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        usual = {"annotator": SEED, "timestamp": now}
        line = usual | line | dict(zip(ANSWERS.unique, key, strict=True))
        line.pop("index", None)
    try:
        return Annotation.model_validate(line)
    except ValidationError as error:
        said = [f"{item['loc'][-1]}: {item['msg']}" for item in error.errors() if item["loc"]]
        raise ValueError("; ".join(said) or "expected a decision") from None


def record(config: DistillConfig, given: list[Annotation]) -> int:
    """Append decisions to the log, those that stand there already left out; how many were new."""
    path = config.storage.path("annotations")
    events = annotations.read(path) if path.exists() else []
    known = {_said(one) for views in annotations.current(events).values() for one in views}
    new = [one for one in given if _said(one) not in known]
    for one in new:
        annotations.append(path, one)
    if new:
        annotations.write_rejected(config.storage)
    return len(new)


def _said(one: Annotation) -> str:
    return one.model_dump_json(exclude={"timestamp"})
