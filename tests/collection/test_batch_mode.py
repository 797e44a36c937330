"""Batch mode against a real server on loopback: created once, billed once, joined by the id."""

import http.client
import itertools
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from nexa_distill.collection.batch.files import MAX_LINE_BYTES, read_line, read_lines, request_line
from nexa_distill.collection.collector import Collector
from nexa_distill.collection.requests.body import prompt_request
from nexa_distill.collection.requests.budget import BudgetTracker
from nexa_distill.journal.journal import Attempt, RequestState, Usage
from nexa_distill.settings.pipeline import Budget
from tests.support.workspace import Workspace, workspace
from tests.teacher.faults import Run, answers, ask, journal, outcomes, prompts, provide, put, reasons, texts, wait_for
from tests.teacher.ledger_teacher import Teacher, ledger_teacher

PRICE = {"prompt": 100.0, "completion": 1000.0}  # an answer: 100 and 50 tokens, $0.06
ODD = "\x00 \u2028\u2029\x85 \U0001f9ea \ufeff \u202e \r\n"


def project(folder: Path, base_url: str, **changes: Any) -> Workspace:
    """The workspace of a provider that has batches at half the price."""
    made = workspace(folder, base_url, **changes)
    provide(made, batch_discount=0.5, prices={"ledger-teacher": PRICE})
    return made


def select(made: Workspace, sql: str) -> list[Any]:
    with journal(made) as db:
        return db.execute(sql).fetchall()


def details(made: Workspace) -> list[str]:
    """The evidence about each row that has no answer."""
    found: list[str] = pq.read_table(made.path("unanswered"))["detail"].to_pylist()
    return found


def once(teacher: Teacher, count: int) -> bool:
    """So many requests are billed, and each of them once."""
    return Counter(teacher.billed().values()) == {1: count}


def looked(teacher: Teacher) -> bool:
    return any(send["method"] == "GET" for send in teacher.sends(None))


# ---- all goes well


def test_batches_write_the_same_table_as_single_requests_for_half_the_price(tmp_path: Path) -> None:
    rows = prompts(20)
    rows[3] |= {"user_prompt": f"Odd: {ODD}?"}
    rows[19] |= {"user_prompt": rows[0]["user_prompt"]}
    tables, billed = [], []
    for flags in ((), ("--batch",)):
        folder = tmp_path / f"with{''.join(flags)}"
        with ledger_teacher(folder) as teacher:
            made = project(folder, teacher.base_url)
            ask(made, rows, *flags)
            tables.append(pq.read_table(made.path("collected_dataset")))
            billed.append(teacher.billed())
            assert len(teacher.sends()) == (0 if flags else 19)
    of_the_mode = ["latency_ms", "cost_usd", "created_at"]
    assert tables[0].drop_columns(of_the_mode).equals(tables[1].drop_columns(of_the_mode))
    assert set(tables[0]["cost_usd"].to_pylist()) == {0.15 * 0.4}
    assert set(tables[1]["cost_usd"].to_pylist()) == {0.15 * 0.2}
    assert set(tables[1]["latency_ms"].to_pylist()) == {None}
    assert billed[0] == billed[1]
    assert select(made, "SELECT DISTINCT cost_usd FROM usage") == [(0.03,)]


