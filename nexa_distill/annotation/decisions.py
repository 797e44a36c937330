"""Human decisions that still apply: the answer exists and predates the decision.

Decisions that no longer apply stay in the annotation log and are counted here. An edit is a further
answer, with an attempt number from `FIRST_EDIT_ATTEMPT` on.
"""

import json
from collections.abc import Iterable, Iterator
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
from nexa_distill.storage.manifests import valid_regenerations
from nexa_distill.storage.tables import read_batches

ANSWERS = TABLES["collected_dataset"]
Key = tuple[str, int]  # sample_id, attempt
DECISIONS = (
    "a JSONL file of decisions. The inspection app creates it at the first decision: "
    "`streamlit run nexa_distill/ui_inspect.py`"
)
# Far above the attempts of teacher and repair, so that the numbers of edits never collide with theirs.
FIRST_EDIT_ATTEMPT = 1_000_000
SEED_ANNOTATOR = "seed"  # annotator of decisions without one


class Edit(NamedTuple):
    """An annotator's text. `of`: the attempt that it replaces; `attempt`: its own number."""

    attempt: int
    of: int
    by: Annotation


@dataclass
class ValidDecisions:
    """The decisions that still apply."""

    by: dict[Key, list[Annotation]] = field(default_factory=dict)  # answer -> its decisions, one per annotator
    edits: dict[str, list[Edit]] = field(default_factory=dict)  # sample -> its edited texts
    left_out: int = 0  # decisions on answers that do not exist or are newer than the decision

    def is_accepted(self, key: Key) -> bool | None:
        """Whether the annotators accept the answer; None if they disagree."""
        views = {decision.action == "accept" for decision in self.by[key]}
        return views.pop() if len(views) == 1 else None

    def comment_text(self, key: Key) -> str:
        against = (event for event in self.by.get(key, []) if event.action != "accept")
        texts = (text for event in against for text in (event.reason, event.note) if text)
        # Annotators often pick the same reason: each text is written once.
        return "; ".join(dict.fromkeys(texts))

    def should_regenerate(self, key: Key) -> bool:
        events = self.by.get(key, [])
        # One annotator who accepts the answer makes `is_accepted` None: then nothing is asked again.
        return any(e.action == "regenerate" for e in events) and self.is_accepted(key) is False


def load_valid_decisions(config: DistillConfig, unrecorded: Iterable[Annotation] = ()) -> ValidDecisions:
    """The decisions of the log that still apply, as if the `unrecorded` ones were its last lines."""
    valid, events = ValidDecisions(), [*annotations.read(config.storage.path_of("annotations")), *unrecorded]
    if not events:
        return valid
    times = dict(_load_answer_times(config, {event.sample_id for event in events}))
    numbers = _number_edits(events)
    for key, views in annotations.latest_decisions(events).items():
        for event in views:
            # If the teacher was asked again since, another text has this key.
            answered, decided = times.get(key), decision_time(event)
            is_outdated = answered and decided and decided < answered
            number = numbers.get(_edit_key(event), FIRST_EDIT_ATTEMPT)
            # An edit of itself, or of a later edit, would be a cycle.
            of_itself = event.action == "edit" and number <= event.attempt
            if key not in times or of_itself or is_outdated:
                valid.left_out += 1
                continue
            valid.by.setdefault(key, []).append(event)
            if event.action == "edit":
                edit = Edit(number, event.attempt, event)
                valid.edits.setdefault(event.sample_id, []).append(edit)
    return valid


def _load_answer_times(config: DistillConfig, samples: set[str]) -> Iterator[tuple[Key, datetime | None]]:
    ids, storage = pa.array(sorted(samples), pa.string()), config.storage
    columns = ["sample_id", "attempt", "created_at"]
    # A decision may be on a regenerated answer, which has a table of its own.
    for path in (storage.path_of("collected_dataset"), *valid_regenerations(storage)):
        for rows in read_batches(path, ANSWERS, columns=columns):
            for row in rows.filter(pc.is_in(rows["sample_id"], ids)).to_pylist():
                yield (row["sample_id"], row["attempt"]), row["created_at"]


def decision_time(event: Annotation) -> datetime | None:
    """The time of the decision, UTC; None if unknown. Raises InputError."""
    if event.timestamp is None:
        return None
    try:
        at = datetime.fromisoformat(event.timestamp)
    except ValueError:
        raise InputError(
            f"decision on {event.sample_id}, attempt {event.attempt}: timestamp is "
            f"{event.timestamp!r}, expected ISO 8601, as 2026-11-25T06:00:00+00:00"
        ) from None
    # A time without a zone is UTC, as the times of answers are.
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _edit_key(event: Annotation) -> tuple[str, int, str | None, str | None]:
    return event.sample_id, event.attempt, event.annotator, event.edited_output


