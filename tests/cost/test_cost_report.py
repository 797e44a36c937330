"""The cost report: figures that can be worked out by hand, and nothing that was not measured."""

import asyncio
import json
import math
import sqlite3
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nexa_distill import collect_teacher, filter_pairs, pipeline, regenerate_bad, sample_gate
from nexa_distill.cost.cost_report import build_cost_report, write_cost_report
from nexa_distill.journal.journal import Journal, Outcome, PendingRequest
from nexa_distill.storage.manifests import StageRun
from tests import warm
from tests.cost.test_estimate import GEN, PRICE, collect, priced
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.faults import COLLECT, Row, ask, prompts, put, wait_for
from tests.teacher.ledger_teacher import ledger_teacher

FILTER = "scripts/python/data_processing/run_filtering.py"
PACKAGE = "scripts/python/deployment/run_packaging.py"
REGENERATE = "scripts/python/data_processing/run_regeneration.py"
TARGET = 1000


def answered(made: Workspace, rows: list[Row]) -> None:
    """Collected at the place of the first answers, and filtered."""
    source = made.path("raw_dataset")
    source.parent.mkdir(parents=True, exist_ok=True)
    put(made, rows).replace(source)
    manifest = made.path("manifests") / "dedup" / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    StageRun("dedup", made.load().storage, inputs=[], settings={}).seal_output(source, rows_in=len(rows), rejected=0)
    collect_teacher.run(made.load())
    filtered(made)


def filtered(made: Workspace) -> None:
    filter_pairs.run(made.load())
    sample_gate.run(made.load())


def kept(made: Workspace) -> int:
    return int(pq.read_metadata(made.path("filtered_dataset")).num_rows)


def wall_seconds(made: Workspace, stage: str = "teacher") -> float:
    with sqlite3.connect(made.path("journal") / f"{stage}.sqlite") as db:
        return float(db.execute("SELECT sum(ended_at - started_at) FROM runs").fetchone()[0])


def test_the_report_is_what_one_works_out_by_hand(tmp_path: Path) -> None:
    """An answer is 100 + 50 tokens and $0.06, of the regeneration 100 + 50 tokens and $0.0006."""
    regen = {"regen_model": "regen", "prices": {"ledger-teacher": PRICE, "regen": {"prompt": 1.0, "completion": 10.0}}}
    with ledger_teacher(tmp_path, fault="length", share=0.4, always=True) as teacher:
        made = priced(tmp_path, teacher.base_url, **regen)
        made.change(input={"limit": 12}, budget={"target_samples": TARGET})
        made.run(GEN)
        made.run(FILTER)
        first, rejected = kept(made), 24 - kept(made)
        report = json.loads((made.path("reports") / "cost_report.json").read_text())
        assert 0 < first < 24
        seconds = wall_seconds(made)
        assert report["stages"] == {
            "teacher": {
                "requests_sent": 24, "answered": 24, "refused": 0,
                "uncertain": 0, "under_way": 0, "uncertain_usd_at_most": 0.0,
                "prompt_tokens": 2400, "completion_tokens": 1200,
                "answers_without_token_counts": 0,
                "usd": pytest.approx(1.44), "answers_without_price": 0,
                "seconds": pytest.approx(seconds),
                "answers_per_second": pytest.approx(24 / seconds),
            }
        }  # fmt: skip
        assert report["total"]["teacher_tokens"] == 3600
        assert report["total"]["distilled_tokens"] == 50 * first
        assert report["kept"]["keep_rate"] == pytest.approx(first / 24)
        assert report["per_kept_sample"] == {
            "usd": pytest.approx(1.44 / first), "seconds": pytest.approx(seconds / first),
            "teacher_tokens": pytest.approx(3600 / first),
        }  # fmt: skip
        scale = TARGET / first
        projected = report["projection"]
        assert projected["requests"] == math.ceil(24 * scale)
        assert projected["teacher_tokens"] == round(3600 * scale)
        assert projected["seconds"] == pytest.approx(seconds * scale)
        assert projected["teacher_usd"] == projected["total_usd"] == pytest.approx(1.44 * scale)

        made.run(REGENERATE)
        report = json.loads((made.path("reports") / "cost_report.json").read_text())
        last = kept(made)
        again = wall_seconds(made, "regenerate")
        assert last > first
        assert report["stages"]["regenerate"]["usd"] == pytest.approx(rejected * 0.0006)
        usd = 1.44 + rejected * 0.0006
        assert report["total"]["usd"] == pytest.approx(usd)
        assert report["total"]["teacher_tokens"] == 3600 + 150 * rejected
        assert report["total"]["seconds"] == pytest.approx(seconds + again)
        assert report["kept"]["keep_rate"] == pytest.approx(last / 24)
        assert report["per_kept_sample"]["usd"] == pytest.approx(usd / last)
        projected = report["projection"]
        assert projected["total_usd"] == pytest.approx(usd * TARGET / last)
        assert projected["teacher_usd"] == pytest.approx(1.44 * TARGET / last)
        assert projected["requests"] == sum(math.ceil(n * TARGET / last) for n in (24, rejected))
        assert projected["seconds"] == pytest.approx((seconds + again) * TARGET / last)

    text = (made.path("reports") / "cost_report.md").read_text()
    assert "| teacher | 24 | 24 | 0 | 0 | 2,400 | 1,200 | $1.44 |" in text
    assert "## Projected to 1,000 kept samples" in text
    assert "- Projected: at the keep rate" in text
    shown = made.run("nexa_distill.pipeline", "summary").stdout
    assert "teacher: 24 answers of 24 requests, $1.44, " in shown
    assert f"kept: {last} of 24 prompts; per kept sample $" in shown
    assert f"1,000 kept samples, at these rates: {projected['requests']:,} requests, " in shown


