"""The timing report: every stage that ran, and distributions only of what is timed one by one."""

import json
import sqlite3
import statistics
from pathlib import Path

from nexa_distill import gates
from nexa_distill.orchestration.timing import write_timing_report
from nexa_distill.storage.atomic import write_json
from nexa_distill.storage.manifests import manifest_path
from tests.repair.test_regenerate_bad import SAYS, collected
from tests.support.workspace import workspace
from tests.teacher.ledger_teacher import ledger_teacher


def test_each_stage_has_its_time_and_requests_and_steps_their_distribution(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        gates.run_repair_loop(made.load())
    storage = made.load().storage
    held_out = {"run_id": "r", "seconds": 9.0, "created_at": "t"}
    write_json(manifest_path(made.path("baseline_outputs"), storage), held_out)
    metrics = made.path("students") / "baseline/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("".join(json.dumps({"step": n, "seconds": n * n}) + "\n" for n in range(1, 4)))

    report = write_timing_report(made.load())
    assert list(report["stages"]) == [
        "teacher", "rules", "exec", "judge", "person", "sample_gate", "regenerate", "student_gen.baseline",
    ]  # fmt: skip
    assert report["stages"]["student_gen.baseline"]["mean"] == 9
    assert "student_gen" not in " ".join(report["durations"])
    rows = report["rows"]
    assert list(rows) == ["regenerate request", "teacher request", "train step"]
    assert (rows["train step"]["count"], rows["train step"]["p50"], rows["train step"]["max"]) == (3, 3, 5)
    with sqlite3.connect(made.path("journal") / "teacher.sqlite") as db:
        seconds = [ms / 1000 for (ms,) in db.execute("SELECT latency_ms FROM outcomes")]
    assert rows["teacher request"]["count"] == len(seconds) == 6
    assert rows["teacher request"]["p50"] == round(statistics.median(seconds), 3)
    text = (made.path("reports") / "timing_report.md").read_text()
    assert "| teacher request | 6 |" in text
    assert "| student_gen.baseline | 1 | 9 | 9 |  |" in text

    events = made.path("reports") / "timing_events.jsonl"
    before = events.read_bytes()
    assert write_timing_report(made.load())["stages"] == report["stages"]
    assert events.read_bytes() == before, "an event is recorded once"
