from math import isclose

import pytest

from nexa_distill.reporting.significance import compare_passes, mcnemar_p_value, paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilsons_interval_is_the_published_one(passed: int, total: int, low: float, high: float) -> None:
    found = wilson_interval(passed, total)
    assert found is not None
    assert found == pytest.approx((low, high), abs=5e-5)


def test_nothing_measured_has_no_interval_and_no_difference() -> None:
    assert wilson_interval(0, 0) is None
    assert paired_difference([], [], [], []) is None


@pytest.mark.parametrize(
    ("only_before", "only_after", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024), (9, 1, 22 / 1024)]
)
def test_mcnemar_is_the_exact_binomial_test(only_before: int, only_after: int, p: float) -> None:
    assert isclose(mcnemar_p_value(only_before, only_after), p)


def test_the_same_figures_give_exactly_no_difference() -> None:
    values = [0.1, 1.7, 3.3]
    found = paired_difference(["a", "b", "c"], values, values, [3, 5, 7])
    assert found is not None
    assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)
    assert found["verdict"] == "no difference"


def test_the_difference_is_weighted_by_tokens() -> None:
    found = paired_difference(list("abcdef"), [20.0] * 6, [10.0] * 6, [10] * 6)
    assert found is not None
    assert found["difference"] == -1.0
    assert found["verdict"] == "lower"


def test_copies_of_one_document_are_no_further_evidence() -> None:
    before, after = [1.0, 2.0, 3.0, 2.0, 1.0, 1.0], [0.5, 2.1, 2.0, 2.2, 0.9, 1.3]
    once = paired_difference(list("abcdef"), before, after, [1.0] * 6)
    many = paired_difference(list("abcdef") * 50, before * 50, after * 50, [1.0] * 300)
    assert once is not None
    assert many is not None
    assert (once["low"], once["high"]) == pytest.approx((many["low"], many["high"]))
    assert (once["documents"], many["samples"]) == (6, 300)


@pytest.mark.parametrize("groups", ["aaaaaa", "abcdea"])
def test_five_documents_that_all_improve_could_be_chance(groups: str) -> None:
    found = compare_passes(list(groups), [False] * 6, [True] * 6)
    assert found is not None
    assert (found["difference"], found["low"], found["verdict"]) == (1.0, None, "cannot be said")
    six = compare_passes(list("abcdef"), [False] * 6, [True] * 6)
    assert six is not None
    assert (six["low"], six["verdict"]) == (1.0, "higher")


def test_an_interval_that_mcnemar_does_not_confirm_is_no_difference() -> None:
    found = compare_passes(list("abcdefgh"), [False] * 8, [True] * 5 + [False] * 3)
    assert found is not None
    assert found["low"] > 0
    assert found["mcnemar_p"] == 0.0625
    assert found["verdict"] == "no difference shown"  # five of eight is one, and may be chance


def test_the_four_kinds_of_pair_add_up() -> None:
    found = compare_passes(list("abcde"), [True, True, False, False, False], [True, False, True, True, False])
    assert found is not None
    kinds = [found[name] for name in ("both", "only_before", "only_after", "neither")]
    assert kinds == [1, 1, 2, 1]
