"""Compare two query results.

Rows are a multiset: duplicates count, their order only if the known query orders. Columns are
compared by position, not by name. Integers, text and blobs are compared exactly; a float equals
another number within a relative tolerance of 1e-6 (1e-9 absolute, for zero), so 3 equals 3.0. NULL
equals NULL.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import isclose
from typing import Any

Row = tuple[Any, ...]
# Sorting may pair the wrong rows within the tolerance; up to this many are paired one by one.
MATCHED_ONE_BY_ONE = 200


def is_empty_result(rows: Sequence[Row]) -> bool:
    """Whether there is no row, or only NULL: the result of a query that matches nothing."""
    return all(cell is None for row in rows for cell in row)


def is_same_result(actual: Sequence[Row], known: Sequence[Row], *, ordered: bool) -> bool:
    """Whether the two results are equal. Two empty ones are: test `is_empty_result` first."""
    if len(actual) != len(known) or (actual and len(actual[0]) != len(known[0])):
        return False
    if actual == known:  # most right answers, and much faster than the rest
        return True
    if ordered:
        return all(map(_is_same_row, actual, known))
    ours, theirs = _group_rows(actual), _group_rows(known)
    return ours.keys() == theirs.keys() and all(_has_same_numbers(ours[texts], theirs[texts]) for texts in ours)


def _group_rows(rows: Sequence[Row]) -> dict[Row, list[Row]]:
    groups: dict[Row, list[Row]] = defaultdict(list)
    for row in rows:
        # `...` keeps the place of each number.
        exact = tuple(... if isinstance(cell, int | float) else cell for cell in row)
        # Only numbers have a tolerance: all other cells must be equal, so they are the key.
        groups[exact].append(tuple(cell for cell in row if isinstance(cell, int | float)))
    return groups


def _has_same_numbers(actual: list[Row], known: list[Row]) -> bool:
    if len(actual) != len(known):
        return False
    if all(map(_is_same_row, sorted(actual), sorted(known))):
        return True
    if len(actual) > MATCHED_ONE_BY_ONE:
        return False
    unmatched = list(known)
    for row in actual:
        other = next((i for i, each in enumerate(unmatched) if _is_same_row(row, each)), None)
        if other is None:
            return False
        del unmatched[other]
    return True


def _is_same_row(actual: Row, known: Row) -> bool:
    return all(map(_is_same_cell, actual, known))


def _is_same_cell(actual: Any, known: Any) -> bool:
    if isinstance(actual, float) or isinstance(known, float):
        both = isinstance(actual, int | float) and isinstance(known, int | float)
        return both and isclose(actual, known, rel_tol=1e-6, abs_tol=1e-9)
    # A text and a blob with the same bytes are different values.
    return type(actual) is type(known) and bool(actual == known)
