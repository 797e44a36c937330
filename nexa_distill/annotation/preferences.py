"""Blind preferences between two answers: append-only log, and the current state.

Reads, writes  `storage.preferences`, one `Preference` per line. A line contains both texts, so it
               stays valid when answers are regenerated
Keeps          every event; an annotator's last event on a pair of texts counts
Raises         InputError (65) naming the line that is not a preference
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from nexa_distill.annotation import event_log
from nexa_distill.errors import InputError
from nexa_distill.settings.yaml_loading import Section

Choice = Literal["first", "second", "tie"]


class Preference(Section):
    """`first` and `second` name the models: `teacher`, `before` or `after` (training)."""

    sample_id: str
    first: str
    second: str
    first_output: str
    second_output: str
    preferred: Choice
    annotator: str
    timestamp: str

    @property
    def preferred_source(self) -> str | None:
        return {"first": self.first, "second": self.second, "tie": None}[self.preferred]


def append(path: Path, preference: Preference) -> None:
    """Write one preference; it is on disk when this returns."""
    event_log.append(path, preference.model_dump())


def read(path: Path) -> list[Preference]:
    """Every preference, the oldest first; none when there is no file."""
    preferences = []
    for number, line in event_log.read_lines(path):
        try:
            preferences.append(Preference.model_validate(json.loads(line)))
        except (ValidationError, ValueError, RecursionError) as error:
            problems = str(error).splitlines()
            raise InputError(f"{path}: line {number}: not a preference: {problems}") from None
    return preferences


def latest_preferences(events: Iterable[Preference]) -> list[Preference]:
    """The last preference of each annotator on each pair of texts, whichever was shown first."""
    last = {}
    for event in events:
        # A set, because either text may have been shown first.
        pair = frozenset((event.first_output, event.second_output))
        last[event.sample_id, pair, event.annotator] = event
    return list(last.values())


def count_preferences(events: Iterable[Preference]) -> Counter[str]:
    return Counter(event.preferred_source or "tie" for event in latest_preferences(events))
