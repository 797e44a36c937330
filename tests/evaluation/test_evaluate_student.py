import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nexa_distill.errors import InputError, InputMissing
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.manifests import StageRun, sealed_hash
from nexa_train import evaluate_student, train_sft
from nexa_train.evaluation import held_out_loss, teacher_agreement
from nexa_train.evaluation.metrics import HeldOutResults, compute_metrics
from nexa_train.reports.evaluation_text import headline_sentences
from tests import warm
from tests.support.answers import REPOSITORY
from tests.support.exam import prepare, rows, save_untrained
from tests.teacher.ledger_teacher import ledger_teacher

SCRIPT = "scripts/python/evaluation/run_evaluation.py"


def evaluate(config: DistillConfig) -> subprocess.CompletedProcess[str]:
    file = Path(config.storage.root).parent / "config.yaml"
    done = subprocess.run(
        [warm.python(), SCRIPT, "--config", str(file)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def report_of(config: DistillConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.storage.path_of("evaluation_report").read_text())
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillConfig, StudentConfig, str]:
    """A student that really learned the teacher's answer, evaluated by the script."""
    config, student = prepare(
        tmp_path_factory.mktemp("trained"), epochs=30, learning_rate=0.01,
        save_every_steps=1000, eval_every_steps=1000,
    )  # fmt: skip
    torch.set_num_threads(1)  # of a model this small, more threads only wait for each other
    storage = config.storage
    folder = storage.path_of("students") / student.run_name
    train_sft.run(student, storage, storage.path_of("sft_parquet"), folder)
    return config, student, evaluate(config).stdout


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config, student = prepare(tmp_path_factory.mktemp("untrained"))
    save_untrained(config, student)
    evaluate(config)
    return report_of(config)


Trained = tuple[DistillConfig, StudentConfig, str]


def test_a_student_that_learned_comes_out_better_in_gate_and_loss(trained: Trained) -> None:
    report = report_of(trained[0])
    gate, loss = report["comparison"]["gate"], report["comparison"]["loss"]
    assert report["models"]["before"]["gate"]["passed"] == 0
    assert report["models"]["after"]["gate"]["passed"] >= 6
    assert (gate["verdict"], loss["verdict"]) == ("higher", "lower")
    assert loss["high"] < 0 < gate["low"]
    losses = [report["models"][n]["loss"]["nats_per_token"] for n in ("before", "after")]
    assert losses[1] < losses[0] / 4
    assert report["headline"][0].startswith("Training improved the student")
    assert (report["prompts"], gate["documents"], loss["samples"]) == (12, 6, 12)


def test_the_scores_of_teacher_and_student_are_compared(trained: Trained) -> None:
    config = trained[0]
    path = config.storage.path_of("reports") / "evaluation" / "score_agreement.json"
    report, before = json.loads(path.read_text()), path.stat()
    passed = report_of(config)["models"]["after"]["gate"]["passed"]
    assert (report["total"], report["matched"], report["missing"]) == (12, 12, 0)
    assert report["teacher_mean"] == 1.0
    assert report["student_mean"] == report["agreement_at_0.0"] == passed / 12
    assert report["pass_threshold"] == 0.7
    assert path.with_suffix(".md").read_text().startswith("# Scores of teacher and student")
    teacher_agreement.run(*trained[:2])
    assert path.stat() == before


def test_the_script_prints_the_headline_and_where_the_page_is(trained: Trained) -> None:
    config, _, printed = trained
    page = config.storage.path_of("evaluation_report").with_suffix(".html")
    assert "\n".join(report_of(config)["headline"]) in printed
    assert str(page) in printed
    assert page.read_text().startswith("<!doctype html>")
    assert "## Side by side" in page.with_suffix(".md").read_text()


def test_the_card_of_the_student_has_its_scores_and_the_seal_of_the_checkpoint(trained: Trained) -> None:
    config, student, _ = trained
    text = (config.storage.path_of("evaluation") / "model_card.md").read_text()
    assert text.startswith("---\n")
    assert all(sentence in text for sentence in report_of(config)["headline"])
    assert report_of(config)["facts"]["checkpoint_sha256"] in text
    final = student.checkpoint_path(config.storage)
    assert "Not evaluated yet" in (final / "README.md").read_text()
    sealed_hash(final, config.storage)


def test_evaluating_again_changes_no_byte(trained: Trained) -> None:
    config = trained[0]
    root = Path(config.storage.root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert "up to date" in evaluate(config).stdout
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_figures_have_counts_and_what_was_not_measured_is_null(trained: Trained) -> None:
    models = report_of(trained[0])["models"]
    assert models["teacher"]["gate"] | {"low": 0, "high": 0} == {
        "passed": 12, "total": 12, "rate": 1.0, "low": 0, "high": 0,
    }  # fmt: skip
    assert models["teacher"]["loss"] is None  # an API: its probabilities are not known
    assert models["teacher"]["parameters"] is None
    assert models["teacher"]["generation"] is None
    assert models["after"]["loss"]["tokens"] == 12 * (len("We measure one, two, three.") + 1)
    assert models["after"]["generation"]["tokens_per_second"] > 0
    assert set(models["after"]["by_task"]) == {"hypothesis", "methodology"}
    assert set(models["after"]["by_domain"]) == {"biology", "not said"}
    assert models["before"]["reject_reason_counts"] == {"truncated": 12}


def test_a_model_compared_with_itself_comes_out_equal(untrained: dict[str, Any]) -> None:
    models, comparison = untrained["models"], untrained["comparison"]
    assert models["before"]["loss"] == models["after"]["loss"]
    assert models["before"]["gate"] == models["after"]["gate"]
    pairs = [comparison["gate"], comparison["loss"]]
    pairs += [*comparison["by_task"].values(), *comparison["by_domain"].values()]
    assert len(pairs) == 6
    for found in pairs:
        assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)
        assert found["verdict"] == "no difference"
    assert comparison["gate"]["mcnemar_p"] == 1
    assert untrained["headline"][0].startswith("No difference")
    texts = [[e["answers"][m]["text"] for m in ("before", "after")] for e in untrained["examples"]]
    assert all(before == after for before, after in texts)


def test_without_judges_the_report_says_so_rather_than_a_number(trained: Trained) -> None:
    assert {model["judge"] for model in report_of(trained[0])["models"].values()} == {None}
    text = trained[0].storage.path_of("evaluation_report").with_suffix(".md").read_text()
    assert text.count("judge: not run") == 6


def test_the_student_takes_the_judges_exam_too(tmp_path: Path) -> None:
    config, student = prepare(tmp_path)
    save_untrained(config, student)
    file = tmp_path / "config.yaml"
    with ledger_teacher(tmp_path / "judge", says={"Rubric: f": verdict(0.9)}) as teacher:
        judges = [{"provider": "vllm", "model": "judge-a", "extra_body": {}}]
        values = yaml.safe_load(file.read_text()) | {
            "judging": {"judges": judges},
            "providers": {"vllm": {"base_url": teacher.base_url, "model": "ledger-teacher"}},
        }
        file.write_text(yaml.safe_dump(values))
        evaluate(config)
    models = report_of(config)["models"]
    assert models["teacher"]["judge"]["judge.factuality"] == pytest.approx(0.9)
    assert 0 < models["teacher"]["judge"]["judge.reasoning"] < 1
    assert models["before"]["judge"] is None  # none of its answers passes the rules
    text = config.storage.path_of("evaluation_report").with_suffix(".md").read_text()
    assert "judge: not run" not in text
    gate = config.storage.path_of("evaluation") / "teacher/sample_gate/gate_report.json"
    assert json.loads(gate.read_text())["families"]["judge"] is True


def verdict(score: float) -> str:
    return json.dumps({"reason": "as scripted", "score": score})


def test_examples_are_the_first_by_sample_id(untrained: dict[str, Any]) -> None:
    ids = [example["sample_id"] for example in untrained["examples"]]
    assert ids == sorted(row["sample_id"] for row in rows() if row["split"] == "test")


def exam(prompts: list[dict[str, Any]], *, passing: bool = True, loss: Any = None) -> HeldOutResults:
    reasons = {row["sample_id"]: [] if passing else ["too_short"] for row in prompts}
    return HeldOutResults({row["sample_id"]: row for row in prompts}, reasons, loss)


def test_without_any_loss_the_headline_says_so() -> None:
    prompts = rows(4)
    found = compute_metrics(prompts, {n: exam(prompts) for n in ("teacher", "before", "after")})
    assert found["comparison"]["loss"] is None
    assert "not measured" in headline_sentences(found)[2]


def test_a_student_that_got_worse_is_called_worse() -> None:
    prompts = rows(20)
    exams = {n: exam(prompts, passing=n != "after") for n in ("teacher", "before", "after")}
    assert "made the student worse" in headline_sentences(compute_metrics(prompts, exams))[0]


def test_the_same_model_drawn_with_another_seed_is_no_different() -> None:
    prompts = rows(200)
    chances = [random.Random(number).random() for number in range(200)]

    def drawn(seed: int) -> HeldOutResults:
        dice = random.Random(seed)
        reasons = {
            row["sample_id"]: [] if dice.random() < chance else ["too_short"]
            for row, chance in zip(prompts, chances, strict=True)
        }
        return HeldOutResults({row["sample_id"]: row for row in prompts}, reasons, None)

    exams = {"teacher": drawn(0), "before": drawn(1), "after": drawn(2)}
    gate = compute_metrics(prompts, exams)["comparison"]["gate"]
    assert gate["only_before"] > 20
    assert gate["only_after"] > 20
    assert gate["low"] <= 0 <= gate["high"]
    assert gate["verdict"] == "no difference shown"


def test_a_teacher_that_did_not_answer_has_fewer_answers_not_zeros() -> None:
    prompts = rows(4)
    exams = {n: exam(prompts) for n in ("before", "after")} | {"teacher": exam(prompts[:3])}
    found = compute_metrics(prompts, exams)
    assert found["models"]["teacher"]["gate"]["total"] == 3
    assert found["examples"][3]["answers"]["teacher"] is None


def test_students_that_answered_other_prompts_are_not_compared() -> None:
    prompts = rows(4)
    exams = {n: exam(prompts) for n in ("teacher", "before")} | {"after": exam(prompts[:3])}
    with pytest.raises(InputError, match="answered 3 of the 4 held-out prompts"):
        compute_metrics(prompts, exams)


def test_answers_that_no_gate_judged_stop_the_evaluation(tmp_path: Path) -> None:
    config, student = prepare(tmp_path)
    save_untrained(config, student)
    with pytest.raises(InputMissing, match="generate_student"):
        evaluate_student.run(config, student)


def test_a_held_out_prompt_that_was_trained_on_stops_the_evaluation() -> None:
    prompts = rows(4)
    learned = [row | {"split": "train"} for row in prompts[2:]]
    with pytest.raises(InputError, match="2 held-out prompts were trained on"):
        evaluate_student._refuse_leak(prompts, learned, "test")
    evaluate_student._refuse_leak(prompts, [row | {"split": "test"} for row in prompts], "test")


def test_the_funnel_counts_what_the_seals_say_and_not_what_is_missing(trained: Trained) -> None:
    steps = {step["step"]: step["count"] for step in report_of(trained[0])["funnel"]}
    assert steps["without duplicates"] == steps["answered by the teacher"] == 24
    assert (steps["prompts"], steps["pass the rules"]) == (None, None)  # not run here
    assert (steps["train"], steps["val"], steps["test"]) == (12, 0, 12)


def test_the_loss_curve_of_the_training_is_on_the_page(trained: Trained) -> None:
    curve = report_of(trained[0])["training_curve"]
    losses = [row["loss"] for row in curve if "loss" in row]
    assert len(losses) == 90
    assert losses[-1] < losses[0]
    page = trained[0].storage.path_of("evaluation_report").with_suffix(".html").read_text()
    assert "<polyline" in page


def test_a_new_training_leaves_the_loss_before_training_alone(tmp_path: Path) -> None:
    config, student = prepare(tmp_path)
    final = save_untrained(config, student)
    held_out_loss.run(config, student, ["teacher-1"])
    paths = {n: held_out_loss.loss_path(config.storage, n) for n in ("before", "after")}
    times = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    (final / "note.txt").write_text("another checkpoint")
    StageRun("train", config.storage, inputs=[], settings={}).seal_output(final, rows_in=0, rejected=0, count=0)
    held_out_loss.run(config, student, ["teacher-1"])
    assert paths["before"].stat().st_mtime_ns == times["before"]
    assert paths["after"].stat().st_mtime_ns > times["after"]


def test_only_the_bundled_teacher_of_a_bundled_student_is_measured(tmp_path: Path) -> None:
    config, student = prepare(tmp_path)
    bundled = student.model_copy(update={"student": "bundled"})
    served = ["SmolLM2-135M-Instruct@main"]
    assert "teacher" in held_out_loss.list_subjects(bundled, config.storage, served)
    assert "teacher" not in held_out_loss.list_subjects(student, config.storage, served)
    assert "teacher" not in held_out_loss.list_subjects(bundled, config.storage, ["gpt-4o-mini"])
