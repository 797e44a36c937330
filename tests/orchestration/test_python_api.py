"""The documented Python interfaces, called as their documents show them."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from nexa_distill import filter_pairs, gates, to_sft
from nexa_distill.collect_teacher import arguments, build_requests, run_collection
from nexa_distill.errors import InputError, UsageError
from nexa_distill.pipeline import DistillationPipeline
from nexa_distill.regenerate_bad import run_regeneration
from nexa_distill.sample_gate import SampleGate
from tests.repair.test_regenerate_bad import SAYS, collected
from tests.support.tiny_model import save_config, save_model
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.faults import prompts, put
from tests.teacher.ledger_teacher import Teacher, ledger_teacher


def asked(teacher: Teacher) -> int:
    return sum(teacher.billed().values())


def raw_project(folder: Path, base_url: str, count: int = 40) -> Workspace:
    raw = folder / "raw.jsonl"
    raw.write_text("".join(f'{{"user_prompt": "Question {n}?"}}\n' for n in range(count)))
    return workspace(folder, base_url, input={"path": str(raw)})


# DistillationPipeline.


def test_the_pipeline_estimates_a_collection_and_collects_the_first_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ledger_teacher(tmp_path) as teacher:
        pipeline = DistillationPipeline(raw_project(tmp_path, teacher.base_url).config)
        pipeline.collect_teacher(dry_run=True, max_samples=4)
        assert "4 requests" in capsys.readouterr().out
        assert asked(teacher) == 0
        pipeline.collect_teacher(max_samples=4)
        assert asked(teacher) == 4
        pipeline.collect_teacher()
        assert asked(teacher) == 40, "the first four are not asked again"


def test_the_pipeline_copies_the_gates_report_to_a_path(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
    pipeline, report = DistillationPipeline(made.config), tmp_path / "mine" / "report.json"
    pipeline.filter_teacher(report_path=str(report))
    assert json.loads(report.read_text())["total"] == 6
    assert {path.name for path in report.parent.iterdir()} == {"report.json", "report.md", "report.html"}


def test_the_pipeline_regenerates_by_a_file_of_decisions_and_estimates_it_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"sample_id": "s0004", "attempt": 0, "action": "regenerate"}\n')
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url, regeneration={"rounds": 0}))
        gates.run_gates(made.load())
        pipeline = DistillationPipeline(made.config)
        pipeline.regenerate(annotations_path=labels, dry_run=True)
        assert "1 request" in capsys.readouterr().out
        assert asked(teacher) == 6
        assert not any(made.path(key).exists() for key in ("annotations", "regen_dataset"))
        pipeline.regenerate(annotations_path=labels)
        assert asked(teacher) == 7
    assert pq.read_table(made.path("regen_dataset"))["sample_id"].to_pylist() == ["s0004"]


# Commands as functions: what a Namespace leaves out is the configuration's.


def test_run_collection_takes_a_partial_namespace_with_the_names_of_flags(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        src = put(made, prompts(6))
        run_collection(Namespace(config=made.config, src=src, dry_run=True))
        assert asked(teacher) == 0
        run_collection(Namespace(config=str(made.config), src=str(src), max_samples=2))
        assert asked(teacher) == 2


def test_the_other_commands_take_a_partial_namespace_too(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        filter_pairs.run_filtering(Namespace(config=made.config))
        gates.run_gates(made.load())
        run_regeneration(Namespace(config=made.config, dry_run=True))
        assert asked(teacher) == 6
        run_regeneration(Namespace(config=made.config))
        assert asked(teacher) == 10
        gates.run_gates(made.load())
        to_sft.run_packaging(Namespace(config=made.config))
    assert made.path("sft_jsonl").exists()


def test_an_option_that_does_not_exist_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r'no option max_sample.*did you mean "max_samples"'):
        run_collection(Namespace(max_sample=4))
    assert arguments([]).dry_run is False


# Requests of rows.


def test_build_requests_takes_a_data_frame_or_rows() -> None:
    rows = [{"sample_id": f"s{n}", "user_prompt": f"Question {n}?"} for n in range(2)]
    frame = pd.DataFrame([rows[0] | {"system_prompt": "Be brief."}, rows[1]])  # pandas has NaN in row 1
    first, second = build_requests(frame)
    assert first.body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert second.body["messages"][-1] == {"role": "user", "content": "Question 1?"}
    assert [second] == build_requests(rows)[1:]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"user_prompt": "Q?"}, "row 1: sample_id is None"),
        ({"sample_id": "a", "user_prompt": 3}, "row 1: user_prompt is 3"),
        ({"sample_id": "a", "user_prompt": " "}, "sample a: user_prompt is empty"),
    ],
)
def test_build_requests_names_the_row_that_has_no_prompt(row: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        build_requests([{"sample_id": "s", "user_prompt": "Q?"}, row])


# SampleGate.


@pytest.mark.parametrize(
    ("sample", "reasons"),
    [
        ({"judge_f": 0.9, "judge_r": 0.8}, []),
        ({"judge_f": 0.79, "judge_r": 0.8}, ["low_factuality"]),
        ({"judge_f": 0.1, "judge_r": 0.1}, ["low_factuality", "low_reasoning"]),
        ({"judge_score": 0.8, "teacher_output": "Text."}, []),
        ({"judge_score": 0.5}, ["low_factuality", "low_reasoning"]),
        ({"judge_f": 0.9}, ["check_missing"]),
        ({"judge_f": float("nan"), "judge_r": None}, ["check_missing"]),
        ({}, ["check_missing"]),
    ],
)
def test_filter_sample_decides_a_sample_by_its_scores(sample: dict[str, object], reasons: list[str]) -> None:
    gate = SampleGate(judge_f_threshold=0.8, judge_r_threshold=0.8)
    assert gate.filter_sample(sample) == reasons


def test_sample_gate_has_the_shipped_thresholds_and_refuses_those_of_another_scale() -> None:
    assert SampleGate().filter_sample({"judge_score": 0.7}) == []
    with pytest.raises(InputError, match=r"judge_f_threshold is 80\.0: scores are 0\.\.1, write 0\.80"):
        SampleGate(judge_f_threshold=80.0)
    with pytest.raises(InputError, match=r"judge_f is 85, expected a score of 0\.\.1"):
        SampleGate().filter_sample({"judge_f": 85})


# The guide's examples, run as they are written.


def example(number: int) -> str:
    section = (ROOT / "docs/pipelines/PIPELINE_GUIDE.md").read_text().split("## The pipeline from Python\n")[1]
    return section.split("```python\n")[number].split("```")[0]


@pytest.mark.slow
def test_the_guides_example_runs_from_raw_text_to_an_evaluated_student(tmp_path: Path) -> None:
    student = save_config(tmp_path / "student.yaml", save_model(tmp_path / "tiny"), max_length=4096, epochs=1)
    values = yaml.safe_load(student.read_text())
    values["generate"] |= {"max_new_tokens": 8, "max_prompts": 4}
    student.write_text(yaml.safe_dump(values))
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, input={"limit": 16}, student=str(student))
        code = example(1).replace("configs/distill_config.yaml", str(made.config))
        code = code.replace("funnel.json", str(tmp_path / "funnel.json"))
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert asked(teacher) == 32
    assert json.loads(made.path("evaluation_report").read_text())["headline"]
    assert (tmp_path / "funnel.md").exists()
    assert DistillationPipeline(made.config).plan_cli_commands() == []


def test_the_guides_functions_run_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = workspace(tmp_path)
    put(made, prompts(6)).rename(tmp_path / "mine.parquet")
    monkeypatch.chdir(ROOT)
    code = example(2).replace("Namespace(", f"Namespace(config={str(made.config)!r}, src='{tmp_path}/mine.parquet', ")
    exec(code, {})  # noqa: S102 - the guide's
    printed = capsys.readouterr().out
    assert "4 requests" in printed
    assert "Why is the sky blue?" in printed
    assert "['low_factuality']" in printed


def test_the_documented_folder_of_the_guides_is_there() -> None:
    assert (ROOT / "docs/Pipeline/IMPLEMENTATION_SUMMARY.md").samefile(
        ROOT / "docs/pipelines/IMPLEMENTATION_SUMMARY.md"
    )
    assert (ROOT / "docs/Pipeline/PIPELINE_GUIDE.md").exists()
