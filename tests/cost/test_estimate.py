"""The estimate: it counts what is then really sent, says why, prices it, and sends nothing."""

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from nexa_distill import collect_teacher, regenerate_bad
from nexa_distill.collection.requests.budget import BudgetTracker, format_usd
from nexa_distill.cost.cost_report import build_cost_report
from nexa_distill.cost.estimate import Estimate, estimate_collection
from nexa_distill.cost.estimate_text import estimate_lines
from nexa_distill.journal.journal import Journal, Usage
from nexa_distill.settings.pipeline import Budget
from tests import warm
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.faults import COLLECT, Row, ask, on_the_wire, prompts, put, wait_for
from tests.teacher.ledger_teacher import Teacher, ledger_teacher

GEN = "scripts/python/data_processing/run_full_data_gen.py"
FILTER = "scripts/python/data_processing/run_filtering.py"
PRICE = {"prompt": 100.0, "completion": 1000.0}  # one answer of 100 + 50 tokens costs $0.06


def priced(folder: Path, base_url: str, **provider: Any) -> Workspace:
    made = workspace(folder, base_url)
    settings = {"base_url": base_url, "model": "ledger-teacher", "regen_model": "ledger-teacher"}
    prices = {"prices": {"ledger-teacher": PRICE, "other-teacher": PRICE}}
    made.change(providers={"vllm": settings | prices | provider})
    return made


def equals(count: int, start: int = 100) -> list[Row]:
    """Prompts of the same length."""
    return [row | {"system_prompt": None} for row in prompts(start + count)[start:]]


def collect(made: Workspace, rows: list[Row], *, retry_failed: bool = False) -> None:
    collect_teacher.run(made.load(), put(made, rows), retry_failed=retry_failed)


def look(made: Workspace, rows: list[Row], *, retry_failed: bool = False) -> Estimate:
    source = put(made, rows)
    return estimate_collection(collect_teacher.build_collector(made.load(), source, retry_failed=retry_failed))


def said(made: Workspace, rows: list[Row]) -> str:
    return "\n".join(estimate_lines(collect_teacher.build_collector(made.load(), put(made, rows))))


def sent(teacher: Teacher) -> int:
    return len(teacher.sends(None))


# What is counted is what is sent.


