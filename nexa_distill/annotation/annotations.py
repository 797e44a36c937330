"""Append-only log of human annotations, and the current state per answer.

Reads, writes  `storage.annotations`, one `Annotation` per line
Writes         `storage.rejected_labels`, the current rejections, for other programs
Keeps          every event; the last event of an annotator on an answer counts
Raises         InputError (65) naming the line that is not a decision, OSError for a full disk
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
NEGATIVE_ACTIONS = ("reject", "regenerate")  # the answer is not to be trained on


class Annotation(Section):
    """One decision. `timestamp`: ISO 8601, UTC. `annotator` null: not named."""

    sample_id: str
    attempt: int
    action: Action
    reason: str | None = None
    note: str | None = None
    edited_output: str | None = None
    annotator: str | None = None
    timestamp: str | None = None

    @property
    def answer_key(self) -> Key:
        return self.sample_id, self.attempt


def append(path: Path, annotation: Annotation) -> None:
    """Write one decision; it is on disk when this returns."""
    event_log.append(path, annotation.model_dump())


def read(path: Path) -> list[Annotation]:
    """Every decision, the oldest first; none when there is no file."""
    return [parse_line(path, number, line) for number, line in event_log.read_lines(path)]


def parse_line(path: Path, number: int, line: bytes) -> Annotation:
    """Raises InputError naming the line."""
    try:
        return Annotation.model_validate(json.loads(line))
    except ValidationError as error:
        problem = "; ".join(_explain_error(dict(item)) for item in error.errors())
    # A line of thousands of brackets raises RecursionError, which is no ValueError.
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise InputError(f"{path}: line {number}: {problem}; found {line[:80]!r}")


def _explain_error(item: dict[str, Any]) -> str:
    where = ".".join(map(str, item["loc"]))
    match item["type"]:
        case "model_type":
            return "expected a JSON object"
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            names = Annotation.model_fields
            return f"unknown key {where}{did_you_mean(where, names)}; known: {', '.join(names)}"
        case "literal_error":
            near = did_you_mean(str(item["input"]), ACTIONS)
            return f"{where} is {item['input']!r}{near}, expected one of {', '.join(ACTIONS)}"
    return f"{where} is {item['input']!r}: {item['msg']}"


def latest_decisions(events: Iterable[Annotation]) -> dict[Key, list[Annotation]]:
    """Answer -> the last decision of each annotator, the oldest first."""
    # The order of the events is their order in time; clocks of several machines may disagree.
    last: dict[Key, dict[str | None, Annotation]] = {}
    for event in events:
        by_annotator = last.setdefault(event.answer_key, {})
        # Removed first, so that a changed decision moves to the end: the order is that of the last decisions.
        by_annotator.pop(event.annotator, None)
        by_annotator[event.annotator] = event
    return {key: list(by_annotator.values()) for key, by_annotator in last.items()}


def agreed_action(annotations: Sequence[Annotation]) -> str | None:
    """The action that all annotators agree on (for an edit also on the text), or None."""
    actions = {(event.action, event.edited_output) for event in annotations}
    return annotations[0].action if len(actions) == 1 else None


def write_rejected(storage: Storage, last: dict[Key, list[Annotation]] | None = None) -> None:
    """`last`: the current decisions, if the caller has them in memory."""
    if last is None:
        last = latest_decisions(read(storage.path_of("annotations")))
    # Rebuilt from all decisions: a rejection that its annotator takes back must disappear.
    rejected = [event for events in last.values() for event in events if event.action in NEGATIVE_ACTIONS]
    text = "".join(json.dumps(event.model_dump()) + "\n" for event in rejected)
    write_text(storage.path_of("rejected_labels"), text)
