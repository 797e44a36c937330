"""When two results are the same."""

import math
from typing import Any

import pytest

from nexa_distill.execution.result_sets import is_empty_result, is_same_result

A, B = ("a", 1), ("b", 2)


@pytest.mark.parametrize(
    ("found", "known", "same"),
    [
        ([A, B], [A, B], True),
        ([B, A], [A, B], True),
        ([A], [A, A], False),
        ([A, A, B], [A, B, B], False),
        ([(1, "a")], [("a", 1)], False),
        ([(1,)], [(1, 1)], False),
        ([(3,)], [(3.0,)], True),
        ([(0.1 + 0.2,)], [(0.3,)], True),
        ([(1.0,)], [(1.0 + 2e-6,)], False),
        ([(0,)], [(1e-12,)], True),
        ([(29_760_021,)], [(29_760_020,)], False),
        ([(2**62,)], [(2**62 + 1,)], False),
        ([(None,)], [(None,)], True),
        ([(None,)], [(0,)], False),
        ([("",)], [(None,)], False),
        ([("3",)], [(3,)], False),
        ([("A",)], [("a",)], False),
        ([("a ",)], [("a",)], False),
        ([(b"a",)], [("a",)], False),
        ([(b"a",)], [(b"a",)], True),
        ([(math.inf,)], [(math.inf,)], True),
        ([(math.inf,)], [(1e308,)], False),
        # Sorted, the first numbers pair up wrongly: 1.0 and 1.0000001 are equal, the second differ.
        ([(1.0, 5.0), (1.0000001, 4.0)], [(1.0, 4.0), (1.0000001, 5.0)], True),
        ([("x", 1.5), ("y", 2.5)], [("y", 1.5), ("x", 2.5)], False),
    ],
)  # fmt: skip
def test_rows_are_compared_as_a_multiset(found: Any, known: Any, *, same: bool) -> None:
    assert is_same_result(found, known, ordered=False) is same
    assert is_same_result(known, found, ordered=False) is same


def test_the_order_counts_where_the_known_query_orders() -> None:
    assert not is_same_result([B, A], [A, B], ordered=True)
    assert is_same_result([A, B], [A, B], ordered=True)
    assert is_same_result([("a", 1.0), B], [A, ("b", 2.0000001)], ordered=True)


@pytest.mark.parametrize(
    ("rows", "nothing"), [([], True), ([(None,)], True), ([(None, None)] * 2, True), ([(0,)], False), ([("",)], False)]
)
def test_no_row_and_nothing_but_null_hold_nothing(rows: Any, *, nothing: bool) -> None:
    assert is_empty_result(rows) is nothing