@pytest.mark.parametrize("retry", [False, True])
def test_the_estimate_counts_what_is_then_sent(tmp_path: Path, retry: bool) -> None:
    rows = prompts(30)
    with ledger_teacher(tmp_path, fault="status:400", share=0.3, always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        collect(made, rows)
        answered = sum(teacher.billed().values())
    rows[3] = rows[3] | {"user_prompt": "An edited question?"}
    rows += prompts(34)[30:] + [prompts(35)[34] | {"user_prompt": "Question 33?"}]
    with ledger_teacher(tmp_path / "again") as teacher:
        made.change(providers={"vllm": {"base_url": teacher.base_url, "model": "ledger-teacher"}})
        found = look(made, rows, retry_failed=retry)
        assert sent(teacher) == 0
        collect(made, rows, retry_failed=retry)
        assert sent(teacher) == found.send == sum(teacher.billed().values())
    assert found.requests == 35
    assert found.shared == 1
    edited_was_answered = answered - found.answered
    assert edited_was_answered in (0, 1)
    refused = 30 - answered - (1 - edited_was_answered)
    assert 0 < refused < 15
    if retry:
        assert found.why["refused before"] == refused
        assert not found.not_sent
    else:
        assert found.not_sent == {"request_refused": refused}
    assert (found.why["never asked"], found.why["changed: prompt"]) == (4, 1)
    assert found.send == found.why.total()
    assert found.requests == found.send + found.answered + 1 + found.not_sent.total()


def test_f30_d32_what_changed_is_named_and_the_old_answers_stay(tmp_path: Path) -> None:
    rows = prompts(6)
    other_system = tmp_path / "system.txt"
    other_system.write_text("Answer in one word.")
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        collect(made, rows)
        first = made.config.read_text()
        local = json.loads(json.dumps(made.load().providers["vllm"].model_dump()))
        changes: dict[str, dict[str, Any]] = {
            "temperature 0.2 -> 0.7": {"collection": {"temperature": 0.7}},
            "max_tokens 256 -> 99": {"collection": {"max_tokens": 99}},
            "model ledger-teacher -> other-teacher, temperature 0.2 -> 0.0": {
                "collection": {"teacher_model": "other-teacher", "temperature": 0.0}
            },
            "system prompt": {"collection": {"system_prompt_path": str(other_system)}},
            "top_k unset -> 5": {"providers": {"vllm": local | {"extra_body": {"top_k": 5}}}},
            "stop": {"providers": {"vllm": local | {"extra_body": {"stop": ["a"]}}}},
        }
        for words, change in changes.items():
            made.change(**change)
            assert look(made, rows).why == {f"changed: {words}": 6}
            made.config.write_text(first)
        made.change(collection={"samples": 2})
        assert look(made, rows).why == {"one more answer of the same prompt": 6}
        made.config.write_text(first)
        edited = [rows[0] | {"user_prompt": "Edited?"}, *rows[1:]]
        found = look(made, edited)
        assert (found.answered, found.why) == (5, {"changed: prompt": 1})

        made.change(collection={"concurrency": 3, "timeout_seconds": 9.0})
        moved = tmp_path / "elsewhere.parquet"
        put(made, rows).rename(moved)
        found = estimate_collection(collect_teacher.build_collector(made.load(), moved))
        assert (found.send, found.answered) == (0, 6)
        assert sum(teacher.billed().values()) == 6

        made.change(collection={"temperature": 0.7})
        shown = ask(made, rows, "--estimate")
        assert "6 requests to send to vllm (ledger-teacher), 0 reused" in shown
        assert "6 changed: temperature 0.2 -> 0.7" in shown
        assert "at most $" in shown
        collect(made, rows)
        assert sum(teacher.billed().values()) == 12
        made.change(collection={"temperature": 0.2})
        assert "0 requests to send to vllm (ledger-teacher), 6 reused" in said(made, rows)
        collect(made, rows)
        assert sum(teacher.billed().values()) == 12


def test_f30_two_rows_that_share_a_request_are_both_known_after_a_change(tmp_path: Path) -> None:
    rows = prompts(3)
    rows[2]["user_prompt"] = rows[0]["user_prompt"]
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        collect(made, rows)
        made.change(collection={"temperature": 0.9})
        found = look(made, rows)
    assert (found.send, found.shared) == (2, 1)
    assert found.why == {"changed: temperature 0.2 -> 0.9": 2}


def test_f02_a_killed_collectors_requests_are_estimated_as_the_next_run_finds_them(tmp_path: Path) -> None:
    rows = prompts(5)
    with ledger_teacher(tmp_path, delay=1.0) as teacher:
        made = priced(tmp_path, teacher.base_url)
        made.change(collection={"concurrency": 3, "batch_size": 5})
        process = warm.Process(made.command(COLLECT, "--src", put(made, rows)), cwd=ROOT)
        wait_for(lambda: len(on_the_wire(made)) == 3)
        process.kill()
        process.wait()
        found = look(made, rows)
        assert found.why == {
            "sent before without a complete answer, perhaps billed": 3,
            "not sent before the run stopped": 2,
        }
        assert found.spent.requests == 3
        made.change(collection={"on_uncertain": "hold"})
        found = look(made, rows)
        assert (found.send, found.not_sent) == (2, {"held": 3})
        assert "3 not sent: held, perhaps billed" in said(made, rows)
        before = sent(teacher)
        collect(made, rows)
        assert sent(teacher) - before == 2
        assert look(made, rows).spent.requests == found.spent.requests + 2


# Nothing is sent, written or locked.


def test_batches_cost_the_discount_and_what_is_in_one_is_not_asked_again(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_fault="stuck") as teacher:
        made = priced(tmp_path, teacher.base_url, batch_discount=0.5)
        collect(made, equals(20))
        made.change(collection={"batch_api": True})
        found = look(made, equals(30))
        assert found.usd == pytest.approx(0.3)
        assert found.most_usd == pytest.approx(0.05 + 1.28)
        assert "up to a day" in said(made, equals(30))
        command = made.command(COLLECT, "--src", put(made, equals(30)))
        process = warm.Process(command, cwd=ROOT)
        wait_for(lambda: teacher.batches())
        process.kill()
        process.wait()
        found = look(made, equals(32))
        assert (found.send, found.answered, found.not_sent) == (2, 20, {"under_way": 10})
        assert found.spent.requests == 30
        assert "10 not sent: in a batch at the provider" in said(made, equals(32))
    stage = build_cost_report(made.load())["stages"]["teacher"]
    assert (stage["under_way"], stage["requests_sent"], stage["uncertain"]) == (10, 20, 0)


def test_an_estimate_needs_no_lock_and_changes_nothing(tmp_path: Path) -> None:
    rows = prompts(4)
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path / "an odd #name?%41", teacher.base_url)
        assert "4 requests to send" in ask(made, rows, "--estimate")
        assert not made.path("journal").exists()
        collect(made, rows)
        file = made.path("journal") / "teacher.sqlite"
        before = file.read_bytes()
        with Journal(file, "somebody"):
            assert "2 requests to send" in ask(made, prompts(6), "--estimate")
            assert ask(made, prompts(6), code=75)
        with sqlite3.connect(file) as db:
            assert db.execute("SELECT count(*) FROM runs").fetchone() == (2,)
            db.execute("DELETE FROM runs WHERE run_id = 'somebody'")
        db.close()
        now = file.read_bytes()
        ask(made, prompts(6), "--estimate")
        assert file.read_bytes() == now
        assert len(before) == len(now)
        assert sent(teacher) == 4


