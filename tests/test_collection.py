"""The teacher stage against a real server on loopback: nothing lost, nothing asked twice."""

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill.contracts import INPUTS
from nexa_distill.in_flight import left_behind
from tests.ledger_teacher import Teacher, ledger_teacher
from tests.workspace import ROOT, Workspace, workspace

COLLECT = "nexa_distill.collect_teacher"


def prompts(count: int) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": f"s{n:04}", "task_id": f"t{n}", "template_name": "instruction",
            "user_prompt": f"Question {n}?", "source_file": "made", "source_row": n,
            "cluster_id": f"c{n}", "split": "train",
        }
        for n in range(count)
    ]  # fmt: skip


def ask(made: Workspace, rows: list[dict[str, Any]], *flags: str, code: int | None = 0) -> str:
    """Run the stage on a hand-made file; what it printed."""
    done = made.run(COLLECT, "--src", put(made, rows), *flags, code=code)
    return done.stdout + done.stderr


def put(made: Workspace, rows: list[dict[str, Any]]) -> Path:
    path = made.folder / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=INPUTS), path)
    return path


def answers(made: Workspace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(made.path("collected_dataset")).to_pylist()
    return rows


def texts(made: Workspace) -> dict[str, str]:
    return {row["sample_id"]: row["teacher_output"] for row in answers(made)}


def test_every_prompt_is_answered_once_and_a_rerun_asks_nothing(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(50))
        outputs = made.path("collected_dataset")
        before = (outputs.stat().st_mtime_ns, outputs.read_bytes())
        assert "up to date" in ask(made, prompts(50))
        assert sum(teacher.billed().values()) == len(teacher.billed()) == 50
    assert (outputs.stat().st_mtime_ns, outputs.read_bytes()) == before
    row = answers(made)[0]
    assert (row["model_id"], row["finish_reason"], row["attempt"]) == ("ledger-teacher", "stop", 0)
    assert (row["prompt_tokens"], row["total_tokens"], row["cost_usd"]) == (100, 150, None)
    assert row["latency_ms"] > 0


def test_f29_only_new_and_edited_rows_are_asked(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        rows = prompts(20)
        ask(made, rows)
        changed = rows[::-1] + prompts(23)[20:]
        changed[5] = changed[5] | {"user_prompt": "Another question?"}
        ask(made, changed)
        assert sum(teacher.billed().values()) == 20 + 3 + 1
    assert [row["sample_id"] for row in answers(made)] == [row["sample_id"] for row in changed]


def test_f27_the_same_content_under_two_ids_is_paid_once_and_given_to_both(tmp_path: Path) -> None:
    rows = prompts(4)
    rows[3] = rows[3] | {"user_prompt": rows[0]["user_prompt"]}
    with ledger_teacher(tmp_path, delay=0.1) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, rows)
        assert sum(teacher.billed().values()) == 3
    assert texts(made)["s0000"] == texts(made)["s0003"]


def test_f26_an_id_with_two_contents_is_refused_before_any_request(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        other = prompts(1)[0] | {"user_prompt": "Something else?"}
        said = ask(made, [*prompts(3), other], code=65)
        assert "sample_id s0000 stands in rows 0 and 3 (0-based) with different user_prompt" in said
        assert not teacher.billed()


def test_f26_a_row_that_stands_twice_is_asked_and_written_once(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        said = ask(made, [*prompts(3), prompts(1)[0] | {"source_row": 9}])
        assert "1 samples stand there more than once; asked once each" in said
        assert sum(teacher.billed().values()) == 3
    assert [row["sample_id"] for row in answers(made)] == ["s0000", "s0001", "s0002"]


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        (lambda t: t.drop_columns("user_prompt"), 65, "column user_prompt is missing"),
        (
            lambda t: t.rename_columns({"user_prompt": "userprompt"}),
            65,
            'did you mean "userprompt"',
        ),
        (lambda t: t, 65, "is int64, expected string"),
        (lambda t: t.slice(0, 0), 65, "holds no rows"),
    ],
)
def test_f28_a_bad_table_is_refused_before_any_request(
    tmp_path: Path, change: Any, code: int, expected: str
) -> None:
    table = pa.Table.from_pylist(prompts(3), schema=INPUTS)
    index = table.schema.get_field_index("user_prompt")
    if "int64" in expected:
        table = table.set_column(index, "user_prompt", pa.array([1] * 3))
    else:
        table = change(table)
    pq.write_table(table, tmp_path / "bad.parquet")
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        done = made.run(COLLECT, "--src", tmp_path / "bad.parquet", code=code)
        assert expected in done.stderr
        assert "bad.parquet" in done.stderr
        assert not teacher.billed()


def test_f28_a_null_prompt_is_named_by_its_row(tmp_path: Path) -> None:
    rows = prompts(3)
    rows[1]["user_prompt"] = None
    loose = pa.schema([field.with_nullable(True) for field in INPUTS])
    pq.write_table(pa.Table.from_pylist(rows, schema=loose), tmp_path / "bad.parquet")
    done = workspace(tmp_path).run(COLLECT, "--src", tmp_path / "bad.parquet", code=65)
    assert "column user_prompt is null in row 1" in done.stderr


def test_f01_kill_at_any_moment_loses_nothing_and_pays_only_in_flight_twice(tmp_path: Path) -> None:
    rows, chance = prompts(60), random.Random(7)
    with ledger_teacher(tmp_path, delay=0.05) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        command = made.command(COLLECT, "--src", put(made, rows))
        kills = 0
        for _ in range(12):
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(chance.uniform(0.5, 1.3))
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        made.run(COLLECT, "--src", made.folder / "prompts.parquet")
        billed = teacher.billed()
    assert kills
    assert len(billed) == 60
    assert sum(billed.values()) - 60 <= 4 * kills
    with ledger_teacher(tmp_path / "calm") as calm:
        undisturbed = workspace(tmp_path / "calm", calm.base_url)
        ask(undisturbed, rows)
    assert texts(made) == texts(undisturbed)


def test_f02_a_request_in_flight_at_a_crash_is_named_and_asked_once_more(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=1.5) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        command = made.command(COLLECT, "--src", put(made, prompts(3)))
        process = subprocess.Popen(command, cwd=ROOT)
        wait_for(lambda: in_flight(made) == 3)
        process.kill()
        process.wait()
        said = ask(made, prompts(3))
        assert "3 requests once ended without a complete answer" in said
        assert "may be billed twice" in said
        assert sum(teacher.billed().values()) <= 6
    assert len(answers(made)) == 3


def in_flight(made: Workspace) -> int:
    return len(left_behind(made.path("journal") / "teacher.inflight") or [])


def wait_for(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_f04_a_stop_lets_answers_in_flight_arrive(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    with ledger_teacher(tmp_path, delay=0.4) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        command = made.command(COLLECT, "--src", put(made, prompts(24)))
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: len(teacher.billed()) >= 4)
        process.send_signal(sent)
        _, said = process.communicate(timeout=30)
        stopped = sum(teacher.billed().values())
        assert process.returncode == code
        assert "in flight" in said
        assert stopped < 24
        ask(made, prompts(24))
        assert sum(teacher.billed().values()) == 24


def test_f10_a_second_collector_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=2) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        command = made.command(COLLECT, "--src", put(made, prompts(4)))
        first = subprocess.Popen(command, cwd=ROOT)
        wait_for(lambda: in_flight(made) == 4)
        said = ask(made, prompts(4), code=75)
        assert f"pid {first.pid} on {socket.gethostname()}" in said
        first.wait(30)
        assert sum(teacher.billed().values()) == 4


def test_f13_a_429_never_fails_a_row(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="status:429", share=0.7) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"max_attempts": 1})
        ask(made, prompts(30))
        assert sum(teacher.billed().values()) == 30
    assert len(answers(made)) == 30


