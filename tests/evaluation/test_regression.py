import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nexa_distill.errors import InputError, QualityGateMissed
from nexa_distill.settings.filters import RegressionGate
from nexa_distill.settings.pipeline import DistillConfig
from nexa_train import regression
from nexa_train.evaluation import gate_results
from nexa_train.reports.evaluation_text import regression_paragraph as in_words
from tests import warm
from tests.support.answers import REPOSITORY, answer, project
from tests.support.exam import prepare, save_untrained

STRICT = RegressionGate(max_pass_rate_drop=0.0, max_loss_rise=0.05)
RUN = {"run_id": "run-1", "run_name": "a", "accepted_at": "2026-01-01", "checkpoint_sha256": "ab",
       "prompts_sha256": "p", "gates_sha256": "g"}  # fmt: skip


def run(passes: str, nats: float = 10.0, **changed: Any) -> dict[str, Any]:
    """A run whose answers pass (+) or do not, each to a document of its own."""
    outcomes = {
        str(i): {"document": str(i), "passes": mark == "+", "nats": nats + i % 3, "tokens": 10}
        for i, mark in enumerate(passes)
    }
    return RUN | {"outcomes": outcomes} | changed


def test_a_run_beside_itself_is_no_different_and_passes() -> None:
    found = regression.compare_runs(run("++--"), run("++--"), STRICT)
    for pair in (found["gate"], found["loss"]):
        assert (pair["difference"], pair["low"], pair["high"]) == (0, 0, 0)
        assert pair["verdict"] == "no difference"
    assert (found["misses"], found["shared"]) == ([], 4)


def test_a_student_that_is_worse_misses_and_one_that_could_be_by_chance_does_not() -> None:
    good = run("+" * 20)
    assert regression.compare_runs(good, run("+" * 19 + "-"), STRICT)["misses"] == []
    (missed,) = regression.compare_runs(good, run("-" * 12 + "+" * 8), STRICT)["misses"]
    assert missed.startswith("gate pass rate -0.6000")
    assert regression.compare_runs(run("-" * 20), good, STRICT)["misses"] == []


def test_the_margin_is_what_may_be_lost() -> None:
    good, worse = run("+" * 20), run("-" * 12 + "+" * 8, nats=11.0)
    for gate, count in [((0.0, 0.05), 2), ((0.9, 0.05), 1), ((0.9, 0.2), 0), ((None, None), 0)]:
        limits = RegressionGate(max_pass_rate_drop=gate[0], max_loss_rise=gate[1])
        assert len(regression.compare_runs(good, worse, limits)["misses"]) == count


def test_what_few_documents_say_neither_misses_nor_is_called_no_worse() -> None:
    found = regression.compare_runs(run("+++++"), run("-----", nats=12.0), STRICT)
    assert found["misses"] == []
    assert "Too few documents to tell" in in_words(found)
    found = regression.compare_runs(run("+" * 8), run("-" * 5 + "+" * 3), STRICT)
    assert found["gate"]["high"] < 0  # by the interval alone it would be worse
    assert found["misses"] == []


def test_other_prompts_or_other_gates_are_not_compared_and_do_not_pass() -> None:
    other = run("+" * 4, prompts_sha256="q")
    other["outcomes"] = {f"new-{k}" if k != "0" else k: v for k, v in other["outcomes"].items()}
    found = regression.compare_runs(run("+" * 4), other, STRICT)
    assert found["gate"] is None
    assert found["misses"] == ["not the same prompts: 1 of its 4 prompts are in this run too"]
    found = regression.compare_runs(run("+" * 4), run("+" * 4, gates_sha256="h"), STRICT)
    assert found["gate"] is None
    assert found["misses"][0].startswith("not the same gates")


def test_without_an_accepted_run_it_says_so_and_passes() -> None:
    found = regression.compare_runs(None, run("++"), STRICT)
    assert found["misses"] == []
    assert "No run has been accepted yet" in in_words(found)


def test_losses_of_another_tokenizer_are_not_compared() -> None:
    now = run("++++")
    now["outcomes"]["1"]["tokens"] = 11
    assert regression.compare_runs(run("++++"), now, STRICT)["loss"] is None


def script(config: DistillConfig, *words: str) -> subprocess.CompletedProcess[str]:
    file = Path(config.storage.root).parent / "config.yaml"
    return subprocess.run(
        [warm.python(), *words, "--config", str(file)], cwd=REPOSITORY, text=True,
        capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


EVALUATE = "scripts/python/evaluation/run_evaluation.py"


def test_an_evaluation_stops_with_3_for_a_worse_student_until_that_one_is_accepted(tmp_path: Path) -> None:
    config, student = prepare(tmp_path)
    save_untrained(config, student)
    first = script(config, EVALUATE)
    assert first.returncode == 0, first.stderr
    assert "No run has been accepted yet" in first.stdout
    accepting = ["-m", "nexa_train.regression", "accept"]
    assert script(config, *accepting, "--note", "the first").returncode == 0
    same = script(config, EVALUATE)
    assert same.returncode == 0, same.stderr
    assert "difference 0 points" in same.stdout
    path = regression.accepted_path(config.storage)
    better = json.loads(path.read_text())  # as if a student had been accepted that passes
    for outcome in better["outcomes"].values():
        outcome["passes"] = True
    with path.open("a") as file:
        file.write(json.dumps(better) + "\n")
    for _ in range(2):  # also when the report is up to date
        worse = script(config, EVALUATE)
        assert worse.returncode == 3, worse.stderr
        assert "gate pass rate -1.0000" in worse.stderr
        assert "nexa_train.regression accept" in worse.stderr
    page = config.storage.path_of("evaluation_report").with_suffix(".html").read_text()
    assert "Worse than allowed" in page
    with pytest.raises(QualityGateMissed):
        regression.enforce_gate(config)
    assert script(config, *accepting).returncode == 0
    assert script(config, EVALUATE).returncode == 0
    assert len(path.read_text().splitlines()) == 3


def test_a_damaged_line_of_accepted_runs_is_named(tmp_path: Path) -> None:
    config = project(tmp_path)
    path = regression.accepted_path(config.storage)
    path.parent.mkdir(parents=True)
    path.write_text("nonsense\n{}\n")
    with pytest.raises(InputError, match="line 1"):
        regression.load_accepted(config.storage)


def test_a_lucky_match_is_not_right_and_what_was_not_run_is_not_decided(tmp_path: Path) -> None:
    config = project(tmp_path)
    prompts = [
        answer(0, "SELECT 1", template_name="text2sql", gold_sql="SELECT 1"),
        answer(1, template_name="text2sql", gold_sql="SELECT 1"),
        answer(2, template_name="math"),
        answer(3),
    ]
    ids = [row["sample_id"] for row in prompts]
    checks = [
        {"sample_id": ids[0], "check": "exec.executes", "ok": True},
        {"sample_id": ids[0], "check": "exec.matches", "ok": True},
        {"sample_id": ids[0], "check": "exec.matches_perturbed", "ok": False},
    ]
    found = gate_results._execution_checks(config, prompts, checks)
    lucky = {"exec.parses": True, "exec.executes": True, "exec.matches": True, "exec.matches_perturbed": False}
    assert found[ids[0]] == lucky
    assert found[ids[1]] == dict.fromkeys(lucky, None) | {"exec.parses": False}
    assert found[ids[2]] == {"exec.executes": None}  # no known answer to compare with
    assert ids[3] not in found