def test_a_rerun_sends_nothing_and_no_file_stays_behind(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = project(tmp_path, teacher.base_url)
        said = ask(made, prompts(5), "--batch")
        assert f"batch teacher-1 ({teacher.batches()[0]}): 5 requests submitted" in said
        assert "5 requests now, $0.1500 in all" in said
        before = len(teacher.sends(None))
        outputs = made.path("collected_dataset").read_bytes()
        assert "up to date" in ask(made, prompts(5), "--batch")
        made.path("collected_dataset").unlink()
        ask(made, prompts(5), "--batch")
        assert len(teacher.sends(None)) == before
        assert made.path("collected_dataset").read_bytes() == outputs
        assert not list((made.path("journal") / "batches").iterdir())


def test_many_requests_go_out_in_several_batches_at_a_time(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_delay=1.5) as teacher:
        made = project(tmp_path, teacher.base_url, collection={"batch_requests": 8})
        ask(made, prompts(20), "--batch")
        assert once(teacher, 20)
        assert len(teacher.batches()) == 3
        sends = teacher.sends(None)
        created = [n for n, send in enumerate(sends) if send["path"] == "/v1/batches"]
        taken = [n for n, send in enumerate(sends) if send["path"].endswith("/content")]
        assert max(created) < min(taken)
    assert select(made, "SELECT requests FROM batches ORDER BY id") == [(8,), (8,), (4,)]
    assert len(answers(made)) == 20


def test_an_estimate_counts_the_price_of_a_batch(tmp_path: Path) -> None:
    made = project(tmp_path, "http://127.0.0.1:9/v1", collection={"max_tokens": 1000})
    single, batch = (ask(made, prompts(3), "--dry-run", *flags) for flags in ((), ("--batch",)))
    usd = [float(said.rsplit("at most $", 1)[1].split()[0]) for said in (single, batch)]
    assert usd[1] == pytest.approx(usd[0] / 2, abs=1e-4)
    assert usd[0] > 3


# ---- F22: what a batch's files can hold


@pytest.mark.parametrize(
    ("fault", "ends", "batches"),
    [
        ("shuffled", {"answered": 12}, 1),
        ("duplicated", {"answered": 12}, 1),
        ("missing", {"answered": 12, "uncertain": 4}, 2),
        ("unknown_id", {"answered": 12}, 1),
        ("half_expired", {"answered": 12, "not_sent": 6}, 2),
        ("error_file", {"answered": 10, "rejected": 4}, 2),
    ],
)
def test_f22_answers_are_joined_by_their_id_and_only_what_is_missing_is_asked_again(
    tmp_path: Path, fault: str, ends: dict[str, int], batches: int
) -> None:
    with ledger_teacher(tmp_path, batch_fault=fault, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        said = ask(made, prompts(12), "--batch")
        assert outcomes(made) == ends
        assert once(teacher, ends["answered"])
        assert len(teacher.batches()) == batches
        ask(made, prompts(12), "--batch")
        assert once(teacher, ends["answered"])
    with ledger_teacher(tmp_path / "calm") as teacher:
        calm = project(tmp_path / "calm", teacher.base_url)
        ask(calm, prompts(12))
    assert texts(made).items() <= texts(calm).items()
    assert len(answers(made)) + len(reasons(made)) == 12
    assert len(answers(made)) == ends["answered"]
    assert select(made, "SELECT sum(cost_usd) FROM usage") == [(pytest.approx(0.03 * ends["answered"]),)]
    strange = made.path("journal") / "batches/teacher-1.unknown.jsonl"
    assert strange.exists() == (fault == "unknown_id") == (str(strange) in said)
    if fault == "error_file":
        assert set(reasons(made).values()) == {"request_refused"}
        assert "HTTP 400: " in details(made)[0]
        assert "scripted 400" in details(made)[0]
    if fault == "missing":
        assert "4 requests once ended without a complete answer" in said
    if fault == "unknown_id":
        assert json.loads(strange.read_text())["custom_id"] == "unasked"


def test_f22_a_batch_that_fails_stops_the_run_with_the_providers_words(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_fault="failed", batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        said = ask(made, prompts(5), "--batch", code=69)
        assert "token_limit_exceeded: Enqueued token limit reached for ledger-teacher." in said
        assert outcomes(made) == {"not_sent": 5}
        assert not teacher.billed()
        ask(made, prompts(5), "--batch")
        assert once(teacher, 5)


def test_f22_a_batch_that_finds_the_queue_full_waits_for_the_others(tmp_path: Path) -> None:
    """The first of two fails, for there is no more room, while the second is open."""
    with ledger_teacher(tmp_path, batch_fault="failed", batch_delay=1.0) as teacher:
        made = project(tmp_path, teacher.base_url, collection={"batch_requests": 6})
        assert "has to wait for the others" in ask(made, prompts(12), "--batch")
        assert once(teacher, 12)
        assert len(teacher.batches()) == 3
    assert outcomes(made) == {"answered": 12, "not_sent": 6}


def test_f22_what_batches_never_answer_is_given_up_after_max_attempts(tmp_path: Path) -> None:
    """The first line of each file is missing, and here it is always the same request's."""
    with ledger_teacher(tmp_path, batch_fault="missing", batch_delay=0.05, always=True) as teacher:
        made = project(tmp_path, teacher.base_url, collection={"max_attempts": 2})
        ask(made, prompts(3), "--batch")
        assert len(teacher.batches()) == 2
        assert reasons(made) == {"s0000": "provider_failed"}
        assert "has no result for it" in details(made)[0]
        ask(made, prompts(3), "--batch", "--retry-failed")
        assert len(teacher.batches()) == 4
        assert once(teacher, 2)


def test_f22_what_was_refused_is_asked_once_more_on_request(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_fault="error_file", batch_delay=0.05, always=True) as teacher:
        made = project(tmp_path, teacher.base_url)
        for batches, flags in ((1, ()), (2, ("--retry-failed",))):
            ask(made, prompts(2), "--batch", *flags)
            assert len(teacher.batches()) == batches
            assert reasons(made) == {"s0000": "request_refused"}
        assert once(teacher, 1)


def test_f22_what_may_be_billed_is_held_if_that_is_wished(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_fault="missing", batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url, collection={"on_uncertain": "hold"})
        ask(made, prompts(6), "--batch")
        assert len(teacher.batches()) == 1
    assert reasons(made) == {"s0000": "held", "s0003": "held"}


def test_a_request_that_no_batch_ever_begins_is_not_tried_forever(tmp_path: Path) -> None:
    config = project(tmp_path, "http://127.0.0.1:9/v1").load()
    made = Collector("teacher", config, "vllm", "m", lambda _: iter(()), lambda _: [], 0)
    request, never = prompt_request("s", {}), Attempt("not_sent", None, "batch_expired")
    most = config.collection.max_attempts
    assert made.settled_reason(request, RequestState(1, [never] * most, new_attempts=most)) == "asked"
    assert made.settled_reason(request, RequestState(1, [never] * most, new_attempts=0)) is None
    assert made.settled_reason(request, RequestState(1, under_way=True)) == "under_way"


# ---- F23: a death at any moment


@pytest.mark.parametrize(
    "failpoint",
    ["replace:1", "replace:3", "after_batch_intent:1", "after_upload:1", "after_create:1",
     "poll:1", "poll:2", "replace:6", "batch_lines:1", "batch_lines:2"],
)  # fmt: skip
def test_f23_after_a_death_a_batch_is_found_again_and_not_created_twice(tmp_path: Path, failpoint: str) -> None:
    count = 300 if failpoint.startswith("batch_lines") else 5  # more than are stored at a time
    with ledger_teacher(tmp_path, batch_delay=1.2 if failpoint == "poll:2" else 0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        ask(made, prompts(count), "--batch", failpoint=failpoint, code=-9)
        ask(made, prompts(count), "--batch")
        assert once(teacher, count)
        assert len(teacher.batches()) == 1
        ask(made, prompts(count), "--batch")
        assert once(teacher, count)
    assert len(texts(made)) == count
    assert outcomes(made).get("uncertain") is None
    (row,) = select(made, "SELECT count(*), sum(cost_usd) FROM usage")
    assert row == (count, pytest.approx(0.03 * count))
    assert not list((made.path("journal") / "batches").iterdir())


@pytest.mark.parametrize("failpoint", ["replace:1:ENOSPC", "commit:1:ENOSPC", "commit:4:EIO", "replace:6:ENOSPC"])
def test_f05_a_full_disk_stops_the_run_and_the_next_one_finds_the_batch_again(tmp_path: Path, failpoint: str) -> None:
    with ledger_teacher(tmp_path, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        said = ask(made, prompts(5), "--batch", failpoint=failpoint, code=74)
        assert "run the same command again" in said
        ask(made, prompts(5), "--batch")
        assert once(teacher, 5)
        assert len(teacher.batches()) == 1
    assert len(answers(made)) == 5


@pytest.mark.slow
def test_f23_a_death_at_any_commit_creates_no_batch_twice_and_bills_nothing_twice(tmp_path: Path) -> None:
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        with ledger_teacher(folder, batch_delay=0.05) as teacher:
            made = project(folder, teacher.base_url)
            put(made, prompts(4))
            run = Run(made, "--batch", failpoint=f"committed:{n}")
            run.end(code=None)
            ask(made, prompts(4), "--batch")
            assert once(teacher, 4), n
            assert len(teacher.batches()) == 1, n
        assert len(texts(made)) == 4
        assert select(made, "SELECT count(*) FROM usage") == [(4,)]
        if run.process.exitcode == 0:
            assert n > 5
            return


FILES, CREATE, LOOK, CONTENT = (
    "POST /v1/files", "POST /v1/batches", "GET /v1/batches/*", "GET /v1/files/*"
)  # fmt: skip


@pytest.mark.parametrize(
    "faults",
    [
        {FILES: "reset_after", CREATE: "reset_after", LOOK: "reset_before", CONTENT: "reset_mid"},
        {FILES: "500", CREATE: "html", LOOK: "429", CONTENT: "cut_chunked"},
        {FILES: "429", CREATE: "500", LOOK: "empty", CONTENT: "503"},
    ],
)
def test_f23_a_call_whose_answer_is_lost_is_repeated_and_a_batch_is_looked_for_first(
    tmp_path: Path, faults: dict[str, str]
) -> None:
    with ledger_teacher(tmp_path, api_faults=faults, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        ask(made, prompts(4), "--batch")
        assert once(teacher, 4)
        assert len(teacher.batches()) == 1
        assert len([s for s in teacher.sends(None) if s["fault"] != "none"]) >= 4
        searches = [s for s in teacher.sends("/v1/batches") if s["method"] == "GET"]
        assert len(searches) == 1  # for the batch that was perhaps created
    assert outcomes(made) == {"answered": 4}


def test_f23_a_lost_batch_is_looked_for_on_every_page(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        ask(made, prompts(2), "--batch", failpoint="after_create:1", code=-9)
        file = call(teacher, "GET", f"/batches/{teacher.batches()[0]}")["input_file_id"]
        for n in range(150):
            create(teacher, file, {"nexa_batch": "teacher-1", "nexa_journal": f"another {n}"})
        ask(made, prompts(2), "--batch")
        assert len(teacher.batches()) == 151
        assert len([s for s in teacher.sends("/v1/batches") if s["method"] == "GET"]) == 2


def test_a_provider_that_is_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    faults = {LOOK: "503"}
    with ledger_teacher(tmp_path, api_faults=faults, times=2, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url, collection={"max_attempts": 1})
        ask(made, prompts(2), "--batch")
        assert once(teacher, 2)


# ---- stopping, and what others do to a batch meanwhile


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_f04_a_stop_leaves_the_batch_running_and_the_next_run_collects_it(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    with ledger_teacher(tmp_path, batch_delay=3) as teacher:
        made = project(tmp_path, teacher.base_url)
        run = start(made, 6)
        wait_for(lambda: looked(teacher))
        run.send(sent)
        said = run.end(code)
        assert f"({teacher.batches()[0]})" in said
        assert "continues at the provider" in said
        said = ask(made, prompts(8), "--estimate")
        assert "2 requests to send" in said
        assert "6 not sent: in a batch at the provider" in said
        said = ask(made, prompts(8))  # not even the flag is needed; the new rows go out singly
        assert "of an earlier run" in said
        assert once(teacher, 8)
        assert len(teacher.batches()) == 1
        assert len(teacher.sends()) == 2
    assert len(answers(made)) == 8


def test_a_batch_that_somebody_cancels_stops_the_run_and_keeps_what_was_answered(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_fault="stuck", batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        run = start(made, 6)
        wait_for(lambda: teacher.batches() and len(teacher.billed()) == 3)
        call(teacher, "POST", f"/batches/{teacher.batches()[0]}/cancel")
        assert "was cancelled at the provider" in run.end(69)
        assert outcomes(made) == {"answered": 3, "not_sent": 3}
        ask(made, prompts(6), "--batch")
        assert once(teacher, 6)


def test_a_batch_that_the_provider_has_lost_is_asked_again_only_on_request(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_delay=30) as teacher:
        made = project(tmp_path, teacher.base_url)
        run = start(made, 3)
        wait_for(lambda: looked(teacher))
        run.kill()
        port = urlsplit(teacher.base_url).port or 0
    with ledger_teacher(tmp_path / "new", port=port, batch_delay=0.05) as teacher:
        shown = ask(made, prompts(3), "--batch", code=69)
        assert "--retry-failed sends its requests again" in shown
        said = ask(made, prompts(3), "--batch", "--retry-failed")
        assert "3 requests once ended without a complete answer" in said
        assert once(teacher, 3)
    assert outcomes(made) == {"uncertain": 3, "answered": 3}


def test_an_open_batch_of_another_provider_is_named_and_nothing_is_sent(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_delay=2) as teacher:
        made = project(tmp_path, teacher.base_url)
        run = start(made, 3)
        wait_for(lambda: looked(teacher))
        run.kill()
        before = len(teacher.sends(None))
        flags = ("--provider", "ollama", "--base-url", teacher.base_url)
        assert "run once with --provider vllm" in ask(made, prompts(3), *flags, code=65)
        assert len(teacher.sends(None)) == before


# ---- providers that refuse


def test_f14_a_refusal_stops_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    faults = {FILES: "401", CREATE: "403", LOOK: "401", CONTENT: "403"}
    with ledger_teacher(tmp_path, api_faults=faults, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        for call, fault in faults.items():
            said = ask(made, prompts(4), "--batch", code=69)
            assert f"refuses with HTTP {fault}: " in said
            assert f"scripted {fault}" in said
            assert f"({call.replace('/v1', '').rstrip('*')}" in said
        ask(made, prompts(4), "--batch")
        assert once(teacher, 4)
        assert len(teacher.batches()) == 1


@pytest.mark.parametrize("call", ["* /v1/files", "* /v1/batches"])
def test_a_provider_without_batches_says_so_and_can_be_asked_singly(tmp_path: Path, call: str) -> None:
    with ledger_teacher(tmp_path, api_faults={call: "404"}, always=True) as teacher:
        made = project(tmp_path, teacher.base_url)
        assert "has no batch mode: " in ask(made, prompts(4), "--batch", code=69)
        ask(made, prompts(4))
        assert once(teacher, 4)


def test_batches_are_refused_before_any_request_where_the_settings_say_there_are_none(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        said = ask(made, prompts(2), "--batch", code=65)
        assert "providers.vllm.batch_discount is null" in said
        assert not teacher.sends(None)


def test_a_dead_provider_ends_the_run(tmp_path: Path) -> None:
    made = project(tmp_path, "http://127.0.0.1:9/v1", collection={"max_attempts": 2})
    assert "POST /files failed 2 times" in ask(made, prompts(2), "--batch", code=69)


# ---- money and secrets


def test_a_budget_holds_back_what_does_not_fit_and_goes_on_when_raised(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url, budget={"max_requests": 7})
        said = ask(made, prompts(20), "--batch", code=77)
        assert "budget.max_requests is 7" in said
        assert once(teacher, 7)
        made.change(budget={"max_requests": 20})
        ask(made, prompts(20), "--batch")
        assert once(teacher, 20)
        assert len(teacher.batches()) == 2


def test_a_budget_in_dollars_counts_a_batch_as_the_most_it_can_cost_until_it_has_ended(tmp_path: Path) -> None:
    """At most $0.13 are reserved for an answer that costs $0.03."""
    with ledger_teacher(tmp_path, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url, budget={"max_usd": 0.6})
        ask(made, prompts(40), "--batch", code=77)
        sizes = [n for (n,) in select(made, "SELECT requests FROM batches ORDER BY id")]
        assert sizes[0] in (3, 4)
        assert sizes == sorted(sizes, reverse=True)
        assert sum(sizes) == sum(teacher.billed().values())
        assert 0.45 < sum(sizes) * 0.03 <= 0.6


def test_an_open_batch_of_an_earlier_run_stays_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_PROGRESS_FILE", str(tmp_path / "progress.json"))
    with ledger_teacher(tmp_path, batch_delay=2) as teacher:
        made = project(tmp_path, teacher.base_url, budget={"max_requests": 6})
        run = start(made, 6)
        wait_for(lambda: looked(teacher))
        run.kill()
        said = ask(made, prompts(8), "--batch", code=77)
        assert "could bring it to 7" in said
        assert json.loads((tmp_path / "progress.json").read_text())["note"] == "$0.1800"
        assert once(teacher, 6)
        made.change(budget={"max_requests": 8})
        ask(made, prompts(8), "--batch")
        assert once(teacher, 8)
        assert len(teacher.batches()) == 2


def test_what_is_under_way_is_reserved_and_not_spent() -> None:
    tally = BudgetTracker(Budget(max_usd=10, max_requests=None, max_tokens=None, target_samples=1),
                  Usage(6, 600, 8.0))  # fmt: skip
    tally.reserve_under_way(Usage(2, 200, 4.0))
    assert (tally.requests, tally.tokens, tally.usd) == (4, 400, 4.0)
    assert not tally.has_no_reservations
    assert tally.exceeded_limit(100, 2.5)
    for _ in range(2):
        tally.release_reservation(100, 2.0, billed=(50, 1.0))
    assert (tally.requests, tally.tokens, tally.usd) == (6, 500, 6.0)
    assert tally.has_no_reservations
    assert not tally.exceeded_limit(100, 2.5)


def test_f37_the_key_is_sent_with_every_call_and_found_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-canary-7f3a91"
    monkeypatch.setenv("CANARY_KEY", key)
    faults = {FILES: "500", LOOK: "401"}  # and the server repeats the key in its refusals
    with ledger_teacher(tmp_path, api_faults=faults, code=key, batch_delay=0.05) as teacher:
        made = project(tmp_path, teacher.base_url)
        said = ask(made, prompts(3), "--batch", "--api-key-env", "CANARY_KEY", code=69)
        said += ask(made, prompts(3), "--batch", "--api-key-env", "CANARY_KEY")
        assert all(send["authorization_present"] for send in teacher.sends(None))
        assert once(teacher, 3)
    found = [p for p in tmp_path.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]
    assert not found
    assert key not in said


# ---- lines


def test_f25_a_request_is_one_line_for_every_reader(tmp_path: Path) -> None:
    body = json.dumps({"text": f"{ODD}\ud800"}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    line = request_line("k", body).decode("ascii")
    assert line.splitlines() == [line[:-1]]
    assert json.loads(line)["body"] == {"text": f"{ODD}\ud800"}


@pytest.mark.parametrize(
    ("line", "outcome", "said"),
    [
        ({"response": {"status_code": 200, "body": "\ud800"}}, "answered", '"\\ud800"'),
        ({"response": {"status_code": 200}}, "answered", "null"),
        ({"response": {"status_code": 400, "body": {"error": 1}}}, "rejected", '{"error":1}'),
        ({"error": {"code": "batch_expired", "message": "x"}}, "not_sent", "batch_expired: x"),
        ({"error": {"code": "odd", "message": "\ud800\n!"}}, "rejected", "odd: ? !"),
        ({"response": None, "error": None}, "uncertain", "neither a response nor an error"),
    ],
)  # fmt: skip
def test_f22_a_line_says_how_its_request_ended(line: dict[str, Any], outcome: str, said: str) -> None:
    read = read_line(json.dumps({"custom_id": "k"} | line).encode())
    assert read
    assert (read.custom_id, read.outcome.outcome) == ("k", outcome)
    assert said in (read.outcome.error or (read.outcome.raw or b"").decode())


@pytest.mark.parametrize("line", [b"no json", b"[]", b"null", b'{"response": {}}', b'{"custom_id": 7}', b"[" * 10**5])
def test_f22_a_line_that_names_no_request_is_none(line: bytes) -> None:
    assert read_line(line) is None


def test_f24_a_line_without_an_end_is_not_read_into_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "endless.jsonl"
    with path.open("wb") as file:
        file.write(b'{"custom_id": "k"}\n\n')
        file.truncate(2 * MAX_LINE_BYTES)
    with path.open("rb") as file:
        read = list(read_lines(file))
    assert len(read) == 3
    assert max(map(len, read)) == MAX_LINE_BYTES


# ---- helpers that talk to the provider behind the collector's back


def start(made: Workspace, count: int) -> Run:
    put(made, prompts(count))
    return Run(made, "--batch")


def call(teacher: Teacher, method: str, path: str, body: object = None) -> dict[str, Any]:
    at = urlsplit(teacher.base_url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port)
    headers = {"Content-Type": "application/json"}
    connection.request(method, at.path + path, json.dumps(body) if body else None, headers)
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def create(teacher: Teacher, file: str, metadata: dict[str, str]) -> None:
    body = {
        "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h",
        "metadata": metadata,
    }  # fmt: skip
    call(teacher, "POST", "/batches", body)