@pytest.mark.parametrize("status", [401, 403, 404])
def test_f14_a_provider_that_refuses_stops_the_run_with_one_clear_line(
    tmp_path: Path, status: int
) -> None:
    with ledger_teacher(tmp_path, fault=f"status:{status}", always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        said = ask(made, prompts(50), code=69)
        assert f"refuses with HTTP {status}: " in said
        assert f"scripted {status}" in said
        assert not teacher.billed()
    assert not made.path("collected_dataset").exists()


def test_f14_used_up_quota_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE", "insufficient_quota")
    with ledger_teacher(tmp_path, fault="status:429", always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        assert "quota is used up" in ask(made, prompts(5), code=69)


def test_f14_a_redirect_is_no_answer_and_stops_the_run(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="status:302", always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        assert "check base_url" in ask(made, prompts(5), code=69)
        assert not teacher.billed()


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "localhost"])
def test_an_address_without_a_scheme_is_named(tmp_path: Path, url: str) -> None:
    said = ask(workspace(tmp_path, url), prompts(1), code=69)
    assert f"base_url is {url!r}, expected http" in said


def test_a_budget_in_dollars_needs_a_price(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        said = ask(made, prompts(3), "--max-usd", "1", code=65)
        assert "no price of ledger-teacher" in said
        assert not teacher.billed()


def test_a_budget_in_dollars_holds(tmp_path: Path) -> None:
    """One answer costs 100 + 50 tokens; what is in flight is reserved at its most."""
    price = {"prompt": 100.0, "completion": 1000.0}
    with ledger_teacher(tmp_path, delay=0.02) as teacher:
        local = {"base_url": teacher.base_url, "prices": {"ledger-teacher": price}}
        made = workspace(tmp_path, teacher.base_url, budget={"max_usd": 1.0})
        made.change(providers={"vllm": local | {"model": "ledger-teacher"}})
        ask(made, prompts(100), code=77)
        spent = sum(teacher.billed().values()) * 0.06
        assert 0.5 < spent <= 1.0


def test_the_providers_own_options_are_laid_over_and_null_takes_a_key_out(tmp_path: Path) -> None:
    options = {"temperature": None, "top_k": 5}
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        made.change(
            providers={
                "vllm": {
                    "base_url": teacher.base_url, "model": "ledger-teacher", "extra_body": options
                }
            }
        )  # fmt: skip
        ask(made, prompts(1))
    with sqlite3.connect(made.path("journal") / "teacher.sqlite") as db:
        (body,) = db.execute("SELECT body FROM requests").fetchone()
    sent = json.loads(body)
    assert sent["top_k"] == 5
    assert "temperature" not in sent


def test_a_kill_counts_against_no_request(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=1.0) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"max_attempts": 1})
        command = made.command(COLLECT, "--src", put(made, prompts(3)))
        process = subprocess.Popen(command, cwd=ROOT)
        wait_for(lambda: in_flight(made) == 3)
        process.kill()
        process.wait()
        ask(made, prompts(3))
    assert len(answers(made)) == 3


