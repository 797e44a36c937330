"""Reports: exactly the agreed fields, and a missing measurement stays missing."""

import json
from pathlib import Path

import pytest

from nexa_distill.reporting import stage_reports
from nexa_distill.storage.atomic import write_json
from tests.support.answers import answer, collect, project

QUALITY = [
    "run_id", "stage", "total", "kept", "rejected", "p_keep", "exec_pass_rate", "gold_match_rate",
    "judge_score", "reject_reason_counts", "exec_error_counts", "created_at",
]  # fmt: skip


def test_the_quality_report_has_the_agreed_fields_and_a_markdown_twin(tmp_path: Path) -> None:
    path = tmp_path / "reports/rules/quality_report.json"
    stage_reports.write_quality_report(path, stage="rules", total=4, reject_reason_counts={"refusal": 1})
    report = json.loads(path.read_text())
    assert list(report) == QUALITY
    assert (report["kept"], report["rejected"], report["p_keep"]) == (3, 1, 0.75)
    text = path.with_suffix(".md").read_text()
    assert "| kept | 3 (75.0%) |" in text
    assert "| refusal | 1 |" in text


def test_what_was_not_measured_is_null_and_never_zero(tmp_path: Path) -> None:
    path = tmp_path / "quality_report.json"
    report = stage_reports.write_quality_report(path, stage="rules", total=0, reject_reason_counts={})
    assert report["p_keep"] is report["exec_pass_rate"] is report["gold_match_rate"] is None
    assert report["judge_score"] == {"min": None, "max": None, "mean": None}
    assert report["exec_error_counts"] is None
    assert path.with_suffix(".md").read_text().count("not run") == 4


def test_measured_zeros_are_shown_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "quality_report.json"
    stage_reports.write_quality_report(
        path, stage="sample_gate", total=2, reject_reason_counts={"refusal": 2},
        exec_pass_rate=0.0, gold_match_rate=0.5, exec_error_counts={"truncated": 2},
        judge_scores={"min": 0.0, "max": 1.0, "mean": 0.25},
    )  # fmt: skip
    text = path.with_suffix(".md").read_text()
    assert "| executes | 0.0% |" in text
    assert "min 0, mean 0.25, max 1" in text
    assert "| truncated | 2 |" in text


def test_timing_is_read_from_the_manifests_and_outlives_them(tmp_path: Path) -> None:
    storage = project(tmp_path).storage
    for stage, seconds in (("canonicalize", 1.0), ("dedup", 2.0), ("teacher", 30.0),
                           ("rules.checks", 5.0), ("rules", 3.0), ("train.baseline", 50.0),
                           ("packaging", 4.0)):  # fmt: skip
        manifest = {"run_id": "a", "stage": stage, "seconds": seconds, "created_at": f"t-{stage}"}
        write_json(storage.path_of("manifests") / stage / "manifest.json", manifest)
    report = stage_reports.write_timing_report(storage)
    assert list(report) == ["run_id", "labels", "durations", "stages", "rows", "total", "created_at"]
    assert report["labels"] == list(stage_reports.LABELS)
    means = {name: value["mean"] for name, value in report["durations"].items()}
    assert means == {"raw__to__canonical": 1, "canonical__to__hashed": 2, "hashed__to__teacher": 30,
                     "teacher__to__filtered": 3, "filtered__to__distilled": 54}  # fmt: skip
    assert report["total"] == 90
    alone = report["durations"]["raw__to__canonical"]
    assert alone == {"count": 1, "min": 1, "max": 1, "mean": 1, "p50": None, "p90": None, "p95": None}
    events = storage.path_of("reports") / "timing_events.jsonl"
    before = events.read_bytes()
    assert stage_reports.write_timing_report(storage)["durations"] == report["durations"]
    assert events.read_bytes() == before, "an event is recorded once"

    later = {"run_id": "b", "stage": "teacher", "seconds": 10.0, "created_at": "later"}
    write_json(storage.path_of("manifests") / "teacher/manifest.json", later)
    summary = stage_reports.write_timing_report(storage)["durations"]["hashed__to__teacher"]
    assert summary == {"count": 2, "min": 10, "max": 30, "mean": 20, "p50": 20, "p90": 28, "p95": 29}
    text = (storage.path_of("reports") / "timing_report.md").read_text()
    assert "| hashed | teacher | 2 | 10 | 20 |" in text


def test_one_run_spends_both_times_on_a_hand_off_that_it_made_twice(tmp_path: Path) -> None:
    storage = project(tmp_path).storage
    for seconds, at in ((1.0, "t1"), (2.0, "t2"), (2.0, "t2")):
        stage_reports.record_timing(storage, "eval", seconds, run="a", at=at)
    summary = stage_reports.write_timing_report(storage)["durations"]["raw__to__eval"]
    assert (summary["count"], summary["mean"]) == (1, 3)


def test_nothing_executed_is_no_duration_and_a_null_total(tmp_path: Path) -> None:
    report = stage_reports.write_timing_report(project(tmp_path).storage)
    assert (report["durations"], report["total"]) == ({}, None)


def test_a_cut_line_costs_no_other_event_and_an_unknown_label_is_refused(tmp_path: Path) -> None:
    config = project(tmp_path)
    collect(config, [answer(0)])
    stage_reports.write_timing_report(config.storage)
    events = config.storage.path_of("reports") / "timing_events.jsonl"
    events.write_bytes(events.read_bytes()[:-9])
    assert "raw__to__teacher" in stage_reports.write_timing_report(config.storage)["durations"]
    with pytest.raises(ValueError, match="graded"):
        stage_reports.record_timing(config.storage, "graded", 1.0)
