"""What an answer's bytes are read as: odd bodies, any bytes at all, and bugs in the reading.

Faults F18 to F21, F25 and F31. "Paid" is what the teacher's own ledger says.
"""

import asyncio
import functools
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_distill import filter_pairs, regenerate_bad, sample_gate, to_sft
from nexa_distill.collection import client
from nexa_distill.collection.answers import completions
from nexa_distill.collection.answers.completions import Answer, output_row, parse_answer
from nexa_distill.collection.answers.extraction import Cleaner
from nexa_distill.contracts import ANSWER_FLAGS, OUTPUTS, TABLES
from nexa_distill.journal.journal import Journal, Outcome, PendingRequest, StoredAnswer
from nexa_distill.settings.pipeline import Price, load_config
from nexa_distill.storage.tables import read_table, table_writer
from nexa_distill.text.json_schemas import compile_schemas
from nexa_distill.text.reasoning import split_reasoning
from tests.support.answers import answer
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.faults import again_is_free, ask, collect, journal, prompts, provide, reasons, texts
from tests.teacher.faults import answers as rows_of
from tests.teacher.ledger_teacher import ODD_TEXT, Teacher, answer_text, ledger_teacher
from tests.teacher.teacher_answers import ODD_BODIES, completion

PRICE = {"ledger-teacher": {"prompt": 1.0, "completion": 2.0}}
# Fault -> the flag, and the reason for which the gates set the answer aside (None: it is kept).
ODD: dict[str, tuple[str | None, str | None]] = {
    **dict.fromkeys(
        ["html", "empty", "no_object", "empty_choices", "no_choices", "sse"], ("malformed", "malformed_response")
    ),
    **dict.fromkeys(["no_usage", "nan", "parts", "thinking", "odd_text"], (None, None)),
    "other_model": (None, None),
    "length": ("truncated", "truncated"),
    "content_filter": ("content_filter", "content_filter"),
    "refusal": ("refused", "refusal"),
    "reasoning": ("no_text", "empty_output"),
    "tool_calls": ("tool_calls", "empty_output"),
}


def faults_by_sample(made: Workspace, teacher: Teacher) -> dict[str, str]:
    struck = {send["key"]: send["fault"] for send in teacher.sends()}
    with journal(made) as db:
        requests = db.execute("SELECT sample_id, body FROM requests").fetchall()
    return {sample: struck[hashlib.sha256(body).hexdigest()] for sample, body in requests}


def gated(made: Workspace) -> dict[str, str]:
    """Sample -> the first reason against its answer, after the rules and SampleGate."""
    filter_pairs.run(made.load())
    sample_gate.run(made.load())
    rejected = pq.read_table(made.path("rejections")).to_pylist()
    return {row["sample_id"]: row["rejection_reason"] for row in rejected}


def test_every_odd_body_of_the_teacher_is_in_the_table_of_this_test() -> None:
    # An error inside a 200 is no answer: tests/dialects/test_dialect_errors.py.
    assert set(ODD) == {*ODD_BODIES, "sse"} - {"error_object"}