def test_a_dead_provider_stops_the_run(tmp_path: Path) -> None:
    made = workspace(tmp_path, collection={"max_attempts": 2})
    said = ask(made, prompts(5), code=69)
    assert "no connection to http://127.0.0.1:9/v1 in 2 attempts" in said


def test_f15_server_errors_are_retried_until_the_row_is_answered(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="status:503", share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(20))
        assert sum(teacher.billed().values()) == 20


def test_f15_what_is_given_up_is_in_a_table_with_evidence_and_asked_again_on_request(
    tmp_path: Path,
) -> None:
    with ledger_teacher(tmp_path, fault="status:500", share=0.5, always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"max_attempts": 2})
        said = ask(made, prompts(20))
        lost = pq.read_table(made.path("unanswered")).to_pylist()
        assert 0 < len(lost) < 20
        assert len(answers(made)) + len(lost) == 20
        assert f"{len(lost)} prompts have no answer" in said
        assert {row["rejection_reason"] for row in lost} == {"provider_failed"}
        assert "scripted 500" in lost[0]["detail"]
    with ledger_teacher(tmp_path) as teacher:
        made.change(providers={"vllm": {"base_url": teacher.base_url, "model": "ledger-teacher"}})
        before = sum(teacher.billed().values())
        ask(made, prompts(20))
        assert sum(teacher.billed().values()) == before
        ask(made, prompts(20), "--retry-failed")
        assert sum(teacher.billed().values()) == before + len(lost)
    assert len(answers(made)) == 20


def test_a_request_that_the_api_refuses_fails_alone(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="status:400", share=0.3, always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(20))
        lost = pq.read_table(made.path("unanswered")).to_pylist()
        assert {row["rejection_reason"] for row in lost} == {"request_refused"}
        assert sum(teacher.billed().values()) == 20 - len(lost) < 20


def test_f16_a_cut_body_is_never_stored_as_an_answer(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="cut", share=0.4) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(20))
        assert 20 < sum(teacher.billed().values()) < 40
    assert all(row["finish_reason"] == "stop" for row in answers(made))


def test_f17_an_answer_after_the_timeout_is_uncertain_and_sent_once_more(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="hang", share=1.0) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"timeout_seconds": 1.0})
        ask(made, prompts(3))
        assert sorted(teacher.billed().values()) == [2, 2, 2]
    with sqlite3.connect(made.path("journal") / "teacher.sqlite") as db:
        counts = dict(db.execute("SELECT outcome, count(*) FROM outcomes GROUP BY outcome"))
    assert counts == {"uncertain": 3, "answered": 3}


@pytest.mark.parametrize("fault", ["html", "empty", "no_choices"])
def test_f19_a_200_that_is_no_answer_is_kept_raw_and_not_asked_again(
    tmp_path: Path, fault: str
) -> None:
    with ledger_teacher(tmp_path, fault=fault, always=True, share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(10))
        assert sum(teacher.billed().values()) == 10
    empty = [row for row in answers(made) if row["teacher_output"] is None]
    assert 0 < len(empty) < 10
    assert {row["finish_reason"] for row in empty} == {None}


