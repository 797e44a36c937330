"""The plan for a target: the documented formulas, with figures that can be worked out by hand."""

import json
from pathlib import Path

import pytest

from nexa_distill import pipeline
from nexa_distill.cost.target_plan import plan_target
from nexa_distill.storage.atomic import write_json
from nexa_distill.storage.manifests import manifest_path
from tests.cost.test_cost_report import FILTER, kept, wall_seconds
from tests.cost.test_estimate import GEN, priced
from tests.support.workspace import Workspace, workspace
from tests.teacher.ledger_teacher import ledger_teacher

TARGET = 1001


def seal_evaluation(made: Workspace) -> None:
    """Manifests of the held-out answers and their report, of 600 seconds each: half an hour."""
    for key in ("baseline_outputs", "student_outputs", "evaluation_report"):
        write_json(manifest_path(made.path(key), made.load().storage), {"seconds": 600.0})


def write_metrics(made: Workspace) -> None:
    """Four steps of 2 seconds: two, a stop, and two of the process that went on."""
    path = made.path("students") / "baseline/metrics.jsonl"
    path.parent.mkdir(parents=True)
    rows = [{"step": 0, "val_loss": 1.0}, *({"step": n, "seconds": s} for n, s in enumerate((2, 4, 2, 4), 1))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_plan_of_a_run_is_what_one_works_out_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer is 100 + 50 tokens and $0.06."""
    with ledger_teacher(tmp_path, fault="length", share=0.4, always=True) as teacher:
        made = priced(tmp_path, teacher.base_url)
        made.change(input={"limit": 12}, budget={"machine_usd_per_hour": 3.6})
        made.run(GEN)
        made.run(FILTER)
    write_metrics(made)
    seal_evaluation(made)
    plan, samples = plan_target(made.load(), TARGET), kept(made)
    assert (plan["samples_per_step"], plan["target_steps"], plan["tokens_per_step"]) == (4, 251, 200)
    assert plan["distilled_tokens"] == 251 * 200
    assert plan["teacher_tokens_multiplier"] == pytest.approx(3600 / (50 * samples))
    assert plan["teacher_tokens"] == pytest.approx(251 * 200 * 3600 / (50 * samples))
    assert plan["price_per_token"] == pytest.approx(1.44 / 3600)
    assert plan["teacher_api_cost"] == pytest.approx(251 * 200 * 1.44 / (50 * samples))
    manifests = made.path("manifests")
    free = sum(
        json.loads((manifests / name / "manifest.json").read_text())["seconds"]
        for name in ("canonicalize", "dedup", "rules", "exec", "person", "sample_gate")
    )
    per_hour = samples / (wall_seconds(made) + free) * 3600
    assert plan["pipeline_kept_samples_per_hour"] == pytest.approx(per_hour)
    assert plan["wall_hours"] == pytest.approx(TARGET / per_hour)
    assert plan["training_hours"] == pytest.approx(251 * 2 * 2 / 3600)  # two epochs of steps of 2 s
    assert plan["student_training_cost"] == pytest.approx(251 * 2 * 2 / 1000)
    assert plan["eval_cost"] == pytest.approx(0.5 * 3.6)
    costs = [plan[name] or 0.0 for name in ("teacher_api_cost", "student_training_cost", "eval_cost")]
    assert plan["total_cost"] == pytest.approx(sum(costs))

    command = ["pipeline", "plan", "--target", str(TARGET), "--config", str(made.config)]
    monkeypatch.setattr("sys.argv", command)
    capsys.readouterr()
    assert pipeline.main() == 0
    printed = capsys.readouterr().out
    assert f"a distillation of {TARGET:,} samples" in printed
    assert "teacher_tokens_multiplier" in printed
    assert "train.batch_size * train.gradient_accumulation" in printed


def test_what_was_not_measured_is_none_and_so_is_what_depends_on_it(tmp_path: Path) -> None:
    plan = plan_target(workspace(tmp_path).load(), 10)
    known = {name for name, value in plan.items() if value is not None}
    assert known == {"target_samples", "samples_per_step", "target_steps"}