def test_f18_f19_f20_an_odd_answer_is_paid_once_kept_raw_and_flagged(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault=[*ODD, "sse:twice"], always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        provide(made, prices=PRICE)
        said = ask(made, prompts(160))
        again_is_free(made, teacher)
        assert set(teacher.billed().values()) == {1}
        fault_of = faults_by_sample(made, teacher)
    assert set(fault_of.values()) == set(ODD), "some fault has struck nobody; ask more prompts"
    rows = rows_of(made)
    assert len(rows) == 160
    for row in rows:
        fault = fault_of[row["sample_id"]]
        assert (fault, row["answer_flag"]) == (fault, ODD[fault][0])
        looks_right(row, fault)
    malformed = sum(ODD[fault][0] == "malformed" for fault in fault_of.values())
    assert f"{malformed} malformed" in said
    assert "the answers are not of one model" in said
    with journal(made) as db:
        sql = "SELECT r.sample_id, o.raw FROM requests r JOIN attempts a ON a.request_id = r.id "
        raw = dict(db.execute(sql + "JOIN outcomes o ON o.attempt_id = a.id"))
    kept = {fault: raw[sample] for sample, fault in fault_of.items()}
    assert kept["html"] == b"<html>busy</html>"
    assert kept["sse"].startswith(b"data: {")
    assert b"I cannot help with that." in kept["refusal"]
    assert rb"\ud800" in kept["odd_text"]
    against = gated(made)
    found = {fault_of[row["sample_id"]]: against.get(row["sample_id"]) for row in rows}
    assert found == {fault: reason for fault, (_, reason) in ODD.items()}


def looks_right(row: dict[str, Any], fault: str) -> None:
    whole = answer_text(row["user_prompt"])
    text = {
        "length": whole[: len(whole) // 2],
        "odd_text": f"{ODD_TEXT}{whole}{ODD_TEXT}".replace("\ud800", "\ufffd"),
        **dict.fromkeys(["no_usage", "nan", "parts", "thinking", "other_model"], whole),
    }
    assert row["teacher_output"] == text.get(fault)
    thought = {"reasoning": whole.upper(), "thinking": whole.upper()}
    assert row["reasoning_output"] == thought.get(fault)
    counted = fault not in {"no_usage", "nan", "html", "empty", "no_object", "sse"}
    assert row["completion_tokens"] == (50 if counted else None)
    assert row["cost_usd"] == (pytest.approx(0.0002) if counted else None)
    assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())
    other = fault == "other_model"
    assert row["model_id"] == ("another" if other else "ledger-teacher")


def test_f19_a_200_without_a_completion_is_asked_again_only_when_a_person_says_so(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault=["html", "no_choices"], share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(20))
        again_is_free(made, teacher)
        malformed = [row for row in rows_of(made) if row["answer_flag"] == "malformed"]
        assert 0 < len(malformed) < 20
        collect(made, "--retry-failed")
        assert sum(teacher.billed().values()) == 20 + len(malformed)
        assert all(row["answer_flag"] is None for row in rows_of(made))
        collect(made, "--retry-failed")
        assert sum(teacher.billed().values()) == 20 + len(malformed)


def test_f19_an_address_that_answers_200_to_everything_stops_the_run(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="html", always=True, delay=0.05) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        said = ask(made, prompts(200), code=69)
        assert "answered 200 without a chat completion 32 times" in said
        assert sum(teacher.billed().values()) <= 32 + 5 * 4
    with ledger_teacher(tmp_path / "right") as teacher:
        provide(made, base_url=teacher.base_url)
        collect(made, "--retry-failed")
    assert {row["answer_flag"] for row in rows_of(made)} == {None}


def test_f20_an_answer_that_was_cut_is_not_asked_again_but_a_longer_one_is_another_request(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="length:256", always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(10))
        short = texts(made)
        assert {row["answer_flag"] for row in rows_of(made)} == {"truncated"}
        again_is_free(made, teacher)
        collect(made, "--max-tokens", "512")
        assert {row["answer_flag"] for row in rows_of(made)} == {None}
        assert sum(teacher.billed().values()) == 20
        again_is_free(made, teacher, "--max-tokens", "512")
        collect(made)
        assert texts(made) == short
        assert sum(teacher.billed().values()) == 20


# ---- F21: another model


@pytest.mark.parametrize("script", [{"swap_after": 6}, {"fault": "other_model", "share": 0.5}])
def test_f21_a_change_of_the_model_is_recorded_and_said(tmp_path: Path, script: dict[str, Any]) -> None:
    with ledger_teacher(tmp_path, **script) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        said = ask(made, prompts(20))
        again_is_free(made, teacher)
    served = [(row["model_id"], row["system_fingerprint"]) for row in rows_of(made)]
    assert set(served) == {("ledger-teacher", "fp_1"), ("another", "fp_2")}
    assert "the answers are not of one model: " in said
    assert f"{served.count(('another', 'fp_2'))} by another (fp_2)" in said


def test_f21_a_change_of_the_model_stops_the_run_each_time_until_it_is_allowed(tmp_path: Path) -> None:
    careful = {"stop_on_model_change": True, "concurrency": 2}
    with ledger_teacher(tmp_path, swap_after=6, delay=0.1) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection=careful)
        said = ask(made, prompts(40), code=69)
        assert "the model changed during the run: ledger-teacher (fp_1), another (fp_2)" in said
        first = sum(teacher.billed().values())
        assert 7 <= first <= 6 + 4 * 2  # seen when on disk, when the next ones are on their way
        assert not made.path("collected_dataset").exists()
        collect(made, code=69)
        assert first < sum(teacher.billed().values()) <= first + 4 * 2
        made.change(collection={"stop_on_model_change": False})
        collect(made)
        assert set(teacher.billed().values()) == {1}
    assert len(rows_of(made)) == 40


