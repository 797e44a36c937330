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
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill import annotations
from nexa_distill.annotations import Annotation
from nexa_distill.config import DistillConfig
from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.handoff import read_batches
from nexa_distill.manifests import repairs

Key = tuple[str, int]  # sample_id, attempt
EDITS_FROM = 1_000_000
AGAIN = ("reject", "regenerate")
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
        said = [text for one in self.by.get(key, []) if one.action != "accept"
                for text in (one.reason, one.note) if text]  # fmt: skip
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
            at = made.get(key)
            if key not in made or (at and _time(one) < at):
                found.left_out += 1
                continue
            found.by.setdefault(key, []).append(one)
            if one.action == "edit":
                edit = Edit(numbers[_text(one)], one.attempt, one)
                found.edits.setdefault(one.sample_id, []).append(edit)
    return found


def _made(config: DistillConfig, samples: set[str]) -> Iterator[tuple[Key, datetime | None]]:
    """When the answers to these samples arrived; null = not known."""
    wanted, storage = pa.array(sorted(samples), pa.string()), config.storage
    columns = ["sample_id", "attempt", "created_at"]
    for path in (storage.path("collected_dataset"), *repairs(storage)):
        for rows in read_batches(path, TABLES["collected_dataset"], columns=columns):
            rows = rows.filter(pc.is_in(rows["sample_id"], wanted))
            for row in rows.to_pylist():
                yield (row["sample_id"], row["attempt"]), row["created_at"]


def time_of(one: Annotation) -> datetime:
    """When the decision was made, UTC."""
    at = datetime.fromisoformat(str(one.timestamp))
    return at if at.tzinfo else at.replace(tzinfo=UTC)


_time = time_of


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