def test_plan_shows_what_the_teacher_would_be_asked_and_sends_nothing(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        made.change(input={"limit": 3})
        plan = ("nexa_distill.pipeline", "plan")
        shown = made.run(*plan).stdout
        assert "known after canonicalize and dedup" in shown
        made.run(GEN)
        assert sent(teacher) == 6
        assert "teacher:" not in made.run(*plan).stdout
        made.change(collection={"temperature": 0.5})
        with Journal(made.path("journal") / "teacher.sqlite", "a running collector"):
            shown = made.run(*plan).stdout
        assert "teacher: 6 requests to send to vllm (ledger-teacher), 0 reused" in shown
        assert "teacher:   6 changed: temperature 0.2 -> 0.5" in shown
        assert sent(teacher) == 6
        made.change(input={"limit": 4})
        assert "known after canonicalize\n" in made.run(*plan).stdout


def test_a_journal_that_cannot_be_read_is_named_and_the_plan_stands(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, input={"limit": 3})
        made.run(GEN)
    file = made.path("journal") / "teacher.sqlite"
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version=9")
    made.change(collection={"temperature": 0.5})
    shown = made.run("nexa_distill.pipeline", "plan").stdout
    assert "teacher: no estimate: " in shown
    assert "a journal of version 9" in shown
    assert "filtering    run" in shown
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version=2")
    whole = file.read_bytes()
    file.write_bytes(whole[:8192] + b"?" * (len(whole) - 8192))
    shown = made.run("nexa_distill.pipeline", "plan").stdout
    assert f"teacher: no estimate: {file}: the journal cannot be read" in shown


def test_the_estimate_of_a_repair_counts_what_is_then_sent(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="length", share=0.4, always=True) as teacher:
        made = priced(tmp_path, teacher.base_url)
        made.change(input={"limit": 6})
        made.run(GEN)
        made.run(FILTER)
        before = sent(teacher)
        shown = made.run("nexa_distill.regenerate_bad", "--estimate").stdout
        found = re.search(r"regenerate: (\d+) requests to send", shown)
        assert found
        assert sent(teacher) == before
        regenerate_bad.run(made.load())
        assert sent(teacher) - before == int(found[1]) > 0


# Tokens, dollars, time.


def test_tokens_and_dollars_are_those_that_were_billed_per_byte(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        collect(made, equals(30))
        made.change(budget={"max_usd": 5.0, "max_requests": 40, "max_tokens": 100_000})
        found = look(made, equals(40))
    assert (found.send, found.answered) == (10, 30)
    assert found.measured_by == "as billed for 30 stored answers"
    assert (found.prompt_tokens, found.answer_tokens, found.most_answer_tokens) == (1000, 500, 2560)
    assert found.usd == pytest.approx(0.6)
    assert found.most_usd == pytest.approx(0.1 + 2.56)
    assert (found.spent.requests, found.spent.tokens) == (30, 4500)
    shown = said(made, equals(40)).splitlines()
    assert "about $0.60, at most $2.66" in shown
    assert "budget.max_usd 5.00, spent 1.80, this run at most 2.66" in shown
    assert "budget.max_requests 40, spent 30, this run at most 10" in shown
    assert "budget.max_tokens 100,000, spent 4,500, this run at most 3,560" in shown
    made.change(budget={"max_usd": 4.0, "max_requests": 30})
    shown = said(made, equals(40)).splitlines()
    may_stop, nothing = "it may stop before its end", "nothing more is sent"
    assert f"budget.max_usd 4.00, spent 1.80, this run at most 2.66; {may_stop} (exit code 77)" in shown
    assert f"budget.max_requests 30, spent 30, this run at most 10; {nothing} (exit code 77)" in shown


def test_fewer_than_20_answers_measure_no_prompts_and_other_models_measure_nothing(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        collect(made, equals(19))
        few = look(made, equals(21))
        collect(made, equals(20))
        enough = look(made, equals(21))
        made.change(collection={"teacher_model": "other-teacher"})
        other = look(made, equals(21))
    assert (few.measured_by, few.answer_tokens) == ("at 4 bytes per token", 100)
    assert (enough.measured_by, enough.prompt_tokens) == ("as billed for 20 stored answers", 100)
    assert (other.measured_by, other.answer_tokens) == ("at 4 bytes per token", None)
    assert (other.usd, other.send) == (None, 21)
    assert other.seconds is None


def test_without_answers_the_students_tokenizer_counts_if_it_is_there(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = workspace(tmp_path)
    rows = equals(3)
    requests_of = collect_teacher.request_maker(made.load())
    requests = [request for row in rows for request in requests_of(row)]
    found = look(made, rows)
    assert found.measured_by == "at 4 bytes per token"
    assert found.prompt_tokens == round(sum(len(request.data) for request in requests) / 4)
    folder = made.path("models") / "a-model"
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    found = look(made, rows)
    assert found.measured_by == "by the student's tokenizer"
    texts = [m["content"] for request in requests for m in request.body["messages"]]
    assert found.prompt_tokens == sum(len(text.split()) for text in texts)
    assert "by the student's tokenizer" in said(made, rows)
    (folder / "tokenizer.json").write_text("{")
    assert look(made, rows).measured_by == "at 4 bytes per token"


def test_wall_time_follows_from_the_last_run_and_the_providers_limits(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=0.05) as teacher:
        made = priced(tmp_path, teacher.base_url)
        assert "wall time not known before the first answers" in said(made, equals(30))
        collect(made, equals(5))
        made.change(collection={"concurrency": 4})
        few = look(made, equals(15))
        collect(made, equals(40))
        many = look(made, equals(50))
        with sqlite3.connect(made.path("journal") / "teacher.sqlite") as db:
            rows = db.execute(
                "SELECT a.run, o.ended_at, o.latency_ms / 1000 FROM outcomes o JOIN attempts a ON a.id = o.attempt_id"
            ).fetchall()
    first = [latency for run, _, latency in rows if run == 1]
    assert few.seconds == pytest.approx(3 * sum(first) / 5)  # 10 requests, 4 at a time
    assert "s per answer, 4 at a time" in few.pace
    last = [(ended, latency) for run, ended, latency in rows if run == 2]
    took = max(ended for ended, _ in last) - min(ended - latency for ended, latency in last)
    assert many.seconds == pytest.approx(10 / (35 / took))
    size = len(collect_teacher.request_maker(made.load())(equals(1)[0])[0].data)
    limits = {"requests_per_minute": 60.0, "tokens_per_minute": 6000.0}
    slow = priced(tmp_path, teacher.base_url, **limits)
    found = look(slow, equals(50))
    assert found.seconds == many.seconds
    assert found.least_seconds == pytest.approx(10 * (size // 3 + 256) / 100)
    assert "(tokens_per_minute 6,000)" in said(slow, equals(50))
    slow = priced(tmp_path / "new", teacher.base_url, requests_per_minute=5.0)
    shown = said(slow, equals(10))
    assert "not known before the first answers, at least 2:00 (requests_per_minute 5)" in shown


def test_a_model_without_a_price_is_unpriced_and_never_free(tmp_path: Path) -> None:
    made = workspace(tmp_path, budget={"max_usd": 1.0})
    found = look(made, equals(3))
    assert (found.usd, found.most_usd) == (None, None)
    shown = said(made, equals(3))
    assert "unpriced" in shown
    assert "budget.max_usd 1.00, spent 0.00, this run not known without a price" in shown


# Live spend.


def test_the_progress_line_says_what_is_spent_of_the_budget(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    with ledger_teacher(tmp_path) as teacher:
        made = priced(tmp_path, teacher.base_url)
        made.change(budget={"max_usd": 5.0})
        made.run(COLLECT, "--src", put(made, equals(3)), env={"NEXA_PROGRESS_FILE": str(file)})
    assert json.loads(file.read_text())["note"] == "$0.1800 of $5.00"


def test_spend_reads_well_with_and_without_a_budget() -> None:
    free = Budget(max_usd=None, max_requests=None, max_tokens=None, target_samples=1)
    tally = BudgetTracker(free, Usage(0, 0, 0.0))
    assert tally.spend_text == ""
    assert BudgetTracker(free, Usage(1, 1, 1.23456)).spend_text == "$1.2346"
    limited = BudgetTracker(free.model_copy(update={"max_usd": 5.0}), Usage(1, 1, 1.2345))
    assert limited.spend_text == "$1.2345 of $5.00"
    amounts = {0.0: "0.00", 5: "5.00", 1.2: "1.20", 0.0123: "0.0123", 4e-5: "0.00004"}
    assert {value: format_usd(value) for value in amounts} == amounts
    assert format_usd(12345.678) == "12,345.68"
