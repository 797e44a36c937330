"""Which of two answers a person prefers, not knowing who wrote them.

Reads, writes  `storage.preferences`, one `Preference` per line, append-only like the annotations.
               A line holds both texts, so it stays true when the answers are made anew
Keeps          every event; of one annotator the last one on a pair of texts counts
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
    """`first` and `second` say whose the texts are: teacher, before or after (training)."""

    sample_id: str
    first: str
    second: str
    first_output: str
    second_output: str
    preferred: Choice
    annotator: str
    timestamp: str

    @property
    def winner(self) -> str | None:
        """Whose answer is preferred; None for a tie."""
        return {"first": self.first, "second": self.second, "tie": None}[self.preferred]


def append(path: Path, preference: Preference) -> None:
    """Write one; it is on disk when this returns."""
    event_log.append(path, preference.model_dump())


def read(path: Path) -> list[Preference]:
    """Every preference, the oldest first; none when there is no file."""
    found = []
    for number, line in event_log.lines(path):
        try:
            found.append(Preference.model_validate(json.loads(line)))
        except (ValidationError, ValueError, RecursionError) as error:
            said = str(error).splitlines()
            raise InputError(f"{path}: line {number}: not a preference: {said}") from None
    return found


def current(events: Iterable[Preference]) -> list[Preference]:
    """The last one of each annotator on each pair of texts, in whichever order they stood."""
    last = {}
    for one in events:
        pair = frozenset((one.first_output, one.second_output))
        last[one.sample_id, pair, one.annotator] = one
    return list(last.values())


def tally(events: Iterable[Preference]) -> Counter[str]:
    """How often each was preferred; `tie` among them."""
    return Counter(one.winner or "tie" for one in current(events))
