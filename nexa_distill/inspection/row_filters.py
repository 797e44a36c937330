"""Which rows a person wants to see: every filter that is set must hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nexa_distill.annotation.annotations import Annotation, Key, verdict
from nexa_distill.inspection.table_view import Answers, Checks, Mask, Rows

UNDECIDED, CONFLICT = "undecided", "disagreement"
Decided = Mapping[Key, Sequence[Annotation]]


@dataclass(frozen=True)
class Filters:
    """An empty filter lets every row through. `decisions`: actions, UNDECIDED, CONFLICT."""

    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reasons: Sequence[str] = ()
    checks: Sequence[str] = ()
    decisions: Sequence[str] = ()
    text: str = ""


def matching(
    answers: Answers, checks: Sequence[Checks], decided: Decided, filters: Filters
) -> Rows:
    """Numbers of the rows that pass, ascending."""
    mask: Mask = np.ones(len(answers), np.bool_)
    for column, wanted in filters.values.items():
        if wanted:
            mask &= answers.among(column, wanted)
    if filters.reasons:
        mask &= answers.rejected_for(filters.reasons)
    if filters.checks:
        mask &= _rows(answers, set().union(*(one.not_passed(filters.checks) for one in checks)))
    if filters.decisions:
        mask &= _with_decision(answers, decided, filters.decisions)
    if filters.text:
        mask &= answers.having(filters.text)
    return np.flatnonzero(mask)


def _rows(answers: Answers, keys: set[Key]) -> Mask:
    mask = np.zeros(len(answers), np.bool_)
    mask[[n for key in keys if (n := answers.number_of(key)) is not None]] = True
    return mask


def _with_decision(answers: Answers, decided: Decided, wanted: Sequence[str]) -> Mask:
    mask = _rows(answers, {key for key, people in decided.items() if said(people) in wanted})
    return mask | ~decided_rows(answers, decided) if UNDECIDED in wanted else mask


def decided_rows(answers: Answers, decided: Decided) -> Mask:
    """The rows on which somebody has decided."""
    return _rows(answers, set(decided))


def said(people: Sequence[Annotation]) -> str:
    """An action, UNDECIDED or CONFLICT."""
    return (verdict(people) or CONFLICT) if people else UNDECIDED


def after(rows: Rows, number: int) -> int | None:
    """The next row behind `number`, or None at the end."""
    place = int(np.searchsorted(rows, number, side="right"))
    return int(rows[place]) if place < len(rows) else None


def before(rows: Rows, number: int) -> int | None:
    """The row before `number`, or None at the beginning."""
    place = int(np.searchsorted(rows, number, side="left")) - 1
    return int(rows[place]) if place >= 0 else None
