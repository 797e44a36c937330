"""What people decide about answers: events that are only ever appended, and their current view.

Reads, writes  `storage.annotations`, one `Annotation` per line, in the order of time
Writes         `storage.rejected_labels`, the current rejections, for people and other programs
Keeps          every event. Of one annotator the last event on an answer counts; where annotators
               differ the answer is in doubt, and doubt is a rejection.
Raises         InputError (65) naming the line that is not a decision, OSError for a full disk

The order of the file is the order of time: no clock decides which event is the last.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from nexa_distill.annotation import event_log
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.settings.pipeline import Storage
from nexa_distill.settings.yaml_loading import Section
from nexa_distill.storage.atomic import write_text

Key = tuple[str, int]  # sample_id, attempt
Action = Literal["accept", "reject", "regenerate", "edit"]
ACTIONS: tuple[str, ...] = get_args(Action)
AGAINST = ("reject", "regenerate")  # the answer is not to be trained on


class Annotation(Section):
    """One decision. `timestamp`: ISO 8601, UTC. `annotator` null: whoever wrote the file."""

    sample_id: str
    attempt: int
    action: Action
    reason: str | None = None
    note: str | None = None
    edited_output: str | None = None
    annotator: str | None = None
    timestamp: str | None = None

    @property
    def key(self) -> Key:
        """The answer that it is about."""
        return self.sample_id, self.attempt


def append(path: Path, annotation: Annotation) -> None:
    """Write one decision; it is on disk when this returns."""
    event_log.append(path, annotation.model_dump())


def read(path: Path) -> list[Annotation]:
    """Every decision, the oldest first; none when there is no file."""
    return [parse(path, number, line) for number, line in event_log.lines(path)]


def parse(path: Path, number: int, line: bytes) -> Annotation:
    """The decision on one line. Raises InputError naming the line."""
    try:
        return Annotation.model_validate(json.loads(line))
    except ValidationError as error:
        said = "; ".join(_explain(dict(item)) for item in error.errors())
    except (ValueError, RecursionError) as error:
        said = str(error)
    raise InputError(f"{path}: line {number}: {said}; found {line[:80]!r}")


def _explain(item: dict[str, Any]) -> str:
    where = ".".join(map(str, item["loc"]))
    match item["type"]:
        case "model_type":
            return "expected a JSON object"
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            known = Annotation.model_fields
            return f"unknown key {where}{did_you_mean(where, known)}; known: {', '.join(known)}"
        case "literal_error":
            near = did_you_mean(str(item["input"]), ACTIONS)
            return f"{where} is {item['input']!r}{near}, expected one of {', '.join(ACTIONS)}"
    return f"{where} is {item['input']!r}: {item['msg']}"


def current(events: Iterable[Annotation]) -> dict[Key, list[Annotation]]:
    """Of each answer the last decision of each annotator, the oldest first."""
    last: dict[Key, dict[str | None, Annotation]] = {}
    for event in events:
        people = last.setdefault(event.key, {})
        people.pop(event.annotator, None)
        people[event.annotator] = event
    return {key: list(people.values()) for key, people in last.items()}


def verdict(annotations: Sequence[Annotation]) -> str | None:
    """What they all say. None: they differ (two edits that differ too), or there are none."""
    said = {(one.action, one.edited_output) for one in annotations}
    return annotations[0].action if len(said) == 1 else None


def write_rejected(storage: Storage, last: dict[Key, list[Annotation]] | None = None) -> None:
    """Replace `storage.rejected_labels` by the current decisions against answers.

    `last`: `current` of the file, from whoever has it in memory.
    """
    if last is None:
        last = current(read(storage.path("annotations")))
    rejected = [one for people in last.values() for one in people if one.action in AGAINST]
    text = "".join(json.dumps(one.model_dump()) + "\n" for one in rejected)
    write_text(storage.path("rejected_labels"), text)