# ---- F25, and any bytes whatever


def as_utf8(text: str) -> str:
    """What UTF-8 can hold of it: surrogates that belong together are one character."""
    pair = "[\ud800-\udbff][\udc00-\udfff]"
    joined = re.sub(pair, lambda m: m[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return re.sub("[\ud800-\udfff]", "\ufffd", joined)


def body(text: str, escaped: bool) -> bytes:
    said = completion({"model": "m", "messages": [{"content": "q"}]}, "k" * 16, ("usage",))
    said["choices"][0]["message"]["content"] = text
    return json.dumps(said, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


def stored(folder: Path, bodies: list[bytes]) -> list[StoredAnswer]:
    """Written to a journal, and read from it by another connection."""
    keys = [f"k{n}" for n in range(len(bodies))]

    async def write(ledger: Journal) -> None:
        attempts = await ledger.begin_attempts([PendingRequest(None, key, key, b"{}", 1, 0.0) for key in keys])
        for attempt, raw in zip(attempts, bodies, strict=True):
            ledger.record_outcome(attempt, Outcome("answered", 200, raw, None, 1.0), lambda _: None)
        await ledger.wait_for_disk()

    with Journal(folder / "j.sqlite", "run") as ledger:
        asyncio.run(write(ledger))
    with Journal(folder / "j.sqlite", "run") as ledger:
        found = ledger.newest_answers(keys)
    return [found[key] for key in keys]


ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)
CLUSTERS = st.sampled_from(
    ["\ud800", "\udfff", "\ud83d", "\ude00", "\x00", "\u2028", "\u2029", "\x85", "\ufeff", "\r\n",
     "\U0001f9ea", "\u202e\u05d0", "\x1c", "\ufffe", "\x7f", "a", " "]
)  # fmt: skip
# Tags are taken apart from the answer, as their own tests say; hypothesis finds them in the source.
ODD_TEXTS = st.one_of(ANY_TEXT, st.lists(CLUSTERS, max_size=12).map("".join)).filter(
    lambda text: split_reasoning(text) == (None, text or None)
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ODD_TEXTS, st.booleans()), min_size=1, max_size=60))
def test_f25_odd_text_survives_journal_parquet_and_jsonl(given_texts: list[tuple[str, bool]]) -> None:
    bodies = [body(text, escaped) for text, escaped in given_texts]
    provider = shipped_provider()
    with tempfile.TemporaryDirectory() as name:
        found = stored(Path(name), bodies)
        assert [one.raw for one in found] == bodies
        rows = [
            output_row(answer(n), 0, "k", "m", one, provider, compile_schemas({}), Cleaner({}, []))
            for n, one in enumerate(found)
        ]
        path = Path(name) / "a.parquet"
        with table_writer(path, OUTPUTS) as out:
            out.write(pa.Table.from_pylist(rows, schema=OUTPUTS))
        table = read_table(path, TABLES["collected_dataset"]).to_pylist()
    expected = [as_utf8(text) or None for text, _ in given_texts]
    assert [row["teacher_output"] for row in table] == expected
    for row in table:
        if row["teacher_output"]:
            line = to_sft.json_line(to_sft.build_record(row, None))
            assert len(line.splitlines()) == 1
            assert json.loads(line)["messages"][-1]["content"] == row["teacher_output"].strip()


def test_f25_odd_text_from_the_teacher_is_one_line_of_the_training_file(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="odd_text", always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(5))
    assert gated(made) == {}
    to_sft.run(made.load())
    lines = made.path("sft_jsonl").read_bytes().decode("utf-8").splitlines()
    said = {row["sample_id"]: row["teacher_output"] for row in rows_of(made)}
    assert len(lines) == 5
    for line in lines:
        record = json.loads(line)
        text = record["messages"][-1]["content"]
        assert text == said[record["sample_id"]].strip()
        assert all(char in text for char in "\x00\ufffd\u202e\U0001f9ea\u2028")


