"""The capability probe against real servers that can and cannot do things."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nexa_distill.collection.capabilities import CAPABILITIES
from nexa_distill.collection.capability_tests import check_model_listed
from nexa_distill.orchestration.planning import Request
from nexa_distill.pipeline import describe_plan
from tests.support.workspace import Workspace, workspace
from tests.teacher.faults import ask, collect, prompts, provide
from tests.teacher.ledger_teacher import Teacher, ledger_teacher
from tests.teacher.teacher_answers import CAPABILITIES as OF_THE_TEACHER

PROBE = "nexa_distill.probe"
QUESTIONS = 5


def probe(made: Workspace, *flags: str, code: int = 0) -> str:
    done = made.run(PROBE, *flags, code=code)
    return done.stdout + done.stderr


def cache(made: Workspace) -> Path:
    return made.path("journal") / "capabilities" / "vllm.json"


def found(made: Workspace) -> dict[str, bool | None]:
    stored = json.loads(cache(made).read_text())
    assert list(stored["found"]) == list(CAPABILITIES)
    return {name: finding["has"] for name, finding in stored["found"].items()}


def planned(made: Workspace) -> str:
    (line,) = (line for line in describe_plan(Request(made.config)) if "vllm" in line and "probe" in line)
    return line


def paths(teacher: Teacher) -> list[str]:
    return [send["path"] for send in teacher.sends(None)]


EVERYTHING = dict.fromkeys(CAPABILITIES, True) | {"reasoning": None}


def test_a_provider_is_asked_a_few_questions_once_and_again_only_on_request(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        assert planned(made).endswith("not probed: python -m nexa_distill.probe --provider vllm")
        said = probe(made)
        assert "5 questions of at most 256 answer tokens, unpriced" in said
        assert said.index("questions of at most") < said.index("keeps to a JSON schema")
        assert sorted(paths(teacher)) == ["/v1/chat/completions"] * QUESTIONS + ["/v1/models"]
        assert sum(teacher.billed().values()) == QUESTIONS + 1, "n = 2 is billed twice"
        assert found(made) == EVERYTHING
        stored = json.loads(cache(made).read_text())
        assert stored["model"] == "ledger-teacher"
        assert stored["base_url"] == teacher.base_url
        assert planned(made).startswith(
            "teacher: vllm ledger-teacher: json schema yes, logprobs yes, usage yes (probed 20"
        )
        before = cache(made).read_bytes()
        assert "keeps to a JSON schema                 yes" in probe(made)
        assert len(paths(teacher)) == QUESTIONS + 1
        assert cache(made).read_bytes() == before
        cache(made).unlink()
        probe(made)
        assert len(paths(teacher)) == QUESTIONS + 2, "only the list of models, which is free"
        probe(made, "--refresh")
        assert len(paths(teacher)) == 2 * QUESTIONS + 3
        cache(made).unlink()
        probe(made)
        assert len(paths(teacher)) == 2 * QUESTIONS + 4, "the newest answers are the ones that count"


def test_after_a_refresh_the_newest_answers_count(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        probe(made)
    with ledger_teacher(tmp_path, port=port_of(teacher), capabilities=["usage"]) as teacher:
        probe(made)
        assert found(made)["json_schema"] is True
        probe(made, "--refresh")
        assert found(made)["json_schema"] is False
        cache(made).unlink()
        probe(made)
        assert found(made)["json_schema"] is False


def port_of(teacher: Teacher) -> int:
    return int(teacher.base_url.split(":")[2].removesuffix("/v1"))


@pytest.mark.parametrize("lacking", OF_THE_TEACHER)
def test_what_a_provider_cannot_do_is_found(tmp_path: Path, lacking: str) -> None:
    able = [name for name in OF_THE_TEACHER if name != lacking]
    with ledger_teacher(tmp_path, capabilities=able) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        said = probe(made)
    assert found(made) == EVERYTHING | {lacking: None if lacking == "models" else False}
    evidence = {
        "models": "GET /models: HTTP 404: ", "json_schema": "json_schema is not supported",
        "logprobs": "logprobs is not supported", "usage": "the answer names no tokens",
    }  # fmt: skip
    assert evidence[lacking] in said


@pytest.mark.parametrize(
    ("fault", "different"),
    [
        ("thinking", {"reasoning": True}),
        ("reasoning", {"reasoning": True, "json_schema": False}),
        ("odd_text", {"json_schema": False}),
        ("length", {"json_schema": None}),
        ("refusal", {"json_schema": False}),
    ],
)
def test_answers_are_read_for_what_they_show(tmp_path: Path, fault: str, different: dict[str, bool | None]) -> None:
    with ledger_teacher(tmp_path, fault=fault, always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        probe(made)
    assert found(made) == EVERYTHING | different


@pytest.mark.parametrize(
    ("body", "has", "evidence"),
    [
        (b'{"data": [{"id": "a"}, {"id": "m"}]}', True, "one of 2"),
        (b'{"data": [{"id": "a"}]}', False, "not among 1: a"),
        (b'{"data": [{"name": "a"}]}', None, "GET /models: HTTP 200: {"),
        (b"<html>\xff\xed\xa0\x80", None, "GET /models: HTTP 200: <html>"),
        (b"[" * 100_000, None, "GET /models: HTTP 200: [[["),
    ],
)
def test_a_list_of_models_says_whether_the_model_is_in_it(body: bytes, has: bool | None, evidence: str) -> None:
    finding = check_model_listed((200, body), "m")
    assert finding.has is has
    assert finding.evidence.startswith(evidence)


def test_a_feature_that_fails_for_another_reason_is_not_known_and_asked_by_the_next_probe(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        port = port_of(teacher)
        made = workspace(tmp_path, teacher.base_url, budget={"max_requests": 1})
        probe(made, code=77)
    made.change(budget={"max_requests": None})
    with ledger_teacher(tmp_path, port=port, fault="status:500", always=True) as teacher:
        assert "HTTP 500: " in probe(made)
        unknown = dict.fromkeys(["json_schema", "logprobs", "seed", "n"])
        assert found(made) == EVERYTHING | unknown
        assert "json schema not known" in planned(made)
    cache(made).unlink()
    with ledger_teacher(tmp_path, port=port) as teacher:
        probe(made)
        assert found(made) == EVERYTHING
        assert sum(teacher.billed().values()) == QUESTIONS + 1, "none was answered twice"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("status:401", "refuses with HTTP 401"),
        ("status:404", "check base_url and model (ledger-teacher)"),
        ("status:400", "does not answer a plain question: HTTP 400: "),
        ("html", "does not answer a plain question: <html>busy</html>; check base_url"),
        ("status:500", "does not answer a plain question: HTTP 500"),
    ],
)
def test_a_provider_that_cannot_be_used_is_an_error_and_no_finding(
    tmp_path: Path, fault: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_KEY", "sk-canary-51c0ffee")
    with ledger_teacher(tmp_path, fault=fault, always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        assert expected in probe(made, "--api-key-env", "CANARY_KEY", code=69)
        assert not cache(made).exists()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"sk-canary-51c0ffee" in path.read_bytes()]


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    assert "is the server running?" in probe(workspace(tmp_path), code=69)


def test_findings_count_only_for_the_model_and_the_address_that_were_probed(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, models=["other"]) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        probe(made)
        made.change(collection={"teacher_model": "other"})
        assert "vllm other: not probed" in planned(made)
        probe(made)
        assert "vllm other: json schema yes" in planned(made)
        assert found(made)["models"] is True
        provide(made, base_url=teacher.base_url.replace("127.0.0.1", "localhost"))
        assert "vllm other: not probed" in planned(made)
        before = len(paths(teacher))
        probe(made)
        assert len(paths(teacher)) == before + QUESTIONS + 1, "another address is asked anew"
        before = len(paths(teacher))
        probe(made, "--model", "unlisted")
        assert found(made)["models"] is False
        assert len(paths(teacher)) == before + QUESTIONS + 1
        cache(made).write_text("{torn")
        assert "not probed" in planned(made)


def test_the_probe_counts_in_the_budget_of_all_stages(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, budget={"max_requests": 3})
        assert "budget.max_requests is 3" in probe(made, code=77)
        assert len(teacher.sends()) == 3
        made.change(budget={"max_requests": 4})
        probe(made, code=77)
        assert len(teacher.sends()) == 4
        made.change(budget={"max_requests": 7})
        probe(made)
        assert len(teacher.sends()) == QUESTIONS
        ask(made, prompts(5), code=77)
        assert len(teacher.sends()) == 7
        made.change(budget={"max_requests": None, "max_usd": 1.0})
        assert "no price of ledger-teacher" in probe(made, "--refresh", code=65)
        provide(made, prices={"ledger-teacher": {"prompt": 1.0, "completion": 1.0}})
        assert "256 answer tokens, at most $0.00" in probe(made, "--refresh")


def test_every_question_and_what_it_cost_stands_in_the_journal(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        provide(made, prices={"ledger-teacher": {"prompt": 1.0, "completion": 2.0}})
        probe(made)
    with closing(sqlite3.connect(made.path("journal") / "probe.sqlite")) as db:
        (usd,) = db.execute("SELECT sum(cost_usd) FROM usage").fetchone()
        sent = [json.loads(body) for (body,) in db.execute("SELECT body FROM requests")]
    assert usd == pytest.approx((5 * 100 * 1.0 + 6 * 50 * 2.0) / 1e6)
    assert {body["max_tokens"] for body in sent} == {256}
    assert sum("response_format" in body for body in sent) == 1


def test_the_model_of_regeneration_is_asked_with_its_own_options(tmp_path: Path) -> None:
    own = {"max_tokens": None, "temperature": None, "max_completion_tokens": 2048}
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        provide(made, regen_model="thinker", regen_extra_body=own)
        probe(made, "--model", "thinker")
    with closing(sqlite3.connect(made.path("journal") / "probe.sqlite")) as db:
        sent = [json.loads(body) for (body,) in db.execute("SELECT body FROM requests")]
    assert {body["max_completion_tokens"] for body in sent} == {256}
    assert not any("max_tokens" in body or "temperature" in body for body in sent)


@pytest.mark.parametrize("able", [True, False])
def test_schemas_for_a_model_that_does_not_keep_to_them_are_warned_of_before_spending(
    tmp_path: Path, able: bool
) -> None:
    capabilities: list[Any] = ["models", "logprobs", "usage", *["json_schema"] * able]
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "string"}}}')
    with ledger_teacher(tmp_path, capabilities=capabilities) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        made.change(collection={"response_schemas": {"json": str(schema)}})
        rows = prompts(4)
        rows[0]["template_name"] = "json"
        assert "did not keep to a JSON schema" not in ask(made, rows, "--estimate")
        probe(made)
        sends = len(teacher.sends())
        said = collect(made, "--estimate")
        warned = "teacher: warning: vllm ledger-teacher did not keep to a JSON schema when it was"
        assert (warned in said) is not able
        assert ("asks it to for json" in said) is not able
        assert len(teacher.sends()) == sends
        assert (warned in collect(made)) is not able
