"""Scores of answers, from what each gate said of them."""

from typing import Any

from nexa_train.evaluation.teacher_agreement import scores


def rows(*samples: str) -> list[dict[str, Any]]:
    return [{"sample_id": sample} for sample in samples]


def check(sample: str, name: str, value: float | None) -> dict[str, Any]:
    return {"sample_id": sample, "check": name, "value": value}


def test_without_execution_and_judges_the_gates_decide() -> None:
    assert scores(["a", "b"], rows("a"), [], rows("a")) == {"a": 1.0, "b": 0.0}


def test_execution_has_the_first_word_and_the_undecided_has_no_score() -> None:
    checks = [
        check("a", "exec.score", 1.0), check("b", "exec.score", 0.5),
        check("c", "exec.score", None), check("b", "judge.factuality", 1.0),
    ]  # fmt: skip
    found = scores(["a", "b", "c", "d"], rows("a", "b", "c"), checks, rows("a"))
    assert found == {"a": 1.0, "b": 0.5, "d": 0.0}  # d did not pass the rules


def test_judges_count_where_nothing_was_executed_and_a_half_judged_answer_does_not() -> None:
    checks = [
        check("a", "judge.factuality", 0.8), check("a", "judge.reasoning", 0.6),
        check("b", "judge.factuality", None), check("b", "judge.reasoning", 1.0),
        check("a", "judge.safety", 0.0),
    ]  # fmt: skip
    found = scores(["a", "b", "c"], rows("a", "b", "c"), checks, rows("a"))
    assert found == {"a": 0.7}