def _number_edits(events: list[Annotation]) -> dict[tuple[str, int, str | None, str | None], int]:
    # In the order of first occurrence. The log is append-only, so a number never changes.
    numbers: dict[tuple[str, int, str | None, str | None], int] = {}
    count: dict[str, int] = {}
    for event in events:
        if event.action == "edit" and _edit_key(event) not in numbers:
            numbers[_edit_key(event)] = FIRST_EDIT_ATTEMPT + count.get(event.sample_id, 0)
            count[event.sample_id] = count.get(event.sample_id, 0) + 1
    return numbers


def load_decisions(path: Path, src: Path) -> list[Annotation]:
    """The decisions in a file: lines of the log, or seeds `{index | sample_id, action, ...}`.

    A seed refers to row `index` (0-based) of the inspected file `src`, or to the last attempt of
    `sample_id` in it. Raises InputMissing without the file, InputError naming the line.
    """
    answers = _InspectedFile(src)
    decisions = []
    for number, line in enumerate(read_text(path, DECISIONS).split("\n"), 1):
        if line.strip():
            try:
                decisions.append(_parse_decision(json.loads(line), answers))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}: line {number}: {error}; found {line[:80]!r}") from None
    return decisions


class _InspectedFile:
    """Keys of the answers in the inspected file; read on first use."""

    def __init__(self, src: Path) -> None:
        self.src = src

    @cached_property
    def answer_keys(self) -> list[Key]:
        keys: list[Key] = []
        for rows in read_batches(self.src, ANSWERS, columns=list(ANSWERS.unique)):
            columns = (rows[name].to_pylist() for name in ANSWERS.unique)
            keys += zip(*columns, strict=True)
        return keys

    @cached_property
    def last_attempts(self) -> dict[str, int]:
        # In ascending order, so that the last attempt of a sample overwrites the others.
        return dict(sorted(self.answer_keys))

    def key_of_row(self, index: object) -> Key:
        # JSON's true is an int in Python, and would be row 1.
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"index is {index!r}, expected a row number from 0")
        if not 0 <= index < len(self.answer_keys):
            raise ValueError(f"index {index}: {self.src} has rows 0 to {len(self.answer_keys) - 1}")
        return self.answer_keys[index]

    def key_of_sample(self, sample: object) -> Key:
        """The last answer to this sample. Raises ValueError."""
        if sample not in self.last_attempts:
            raise ValueError(f"sample_id {sample!r} is not in {self.src}; pass that file by --src")
        return str(sample), self.last_attempts[str(sample)]


def _parse_decision(line: Any, answers: _InspectedFile) -> Annotation:
    """Raises ValueError if the line is not a decision."""
    if not isinstance(line, dict) or not {"index", "sample_id"} & line.keys():
        raise ValueError("expected {sample_id or index, action, reason, note}")
    if "attempt" not in line:
        by_row = "index" in line
        key = answers.key_of_row(line["index"]) if by_row else answers.key_of_sample(line["sample_id"])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        defaults = {"annotator": SEED_ANNOTATOR, "timestamp": now}
        line = defaults | line | dict(zip(ANSWERS.unique, key, strict=True))
        line.pop("index", None)
    try:
        return Annotation.model_validate(line)
    except ValidationError as error:
        problems = [f"{item['loc'][-1]}: {item['msg']}" for item in error.errors() if item["loc"]]
        raise ValueError("; ".join(problems) or "expected a decision") from None


def record_decisions(config: DistillConfig, decisions: list[Annotation]) -> int:
    """Append those decisions to the log that it does not contain yet; returns their number."""
    path = config.storage.path_of("annotations")
    events = annotations.read(path) if path.exists() else []
    # Without the time: the same seeds, imported again, get another timestamp.
    recorded = {_without_time(event) for views in annotations.latest_decisions(events).values() for event in views}
    new = [event for event in decisions if _without_time(event) not in recorded]
    for event in new:
        annotations.append(path, event)
    if new:
        annotations.write_rejected(config.storage)
    return len(new)


def _without_time(event: Annotation) -> str:
    return event.model_dump_json(exclude={"timestamp"})