def test_f37_the_key_is_sent_and_found_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-canary-7f3a91"
    monkeypatch.setenv("CANARY_KEY", key)
    with ledger_teacher(tmp_path, delay=0.2) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        flags = ("--api-key-env", "CANARY_KEY", "--src", put(made, prompts(30)))
        command = made.command(COLLECT, *flags)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        wait_for(lambda: len(teacher.billed()) > 4)
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    found = [p for p in tmp_path.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]
    assert not found
    assert key not in said
    assert key.encode() not in shown


def test_a_missing_key_names_the_variable_and_the_file(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CANARY_KEY"}
    made = workspace(tmp_path)
    put(made, prompts(1))
    done = made.run(
        COLLECT, "--src", tmp_path / "prompts.parquet", "--api-key-env", "CANARY_KEY",
        code=69, env=environment,
    )  # fmt: skip
    assert "CANARY_KEY is not set" in done.stderr


def test_a_dry_run_sends_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(4))
        said = ask(made, prompts(10), "--dry-run", "--provider", "vllm")
        assert "6 requests to send" in said
        assert "4 reused" in said
        assert sum(teacher.billed().values()) == 4


def test_a_budget_stops_before_it_is_exceeded_and_goes_on_when_raised(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=0.02) as teacher:
        made = workspace(tmp_path, teacher.base_url, budget={"max_requests": 7})
        said = ask(made, prompts(20), code=77)
        assert "budget.max_requests is 7" in said
        assert sum(teacher.billed().values()) == 7, said
        made.change(budget={"max_requests": 20})
        ask(made, prompts(20))
        assert sum(teacher.billed().values()) == 20


def test_columns_of_another_name_are_named_by_flags(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        table = pq.read_table(put(made, prompts(2))).rename_columns({"user_prompt": "question"})
        pq.write_table(table, tmp_path / "prompts.parquet")
        flags = ("--src", tmp_path / "prompts.parquet", "--prompt-column", "question")
        made.run(COLLECT, *flags)
    assert answers(made)[1]["user_prompt"] == "Question 1?"


def test_the_teacher_server_is_started_used_and_stopped(tmp_path: Path) -> None:
    """A provider with `start:` runs its own server for as long as the stage needs it."""
    starter = tmp_path / "start.py"
    starter.write_text(
        "import json, sys, time\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.ledger_teacher import ledger_teacher\n"
        "with ledger_teacher(Path(sys.argv[1])) as teacher:\n"
        "    found = {'base_url': teacher.base_url, 'model': '/a/path/on/this/machine'}\n"
        "    Path(sys.argv[3]).write_text(json.dumps(found))\n"
        "    Path(sys.argv[1], 'pid').write_text(str(teacher.process.pid))\n"
        "    import signal\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "    time.sleep(60)\n"
    )
    local = {
        "base_url": None, "start": ["python", str(starter), str(tmp_path / "server")],
        "endpoint_file": str(tmp_path / "endpoint.json"), "start_timeout_seconds": 30.0,
        "model": "tiny",
    }  # fmt: skip
    made = workspace(tmp_path, providers={"vllm": local})
    ask(made, prompts(3))
    assert {row["model_id"] for row in answers(made)} == {"tiny"}
    pid = int((tmp_path / "server" / "pid").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    ledger = Teacher("", tmp_path / "server" / "ledger.txt", None)  # type: ignore[arg-type]
    assert sum(ledger.billed().values()) == 3


def test_f05_a_journal_on_a_full_disk_stops_the_run_before_more_is_sent(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the journal cannot grow past it."""
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 2})
        command = made.command(COLLECT, "--src", put(made, prompts(300)))
        limited = ["bash", "-c", 'ulimit -f 300; trap "" XFSZ; exec "$@"', "-", *command]
        done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 74, done.stderr
        assert "no further request is sent" in done.stderr
        billed = sum(teacher.billed().values())
        assert 0 < billed < 300
        ask(made, prompts(300))
        assert sum(teacher.billed().values()) - 300 <= 4
    assert len(answers(made)) == 300


def test_the_answer_survives_odd_characters(tmp_path: Path) -> None:
    odd = "\ud800 \x00 \u2028 \U0001f9ea \ufeff \u202e"
    rows = prompts(1)
    rows[0]["user_prompt"] = odd.replace("\ud800", "")
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, rows)
    (row,) = answers(made)
    assert row["user_prompt"] == odd.replace("\ud800", "")
    assert json.dumps(row["teacher_output"])