def test_a_report_of_which_nothing_has_changed_is_not_written_again(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, input={"limit": 4})
        made.run(GEN)
        made.run(FILTER)
        files = [made.path("reports") / f"cost_report.{kind}" for kind in ("json", "md")]
        before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
        made.run(FILTER)
        made.run(PACKAGE)
        assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
        made.change(budget={"target_samples": 5})
        made.run(PACKAGE)
    assert json.loads(files[0].read_text())["projection"]["target_samples"] == 5


def test_what_was_not_measured_is_null_and_said_not_to_be_known(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, capabilities=["models"]) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        answered(made, prompts(6))
    report = build_cost_report(made.load())
    stage = report["stages"]["teacher"]
    assert (stage["prompt_tokens"], stage["completion_tokens"], stage["usd"]) == (None, None, None)
    assert (stage["answers_without_token_counts"], stage["answers_without_price"]) == (6, 6)
    assert stage["uncertain_usd_at_most"] is None
    total, projected = report["total"], report["projection"]
    assert (total["teacher_tokens"], total["distilled_tokens"], total["usd"]) == (None, None, None)
    assert report["kept"]["kept_samples"] == 6
    assert report["per_kept_sample"]["usd"] is None
    assert (projected["teacher_tokens"], projected["total_usd"]) == (None, None)
    assert projected["requests"] == 10_000
    write_cost_report(made.load())
    text = (made.path("reports") / "cost_report.md").read_text()
    assert "| cost | unpriced |" in text
    assert "| distilled tokens, of the kept answers | not known |" in text
    assert any("6 answers of 6 requests, unpriced" in line for line in pipeline.describe_summary(made.load()))


def test_nothing_asked_is_no_stage_and_no_zero(tmp_path: Path) -> None:
    made = workspace(tmp_path)
    report = write_cost_report(made.load())
    assert report["stages"] == {}
    assert report["kept"] is None
    assert set(report["total"].values()) == {None}
    assert not [line for line in pipeline.describe_summary(made.load()) if "answers" in line]


