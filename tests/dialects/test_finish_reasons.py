"""How an answer ended, in the words of other servers; and an answer that its reasoning cut."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_distill import filter_pairs, regenerate_bad, sample_gate
from nexa_distill.collection.answers.completions import parse_answer
from nexa_distill.dialects import normal_finish_reason
from tests.support.answers import GOOD
from tests.support.workspace import Workspace
from tests.teacher.dialect_server import Asked, Response, collect, completion, serving, teacher_workspace
from tests.teacher.faults import answers


@pytest.mark.parametrize(
    ("words", "normal"),
    [
        ("stop STOP eos_token end_turn stop_sequence COMPLETE eos FINISH_REASON_STOP eosFound "
         "completed EOS_TOKEN_ID stop_str finished <|im_end|>",
         "stop"),
        ("length max_tokens MAX_TOKENS model_length model_context_window_exceeded "
         "MAX_OUTPUT_TOKENS max_new_tokens TOKEN_LIMIT", "length"),
        ("content_filter SAFETY RECITATION PROHIBITED_CONTENT refusal ERROR_TOXIC sensitive",
         "content_filter"),
        ("tool_calls function_call tool_use TOOL_CALL", "tool_calls"),
        ("error network_error insufficient_system_resource abort", "error"),
    ],
)  # fmt: skip
def test_d10_words_of_other_servers(words: str, normal: str) -> None:
    assert {normal_finish_reason(word) for word in words.split()} == {normal}


def gated(made: Workspace) -> set[str]:
    """The reasons against the answers, after the rules and SampleGate."""
    filter_pairs.run(made.load())
    sample_gate.run(made.load())
    rejected = pq.read_table(made.path("rejections")).to_pylist()
    return {row["rejection_reason"] for row in rejected}


@pytest.mark.parametrize("word", ["eos_token", "STOP", "end_turn"])
def test_d10_a_whole_answer_passes_the_gates_whatever_the_word(tmp_path: Path, word: str) -> None:
    def answer(asked: Asked) -> Response:
        return completion(f"{GOOD} This is sample number {asked.number}.", word)

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url)
        collect(made, 3)
    assert [row["finish_reason"] for row in answers(made)] == ["stop"] * 3
    assert gated(made) == set()


def test_d10_an_unknown_word_is_said_before_any_repair_is_bought(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda _: completion(GOOD, "fin")) as server:
        made = teacher_workspace(tmp_path, server.base_url)
        collect(made, 3)
        line = "3 of 3 answers end with finish_reason 'fin', which no dialect knows"
        assert line in capsys.readouterr().out
        assert gated(made) == {"truncated"}
        capsys.readouterr()
        regenerate_bad.run(made.load(), dry_run=True)
        said = capsys.readouterr().out
        assert said.index(line) < said.index("requests to send")
        assert len(server.asked) == 3


# ---- 34: reasoning under a small max_tokens

THOUGHT = "Okay, let me think about this step by step. " * 30


def body(content: str | None, finish: str = "length", **fields: Any) -> bytes:
    message = {"role": "assistant", "content": content, **fields.pop("message", {})}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **fields}).encode()


HIDDEN = {"prompt_tokens": 9, "completion_tokens": 256,
          "completion_tokens_details": {"reasoning_tokens": 250}}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "flag"),
    [
        (body(None, message={"reasoning_content": THOUGHT}), "reasoning_cut"),
        (body("", message={"reasoning": THOUGHT}), "reasoning_cut"),
        (body(f"<think>{THOUGHT}"), "reasoning_cut"),
        (body("", "max_tokens", usage=HIDDEN), "reasoning_cut"),
        (body("The answer begins", message={"reasoning_content": THOUGHT}), "reasoning_cut"),
        (body(GOOD, message={"reasoning_content": "Briefly."}), "truncated"),
        (body(GOOD), "truncated"),
        (body(None, "stop", message={"reasoning_content": THOUGHT}), "no_text"),
        (body("Yes.", "stop", message={"reasoning_content": THOUGHT}), None),
    ],
)
def test_d34_an_answer_that_its_reasoning_cut_is_told_from_a_long_one(raw: bytes, flag: str | None) -> None:
    assert parse_answer(raw).flag == flag


def thinking(asked: Asked) -> Response:
    """Needs 900 tokens before it can answer."""
    limit = asked.body["max_tokens"]
    if limit < 900:
        return completion(None, "length", message={"reasoning_content": THOUGHT})
    return completion(f"{GOOD} Sample {asked.number}.", message={"reasoning_content": THOUGHT})


def test_d34_its_repair_asks_for_more_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(thinking) as server:
        made = teacher_workspace(tmp_path, server.base_url)
        collect(made, 3)
        assert "Raise collection.max_tokens" in capsys.readouterr().out
        assert gated(made) == {"reasoning_cut"}
        regenerate_bad.run(made.load())
        repairs = server.asked[3:]
        assert [asked.body["max_tokens"] for asked in repairs] == [4096] * 3
        assert "Think briefly" in repairs[0].body["messages"][-1]["content"]
        assert "words" not in repairs[0].body["messages"][-1]["content"].partition("Mind this")[2]
    rows = pq.read_table(made.path("regen_dataset")).to_pylist()
    assert [row["answer_flag"] for row in rows] == [None] * 3


def test_d34_no_repair_is_bought_with_the_same_limit(tmp_path: Path) -> None:
    with serving(thinking) as server:
        made = teacher_workspace(tmp_path, server.base_url, regeneration={"reasoning_max_tokens": None})
        collect(made, 3)
        gated(made)
        regenerate_bad.run(made.load())
        assert len(server.asked) == 3


def test_d34_a_limit_that_was_large_is_doubled(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Response:
        return completion(None, "length", message={"reasoning_content": THOUGHT})

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, collection={"max_tokens": 6000})
        collect(made, 2)
        gated(made)
        regenerate_bad.run(made.load())
        assert {asked.body["max_tokens"] for asked in server.asked} == {6000, 12000}