@functools.cache
def shipped_provider() -> Any:
    provider = load_config(ROOT / "configs/distill_config.yaml").providers["openai"]
    return provider.model_copy(update={"prices": {"m": Price(prompt=1.0, completion=2.0)}})


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | ODD_TEXTS
    | st.integers() | st.sampled_from([2**31, 2**63, 2**64, -1, 10**400])
    | st.sampled_from(["length", "content_filter", "tool_calls", "<think>", "a</think>b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@st.composite
def mutated(draw: Callable[..., Any]) -> bytes:
    """A chat completion with something in it replaced, removed or added; then its bytes damaged."""
    plain = completion({"model": "m", "messages": [{"content": "q"}]}, "k" * 16, ("usage",))
    odd = ODD_BODIES[draw(st.sampled_from(sorted(ODD_BODIES)))](plain)
    value = json.loads(json.dumps(odd)) if isinstance(odd, dict) else plain
    for _ in range(draw(st.integers(0, 3))):
        change(draw, value)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    raw = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-32"])), "surrogatepass")
    start, end = sorted([draw(st.integers(0, len(raw))), draw(st.integers(0, len(raw)))])
    damaged = [
        raw, raw, raw, raw[:end], raw[start:], b"\xef\xbb\xbf" + raw, raw[:start] + raw[end:],
        raw[:start] + draw(st.binary(max_size=8)) + raw[start:], b"[" * 100_000, b"",
    ]  # fmt: skip
    return bytes(draw(st.sampled_from(damaged)))


def change(draw: Callable[..., Any], value: Any) -> None:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = draw(st.sampled_from(keys))
    if isinstance(value[key], (dict, list)) and draw(st.integers(0, 3)):
        change(draw, value[key])
    elif draw(st.integers(0, 3)):
        value[key] = draw(JSON)
    else:
        del value[key]


RECURSIVE = {"hypothesis": {"anyOf": [{"type": "array", "items": {"$ref": "#"}},
                                      {"type": "number", "multipleOf": 0.01}]}}  # fmt: skip


@settings(max_examples=1000, deadline=None)
@given(st.one_of(mutated(), st.binary(max_size=60)))
def test_f19_whatever_the_bytes_are_they_become_a_row_of_the_table(raw: bytes) -> None:
    found = StoredAnswer(raw, 1.0, 0.0)
    for schemas in (compile_schemas({}), compile_schemas(RECURSIVE)):
        row = output_row(answer(), 0, "k", "m", found, shipped_provider(), schemas, Cleaner({}, []))
        table = pa.Table.from_pylist([row], schema=OUTPUTS)
        table.validate(full=True)
        assert row["answer_flag"] in {None, *ANSWER_FLAGS}
        assert row["teacher_output"] or row["answer_flag"], "no text, and nothing odd about it"
        assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())
        counts = [row[f"{name}_tokens"] for name in ("prompt", "completion", "total")]
        assert all(count is None or 0 <= count < 2**31 for count in counts)


@pytest.mark.parametrize(
    ("content", "reasoning", "text"),
    [
        ("<think>\nHm.\n</think>\n\nFour.", "Hm.", "Four."),
        ("Hm.</think>Four.", "Hm.", "Four."),
        ("<think>Hm, it was cut", "Hm, it was cut", None),
        ("<think></think>Four.", None, "Four."),
        ("Write <think> and </think> so.", None, "Write <think> and </think> so."),
        ("Use the <think> tag.", None, "Use the <think> tag."),
        ([{"type": "thinking", "text": "Hm."}, {"type": "text", "text": "Four."}], None, "Four."),
        ([{"text": "Four."}, 4, {"text": None}, {}], None, "Four."),
        ("", None, None),
        (4, None, None),
    ],
)  # fmt: skip
def test_f20_reasoning_never_stands_in_the_answer(content: object, reasoning: str | None, text: str | None) -> None:
    choice = {"message": {"content": content}, "finish_reason": "stop"}
    found = parse_answer(json.dumps({"choices": [choice]}).encode())
    assert (found.reasoning, found.text) == (reasoning, text)
    assert found.flag == (None if text else "no_text")


@pytest.mark.parametrize(
    ("message", "reasoning", "text"),
    [
        ({"content": "Four.", "reasoning_content": "Hm."}, "Hm.", "Four."),
        ({"content": "Four.", "reasoning": "Hm."}, "Hm.", "Four."),
        ({"content": "<think>Hm.</think>Four.", "reasoning": "Hm."}, "Hm.", "Four."),
        ({"content": "[THINK]So.[/THINK]Four.", "reasoning_content": "Hm."}, "Hm.\n\nSo.", "Four."),
        ({"content": None, "reasoning_content": "Hm."}, "Hm.", None),
    ],
)
def test_t06_the_reasoning_of_the_field_comes_before_that_in_tags(
    message: dict[str, str | None], reasoning: str, text: str | None
) -> None:
    found = parse_answer(json.dumps({"choices": [{"message": message}]}).encode())
    assert (found.reasoning, found.text) == (reasoning, text)


def test_f19_an_impossible_count_of_tokens_is_no_count() -> None:
    """Two answers of 2**62 tokens would overflow the sum of what was spent, for good."""
    for count in (2**62, 2**31, -5, True, 1.5, "7", None):
        usage = dict.fromkeys(["prompt_tokens", "completion_tokens", "total_tokens"], count)
        raw = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode()
        found = parse_answer(raw)
        assert (found.prompt_tokens, found.total_tokens) == (None, None)


# ---- F31: a bug in the reading


def bug(raw: bytes) -> Answer:
    """Fails on an answer in which a word stands, and repeats what UTF-8 cannot hold."""
    if b"fp_2" in raw:
        raise KeyError("scripted bug \ud800")
    return parse_answer(raw)


def bug_everywhere(_: bytes) -> Answer:
    raise ZeroDivisionError("scripted bug \ud800")


def with_bug(found: Callable[[bytes], Answer]) -> None:
    """In the stage's own process: as if the code were wrong."""
    for module in (completions, client):
        module.parse_answer = found  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [bug, bug_everywhere])
