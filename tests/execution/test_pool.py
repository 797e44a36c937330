"""The worker pool: order, walls, deaths and bugs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from nexa_distill.errors import NexaError
from nexa_distill.execution.checks import Check, Job, make_check, with_score
from nexa_distill.execution.pool import WorkerPool
from nexa_distill.execution.worker import run_job
from tests.support.databases import LIMITS, make_shops

HANGS = "SELECT goods FROM sale WHERE instr(hex(zeroblob(95000)) || rowid, hex(zeroblob(47000)) || '1')"
NAMES = "SELECT name FROM goods"


def pool(folder: Path, workers: int = 2, **limits: Any) -> WorkerPool:
    path = folder / "shops.sqlite"
    path = path if path.exists() else make_shops(path)
    setting = {"limits": asdict(replace(LIMITS, **limits)), "kinds": ["sql"], "schemas": {}}
    return WorkerPool({**setting, "databases": {"shops": [str(path)]}}, workers)


def jobs(*answers: str, gold: str | None = None) -> list[Job]:
    return [Job("sql", answer, gold, "shops") for answer in answers]


def test_verdicts_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    answers = [NAMES if i % 7 else "nonsense" for i in range(300)]
    with pool(tmp_path) as run:
        found = [c[0].ok for c in run.map_jobs(jobs(*answers))]
    assert found == [answer == NAMES for answer in answers]


def test_a_hanging_answer_costs_itself_its_verdict_and_no_other(tmp_path: Path) -> None:
    answers = [NAMES] * 20 + [HANGS] + [NAMES] * 20
    with pool(tmp_path, timeout_seconds=0.5) as run:
        found = [c[0] for c in run.map_jobs(jobs(*answers))]
    assert [c.ok for c in found] == [answer == NAMES for answer in answers]
    assert (found[20].reason, found[20].detail) == ("execution_timeout", "stopped at its wall")


def test_a_gold_query_that_hangs_is_not_held_against_the_answer(tmp_path: Path) -> None:
    with pool(tmp_path, timeout_seconds=0.5) as run:
        (found,) = run.map_jobs(jobs(NAMES, gold=HANGS))
    assert [(c.check, c.ok, c.reason) for c in found] == [
        ("exec.executes", None, "not_decidable"), ("exec.score", True, None),
    ]  # fmt: skip
    assert found[-1].value is None


def test_the_time_of_the_gold_query_is_not_the_answers(tmp_path: Path) -> None:
    slow = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT {}) SELECT count(*) FROM r"
    with pool(tmp_path, timeout_seconds=1.0, max_sql_steps=10**9) as run:
        started = time.monotonic()
        list(run.map_jobs(jobs(slow.format(100_000), gold=slow.format(100_000))))
        rows = int(100_000 * 0.6 / (time.monotonic() - started))
        found = list(run.map_jobs(jobs(*[slow.format(rows)] * 2, gold=slow.format(rows))))
    assert all(c[1].ok for c in found), found


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with pool(tmp_path, workers=1) as run:
        list(run.map_jobs(jobs(NAMES)))
        (worker,) = run._all
        os.kill(worker._process.pid, signal.SIGKILL)
        (first,), (second,) = run.map_jobs(jobs(NAMES)), run.map_jobs(jobs(NAMES))
    assert (first[0].ok, first[0].reason) == (False, "execution_crashed")
    assert second[0].ok


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    limits = asdict(LIMITS) | {"memory_mb": 1}
    setting = {"limits": limits, "kinds": ["sql"], "databases": {}, "schemas": {}}
    with WorkerPool(setting, 1) as run, pytest.raises(NexaError, match="did not start"):
        list(run.map_jobs(jobs(NAMES)))


def test_a_bug_in_a_checker_is_no_verdict_on_the_answer() -> None:
    def broken(_job: Job) -> list[Check]:
        raise KeyError("bug")

    assert "KeyError: 'bug'" in run_job(Job("sql", "SELECT 1"), {"sql": broken})["bug"]


def test_a_long_answer_does_not_block_the_pool(tmp_path: Path) -> None:
    long = NAMES + " -- " + "x" * 90_000
    with pool(tmp_path) as run:
        assert all(c[0].ok for c in run.map_jobs(jobs(*[long] * 40)))


def test_workers_have_an_environment_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_CANARY", "nexa-canary")
    with pool(tmp_path, workers=1) as run:
        list(run.map_jobs(jobs(NAMES)))
        (worker,) = run._all
        environment = Path(f"/proc/{worker._process.pid}/environ").read_bytes()
    names = {entry.partition(b"=")[0] for entry in environment.split(b"\0") if entry}
    assert names <= {b"PYTHONPATH", b"LC_CTYPE"}


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    make_shops(tmp_path / "shops.sqlite")
    code = f"""
import sys, time
from pathlib import Path
from tests.execution.test_pool import jobs, pool, NAMES, HANGS
with pool(Path({str(tmp_path)!r}), timeout_seconds=60.0) as run:
    list(run.map_jobs(jobs(NAMES)))
    print(*[w._process.pid for w in run._all], flush=True)
    list(run.map_jobs(jobs(HANGS)))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert pids
        time.sleep(0.3)
        parent.kill()
    deadline = time.monotonic() + 3
    while (alive := [p for p in pids if _runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("checks", "score"),
    [
        ([("executes", True)], 0.5),
        ([("executes", False)], 0.0),
        ([("executes", None)], None),
        ([("executes", True), ("matches", True)], 1.0),
        ([("executes", True), ("matches", False)], 0.5),
        ([("executes", False), ("matches", False)], 0.0),
        ([("executes", True), ("matches", None)], None),
        ([("executes", True), ("matches", True), ("matches_perturbed", True)], 1.0),
        ([("executes", True), ("matches", True), ("matches_perturbed", False)], 0.5),
        ([("executes", True), ("matches", True), ("matches_perturbed", None)], None),
    ],
)
def test_the_score_is_one_for_a_match_and_a_half_for_running(
    checks: list[tuple[str, bool | None]], score: float | None
) -> None:
    found = with_score([make_check(name, ok, "x") for name, ok in checks])
    assert found[-1] == Check("exec.score", True, score)


def test_a_detail_is_short_and_can_be_stored() -> None:
    found = make_check("executes", False, "not_executable", "\ud800" + "x" * 1000)
    assert found.detail is not None
    assert len(found.detail) == 300
    assert json.loads(json.dumps(found.detail)).encode()
