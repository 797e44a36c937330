"""The teacher stage against a real server on loopback. When it is disturbed: `test_collector_*`."""

import json
import os
import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.workspace import ROOT, workspace
from tests.teacher.faults import COLLECT, answers, ask, prompts, put, texts, wait_for
from tests.teacher.ledger_teacher import Teacher, ledger_teacher


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
        assert "sample_id s0000 occurs in rows 0 and 3 (0-based) with different user_prompt" in said
        assert not teacher.billed()


def test_f26_a_row_that_stands_twice_is_asked_and_written_once(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        said = ask(made, [*prompts(3), prompts(1)[0] | {"source_row": 9}])
        assert "1 duplicate sample_ids; each is requested once" in said
        assert sum(teacher.billed().values()) == 3
    assert [row["sample_id"] for row in answers(made)] == ["s0000", "s0001", "s0002"]


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "localhost"])
def test_an_address_without_a_scheme_is_named(tmp_path: Path, url: str) -> None:
    said = ask(workspace(tmp_path, url), prompts(1), code=69)
    assert f"base_url is {url!r}, expected http" in said


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


def test_a_dead_provider_stops_the_run(tmp_path: Path) -> None:
    made = workspace(tmp_path, collection={"max_attempts": 2})
    said = ask(made, prompts(5), code=69)
    assert "no connection to http://127.0.0.1:9/v1 in 2 attempts" in said


@pytest.mark.parametrize("fault", ["html", "empty", "no_choices"])
def test_f19_a_200_that_is_no_answer_is_kept_raw_and_not_asked_again(tmp_path: Path, fault: str) -> None:
    with ledger_teacher(tmp_path, fault=fault, always=True, share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(10))
        assert sum(teacher.billed().values()) == 10
    empty = [row for row in answers(made) if row["teacher_output"] is None]
    assert 0 < len(empty) < 10
    assert {row["finish_reason"] for row in empty} == {None}


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
        "from tests.teacher.ledger_teacher import ledger_teacher\n"
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
