"""Filters of the Inspect page: a row must pass every filter that is set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nexa_distill.annotation.annotations import Annotation, Key, agreed_action
from nexa_distill.inspection.table_view import AnswerTable, ChecksFile, Mask, Rows

UNDECIDED, CONFLICT = "undecided", "disagreement"
DecisionsByKey = Mapping[Key, Sequence[Annotation]]


@dataclass(frozen=True)
class RowFilters:
    """An empty filter passes every row. `decisions`: actions, UNDECIDED, CONFLICT."""

    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reasons: Sequence[str] = ()
    checks: Sequence[str] = ()
    decisions: Sequence[str] = ()
    text: str = ""


def matching_rows(
    answers: AnswerTable, checks: Sequence[ChecksFile], decided: DecisionsByKey, filters: RowFilters
) -> Rows:
    mask: Mask = np.ones(len(answers), np.bool_)
    for column, values in filters.values.items():
        if values:
            mask &= answers.mask_of_values(column, values)
    if filters.reasons:
        mask &= answers.mask_of_reasons(filters.reasons)
    if filters.checks:
        mask &= _mask_of_keys(answers, set().union(*(file.not_passed(filters.checks) for file in checks)))
    if filters.decisions:
        mask &= _mask_of_decisions(answers, decided, filters.decisions)
    if filters.text:
        mask &= answers.mask_of_text(filters.text)
    return np.flatnonzero(mask)


def _mask_of_keys(answers: AnswerTable, keys: set[Key]) -> Mask:
    mask = np.zeros(len(answers), np.bool_)
    mask[[n for key in keys if (n := answers.number_of(key)) is not None]] = True
    return mask


def _mask_of_decisions(answers: AnswerTable, decided: DecisionsByKey, labels: Sequence[str]) -> Mask:
    mask = _mask_of_keys(answers, {key for key, events in decided.items() if decision_label(events) in labels})
    # Rows without a decision have no key in `decided`.
    return mask | ~decided_rows(answers, decided) if UNDECIDED in labels else mask


def decided_rows(answers: AnswerTable, decided: DecisionsByKey) -> Mask:
    return _mask_of_keys(answers, set(decided))


def decision_label(events: Sequence[Annotation]) -> str:
    return (agreed_action(events) or CONFLICT) if events else UNDECIDED


def next_row(rows: Rows, number: int) -> int | None:
    place = int(np.searchsorted(rows, number, side="right"))
    return int(rows[place]) if place < len(rows) else None


def previous_row(rows: Rows, number: int) -> int | None:
    place = int(np.searchsorted(rows, number, side="left")) - 1
    return int(rows[place]) if place >= 0 else None
