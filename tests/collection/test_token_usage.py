"""What is billed: tokens by the total, in every form of `usage`, and a budget that agrees."""

from pathlib import Path
from typing import Any

import pytest

from nexa_distill.collection.answers.token_usage import TokenCounts, read_usage
from nexa_distill.cost.spending import load_spending
from nexa_distill.errors import BudgetReached
from tests.teacher.dialect_server import collect, completion, serving, teacher_workspace
from tests.teacher.faults import answers

OPENAI = {"completion_tokens_details": {"reasoning_tokens": 800}}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70}, (50, 20, 70)),
        ({"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 5070}, (50, 5020, 5070)),
        ({"prompt_tokens": 50, "completion_tokens": 900, **OPENAI}, (50, 900, 950)),
        ({"prompt_tokens": 50, "completion_tokens": 20, **OPENAI}, (50, 820, 870)),
        ({"prompt_tokens": 50, "completion_tokens": 20, "reasoning_tokens": 800}, (50, 820, 870)),
        ({"prompt_tokens": 50, "total_tokens": 170}, (50, 120, 170)),
        ({"completion_tokens": 20, "total_tokens": 70}, (50, 20, 70)),
        ({"input_tokens": 50, "output_tokens": 20}, (50, 20, 70)),
        ({"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 60}, (50, 20, 70)),
        ({"total_tokens": 70}, (None, None, 70)),
        ({"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70, **OPENAI},
         (50, 820, 870)),
        ({"prompt_tokens": 50, "completion_tokens": 20,
          "output_tokens_details": {"thinking_tokens": 800}}, (50, 820, 870)),
        ({"prompt_tokens": 50.0, "completion_tokens": 20.0}, (50, 20, 70)),
        ({"input_tokens": 50, "output_tokens": 20, "cache_read_input_tokens": 1000,
          "cache_creation_input_tokens": 100}, (1150, 20, 1170)),
        ({}, (None, None, None)),
    ],
)  # fmt: skip
def test_d07_tokens_as_they_are_billed(usage: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert read_usage(usage)[:3] == expected


def test_d07_reasoning_in_both_forms_is_a_part_of_the_output() -> None:
    assert read_usage({"prompt_tokens": 1, "completion_tokens": 900, **OPENAI}) == TokenCounts(1, 900, 901, 800)


THINKS = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 5070}  # $0.05025


def test_d07_cost_and_budget_count_what_is_only_in_the_total(tmp_path: Path) -> None:
    with serving(lambda _: completion(usage=THINKS)) as server:
        made = teacher_workspace(
            tmp_path, server.base_url, budget={"max_usd": 0.16},
            collection={"max_tokens": 5100, "concurrency": 1},
        )  # fmt: skip
        with pytest.raises(BudgetReached):
            collect(made, 4)
        assert len(server.asked) == 3
        stages, _ = load_spending(made.load().storage)
        assert stages["teacher"]["usd"] == pytest.approx(3 * 0.05025)
        made.change(budget={"max_usd": 0.3})
        summary = collect(made, 4)
        assert len(server.asked) == 4
    assert summary is not None
    assert summary.usd == pytest.approx(4 * 0.05025)


def test_d07_answers_without_usage_count_as_the_most_they_can_have_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda _: completion(usage=None)) as server:
        made = teacher_workspace(
            tmp_path, server.base_url, collection={"max_tokens": 1000, "concurrency": 1},
            budget={"max_usd": 0.035},
        )  # fmt: skip
        with pytest.raises(BudgetReached):
            collect(made, 4)
        assert len(server.asked) == 3
        with pytest.raises(BudgetReached):  # and so does the next run, from the ledger
            collect(made, 4)
        assert len(server.asked) == 3
        made.change(budget={"max_usd": None})
        collect(made, 4)
    assert "4 answers have no token counts" in capsys.readouterr().out
    assert {row["cost_usd"] for row in answers(made)} == {None}