def test_kept_answers_of_an_earlier_collection_count_for_nothing(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        answered(made, prompts(4))
        assert build_cost_report(made.load())["kept"]["kept_samples"] == 4
        made.change(collection={"temperature": 0.9})
        collect_teacher.run(made.load())
        report = build_cost_report(made.load())
        assert report["kept"] is None
        assert set(report["per_kept_sample"].values()) == {None}
        assert report["projection"]["total_usd"] is None
        filtered(made)
    report = build_cost_report(made.load())
    assert report["stages"]["teacher"]["usd"] == pytest.approx(8 * 0.06)
    assert report["per_kept_sample"]["usd"] == pytest.approx(8 * 0.06 / 4)
    assert report["projection"]["total_usd"] == pytest.approx(10_000 * 0.06)


def test_rows_that_share_an_answer_pay_it_once(tmp_path: Path) -> None:
    rows = prompts(5)
    rows[4]["user_prompt"] = rows[0]["user_prompt"]
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        answered(made, rows)
    report = build_cost_report(made.load())
    assert (report["stages"]["teacher"]["answered"], report["kept"]["kept_samples"]) == (4, 5)
    assert report["projection"]["requests"] == 8_000
    assert report["projection"]["total_usd"] == pytest.approx(8_000 * 0.06)


def test_uncertain_requests_are_counted_with_the_most_that_they_can_have_cost(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="hang", share=1.0) as teacher:
        made = priced(tmp_path, teacher.base_url)
        made.change(collection={"timeout_seconds": 0.5})
        rows = [row | {"system_prompt": None} for row in prompts(3)]
        collect(made, rows)
        assert sum(teacher.billed().values()) == 6
    stage = build_cost_report(made.load())["stages"]["teacher"]
    assert (stage["requests_sent"], stage["answered"], stage["uncertain"]) == (6, 3, 3)
    requests_of = collect_teacher.request_maker(made.load())
    sizes = [len(request.data) // 3 for row in rows for request in requests_of(row)]
    most = sum(size * 100 + 256 * 1000 for size in sizes) / 1e6
    assert stage["uncertain_usd_at_most"] == pytest.approx(most)
    assert stage["usd"] == pytest.approx(0.18)
    summary = list(pipeline.describe_summary(made.load()))
    assert any("perhaps billed twice: 3 requests, at most $" in line for line in summary)


def test_a_killed_run_lasted_until_its_last_outcome(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=0.3) as teacher:
        made = priced(tmp_path, teacher.base_url)
        made.change(collection={"concurrency": 4})
        process = warm.Process(made.command(COLLECT, "--src", put(made, prompts(16))), cwd=ROOT)
        wait_for(lambda: sum(teacher.billed().values()) >= 12)
        process.kill()
        process.wait()
        killed = build_cost_report(made.load())["stages"]["teacher"]
        idle = 0.7
        time.sleep(idle)
        ask(made, prompts(16))
    stage = build_cost_report(made.load())["stages"]["teacher"]
    with sqlite3.connect(made.path("journal") / "teacher.sqlite") as db:
        (start, second, end) = db.execute("SELECT min(started_at), max(started_at), max(ended_at) FROM runs").fetchone()
    assert killed["uncertain"] > 0
    assert killed["seconds"] is not None
    assert killed["seconds"] > 0.3
    assert stage["seconds"] == pytest.approx(killed["seconds"] + end - second)
    assert stage["seconds"] < end - start - idle
    assert stage["uncertain"] == killed["uncertain"]


def fake_journal(made: Workspace, stage: str, answers: int, usd: float) -> None:
    """A stage with its own journal, 30 + 10 tokens an answer."""

    async def fill(journal: Journal) -> None:
        for number in range(answers):
            asking = PendingRequest(None, f"{stage}{number}", f"s{number}", b"{}", 100, 1.0)
            (attempt,) = await journal.begin_attempts([asking])
            journal.record_outcome(attempt, Outcome("answered", 200, b"{}", None, 5.0), lambda _: None)
            await journal.wait_for_disk()
            journal.record_usage(attempt, 30, 10, 40, usd)
            await journal.wait_for_disk()

    with Journal(made.path("journal") / f"{stage}.sqlite", "run") as journal:
        asyncio.run(fill(journal))


def test_a_judge_is_paid_per_sample_and_a_probe_once(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        answered(made, prompts(4))
    fake_journal(made, "judge", 8, 0.01)
    fake_journal(made, "probe", 3, 0.5)
    report = build_cost_report(made.load())
    assert list(report["stages"]) == ["teacher", "judge", "probe"]
    assert report["total"]["usd"] == pytest.approx(4 * 0.06 + 8 * 0.01 + 3 * 0.5)
    assert report["total"]["teacher_tokens"] == 600
    projected = report["projection"]
    assert projected["total_usd"] == pytest.approx((4 * 0.06 + 8 * 0.01) * 2500)
    assert projected["teacher_usd"] == pytest.approx(4 * 0.06 * 2500)
    assert projected["requests"] == 4 * 2500 + 8 * 2500
    assert projected["teacher_tokens"] == 600 * 2500


def test_a_journal_that_cannot_be_read_is_noted_and_the_others_are_reported(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        answered(made, prompts(2))
    with sqlite3.connect(made.path("journal") / "judge.sqlite") as db:
        db.execute("PRAGMA user_version=9")
        db.execute("CREATE TABLE other (id)")
    (made.path("journal") / "regenerate.sqlite").write_bytes(b"no database at all" * 99)
    whole = (made.path("journal") / "teacher.sqlite").read_bytes()
    (made.path("journal") / "torn.sqlite").write_bytes(whole[:8192] + b"?" * (len(whole) - 8192))
    report = write_cost_report(made.load())
    assert list(report["stages"]) == ["teacher"]
    text = (made.path("reports") / "cost_report.md").read_text()
    assert "judge is left out" in text
    assert "regenerate is left out" in text
    assert "torn is left out" in text


def test_refused_requests_are_sends_and_ask_for_more_when_projected(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="status:400", share=0.4, always=True) as teacher:
        made = priced(tmp_path, teacher.base_url)
        answered(made, prompts(20))
        billed = sum(teacher.billed().values())
    report = build_cost_report(made.load())
    stage = report["stages"]["teacher"]
    assert 0 < billed < 20
    assert (stage["requests_sent"], stage["answered"]) == (20, billed)
    assert stage["refused"] == 20 - billed
    assert report["kept"]["prompts"] == 20
    assert report["kept"]["kept_samples"] == billed
    assert report["projection"]["requests"] == math.ceil(20 * 10_000 / billed)
    assert report["projection"]["total_usd"] == pytest.approx(10_000 * 0.06)


def test_repairs_that_no_gate_has_seen_leave_the_kept_unknown(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="length", share=0.5, always=True) as teacher:
        made = priced(tmp_path, teacher.base_url)
        answered(made, prompts(12))
        before = build_cost_report(made.load())["kept"]["kept_samples"]
        regenerate_bad.run(made.load())
        assert build_cost_report(made.load())["kept"] is None
        filtered(made)
    assert build_cost_report(made.load())["kept"]["kept_samples"] >= before
