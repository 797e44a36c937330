"""Scores of answers, and their agreement: by hand-made cases and by the definition of Spearman's
coefficient."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_distill.reporting.templates import render_template
from nexa_train.evaluation.teacher_agreement import score_agreement, score_answers


def rows(*samples: str) -> list[dict[str, Any]]:
    return [{"sample_id": sample} for sample in samples]


def check(sample: str, name: str, value: float | None) -> dict[str, Any]:
    return {"sample_id": sample, "check": name, "value": value}


def test_without_execution_and_judges_the_gates_decide() -> None:
    assert score_answers(["a", "b"], rows("a"), [], rows("a")) == {"a": 1.0, "b": 0.0}


def test_execution_has_the_first_word_and_the_undecided_has_no_score() -> None:
    checks = [
        check("a", "exec.score", 1.0), check("b", "exec.score", 0.5),
        check("c", "exec.score", None), check("b", "judge.factuality", 1.0),
    ]  # fmt: skip
    found = score_answers(["a", "b", "c", "d"], rows("a", "b", "c"), checks, rows("a"))
    assert found == {"a": 1.0, "b": 0.5, "d": 0.0}  # d did not pass the rules


def test_judges_count_where_nothing_was_executed_and_a_half_judged_answer_does_not() -> None:
    checks = [
        check("a", "judge.factuality", 0.8), check("a", "judge.reasoning", 0.6),
        check("b", "judge.factuality", None), check("b", "judge.reasoning", 1.0),
        check("a", "judge.safety", 0.0),
    ]  # fmt: skip
    found = score_answers(["a", "b", "c"], rows("a", "b", "c"), checks, rows("a"))
    assert found == {"a": 0.7}


def test_figures_of_a_case_worked_by_hand() -> None:
    teacher = {"a": 1.0, "b": 0.5, "c": 0.0, "d": 1.0}
    student = {"a": 1.0, "b": 0.3, "c": 0.5, "e": 1.0}
    found = score_agreement(teacher, student, 0.7)
    assert (found["total"], found["matched"], found["missing"]) == (4, 3, 1)
    assert found["teacher_mean"] == 0.5
    assert found["student_mean"] == pytest.approx(0.6)
    assert found["mae"] == pytest.approx(0.7 / 3)
    assert found["rmse"] == pytest.approx(math.sqrt(0.29 / 3))
    assert [found[f"agreement_at_{t}"] for t in ("0.0", "0.05", "0.1", "0.2")] == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3, 2 / 3]
    )
    assert found["pearson"] == pytest.approx(0.6933752)
    assert found["spearman"] == pytest.approx(0.5)
    assert found["pass_agreement"] == 1.0


@pytest.mark.parametrize(("teacher", "student"), [({}, {}), ({"a": 1.0}, {"b": 1.0}), ({"a": 1.0, "b": 1.0},) * 2])
def test_what_is_not_defined_is_null(teacher: dict[str, float], student: dict[str, float]) -> None:
    found = score_agreement(teacher, student, 0.7)
    assert found["pearson"] is None
    assert found["spearman"] is None
    assert (found["mae"] is None) == (found["matched"] == 0)
    json.dumps(found, allow_nan=False)
    assert "| pearson | not defined (" in render_template("score_agreement.md.j2", measures=found)


SCORES = st.floats(0, 1, width=16)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=30))
def test_figures_are_shares_and_grow_with_the_tolerance(pairs: list[tuple[float, float]]) -> None:
    teacher = {str(n): pair[0] for n, pair in enumerate(pairs)}
    student = {str(n): pair[1] for n, pair in enumerate(pairs)}
    found = score_agreement(teacher, student, 0.5)
    shares = [found[f"agreement_at_{t}"] for t in ("0.0", "0.05", "0.1", "0.2")]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in [*shares, found["pass_agreement"]])
    assert found["mae"] <= found["rmse"] + 1e-9
    for name in ("pearson", "spearman"):
        assert found[name] is None or -1.0001 <= found[name] <= 1.0001
