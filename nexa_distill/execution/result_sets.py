"""Whether two results of queries are the same.

Rows are a multiset: duplicates count, and their order only if the known query orders. Columns are
compared by position; their names do not count. Two integers are equal when they are the same; a
number with a decimal point is equal to another within a relative tolerance of 1e-6 (1e-9 absolute,
for zero), so 3 equals 3.0. NULL equals NULL. Text and blobs are compared exactly.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import isclose
from typing import Any

Row = tuple[Any, ...]
MATCHED_ONE_BY_ONE = 200  # rows whose numbers may be equal in another order than the sorted one


def holds_nothing(rows: Sequence[Row]) -> bool:
    """No row, or nothing but NULL: what a query for something that is not there returns."""
    return all(cell is None for row in rows for cell in row)


def same_result(found: Sequence[Row], known: Sequence[Row], *, ordered: bool) -> bool:
    """Whether the two results are equal. Two empty ones are; ask `holds_nothing` first."""
    if len(found) != len(known) or (found and len(found[0]) != len(known[0])):
        return False
    if found == known:  # the usual case of a right answer, and much quicker than what follows
        return True
    if ordered:
        return all(map(_same_row, found, known))
    ours, theirs = _grouped(found), _grouped(known)
    return ours.keys() == theirs.keys() and all(
        _same_numbers(ours[texts], theirs[texts]) for texts in ours
    )


def _grouped(rows: Sequence[Row]) -> dict[Row, list[Row]]:
    """Numbers of the rows by what is compared exactly: everything else, and where numbers stand."""
    groups: dict[Row, list[Row]] = defaultdict(list)
    for row in rows:
        exact = tuple(... if isinstance(cell, int | float) else cell for cell in row)
        groups[exact].append(tuple(cell for cell in row if isinstance(cell, int | float)))
    return groups


def _same_numbers(found: list[Row], known: list[Row]) -> bool:
    if len(found) != len(known):
        return False
    if all(map(_same_row, sorted(found), sorted(known))):
        return True
    if len(found) > MATCHED_ONE_BY_ONE:
        return False
    left = list(known)
    for row in found:
        other = next((i for i, each in enumerate(left) if _same_row(row, each)), None)
        if other is None:
            return False
        del left[other]
    return True


def _same_row(found: Row, known: Row) -> bool:
    return all(map(_same_cell, found, known))


def _same_cell(found: Any, known: Any) -> bool:
    if isinstance(found, float) or isinstance(known, float):
        both = isinstance(found, int | float) and isinstance(known, int | float)
        return both and isclose(found, known, rel_tol=1e-6, abs_tol=1e-9)
    return type(found) is type(known) and bool(found == known)