def test_f31_a_bug_in_reading_an_answer_costs_no_other_row_and_mending_it_no_request(
    tmp_path: Path, wrong: Callable[[bytes], Answer]
) -> None:
    careful = {"stop_on_model_change": False}
    with ledger_teacher(tmp_path, fault="other_model", share=0.4) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection=careful)
        provide(made, prices=PRICE)
        broken = functools.partial(with_bug, wrong)
        said = ask(made, prompts(20), before=broken)
        unread = reasons(made)
        assert 0 < len(unread) <= 20
        assert set(unread.values()) == {"unreadable_answer"}
        assert len(rows_of(made)) == 20 - len(unread)
        assert f"{len(unread)} stored answers could not be read: a bug" in said
        assert "--retry-failed" not in said
        (row, *_) = pq.read_table(made.path("unanswered")).to_pylist()
        assert row["detail"].startswith("Traceback")
        assert "scripted bug" in row["detail"]
        assert collect(made, before=broken).count("could not be read") == 1
        collect(made)
        assert sum(teacher.billed().values()) == 20
        assert len(texts(made)) == 20
        assert reasons(made) == {}
        assert all(row["cost_usd"] == pytest.approx(0.0002) for row in rows_of(made))
        again_is_free(made, teacher)
        ask(made, prompts(21))
    with journal(made) as db:
        assert db.execute("SELECT count(*), sum(total_tokens) FROM usage").fetchone() == (
            21, 21 * 150,
        )  # fmt: skip


def test_f31_the_same_holds_for_repairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger_teacher(tmp_path, fault="html", share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(12))
        rejected = gated(made).keys()
        with monkeypatch.context() as broken:
            broken.setattr(completions, "parse_answer", bug_everywhere)
            regenerate_bad.run(made.load())
        assert pq.read_table(made.path("regen_dataset")).num_rows == 0
        assert sum(teacher.billed().values()) == 12 + len(rejected)
        regenerate_bad.run(made.load())
        assert sum(teacher.billed().values()) == 12 + len(rejected)
    again = pq.read_table(made.path("regen_dataset"))
    assert set(again["sample_id"].to_pylist()) == set(rejected)


def test_what_a_repair_was_refused_is_asked_again_when_a_person_says_so(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault=["html", "status:400"], times=1) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(40))
        rejected = gated(made).keys()
        regenerate_bad.run(made.load())
        lost = set(rejected) - set(pq.read_table(made.path("regen_dataset"))["sample_id"].to_pylist())
        assert lost
        before = sum(teacher.billed().values())
        regenerate_bad.run(made.load())
        assert sum(teacher.billed().values()) == before
        regenerate_bad.run(made.load(), retry_failed=True)
    again = pq.read_table(made.path("regen_dataset"))
    assert set(again["sample_id"].to_pylist()) == set(rejected)
