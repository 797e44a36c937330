"""What each dialect sends, and that one file is all that a dialect is."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexa_distill import dialects
from nexa_distill.collection.answers.completions import parse_answer
from nexa_distill.collection.requests.body import build_messages
from nexa_distill.dialects import DIALECTS, Dialect, dialect_avoiding, dialect_of_host
from nexa_distill.dialects.table import GUIDE, replace_table
from nexa_distill.errors import InputError, ProviderUnusable
from nexa_distill.settings.pipeline import Provider
from tests.teacher.dialect_server import (
    Asked,
    Response,
    collect,
    completion,
    delta,
    refusal,
    serving,
    stream,
    teacher_workspace,
)
from tests.teacher.faults import answers, texts


def strict(dialect: Dialect) -> Callable[[Asked], Response]:
    """A server that answers only what is sent in the dialect, as the real ones do."""

    def answer(asked: Asked) -> Response:
        body, roles = asked.body, [message["role"] for message in asked.body["messages"]]
        key = asked.headers.get(dialect.key_header, "")
        wanted_roles = {"user": ["user"], "none": ["user"]}.get(dialect.system_role, [dialect.system_role, "user"])
        faults = {
            "key": key != f"{dialect.key_prefix}secret-key-1",
            "query": any(f"{n}={v}" not in asked.path for n, v in dialect.query.items()),
            "path": not asked.path.partition("?")[0].endswith("/v1/chat/completions"),
            "limit": {"max_tokens", "max_completion_tokens"} & set(body) != {dialect.limit_key},
            "temperature": not dialect.sends_temperature and "temperature" in body,
            "roles": roles != wanted_roles,
            "stream": bool(body.get("stream")) != dialect.stream,
        }
        if wrong := [name for name, holds in faults.items() if holds]:
            return refusal(400, f"not as {dialect.name} has it: {wrong}")
        if not dialect.stream:
            return completion()
        usage = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70}
        last = {"choices": [], "usage": usage}
        return stream(delta(content="One "), delta(content="answer."), delta("stop"), last)

    return answer


@pytest.mark.parametrize("name", DIALECTS)
def test_d15_d17_each_dialect_is_answered_by_a_server_that_takes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DIALECT_KEY", "secret-key-1")
    with serving(strict(DIALECTS[name])) as server:
        provider = {"dialect": name, "api_key_env": "DIALECT_KEY"}
        made = teacher_workspace(tmp_path, server.base_url, provider=provider)
        collect(made, 2)
    assert [row["finish_reason"] for row in answers(made)] == ["stop", "stop"]
    assert [row["cost_usd"] for row in answers(made)] == [pytest.approx(0.00025)] * 2


def test_a_dialect_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from nexa_distill.dialects.dialect import Dialect\n"
        "DIALECT = Dialect('mine', 'a server of mine', finish_reasons={'fin': 'stop'})\n"
    )
    monkeypatch.setattr(dialects, "__path__", [*dialects.__path__, str(tmp_path)])
    assert "mine" in {dialect.name for dialect in dialects._load_dialects()}


def test_the_guide_has_the_table_of_the_dialects_that_there_are() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert replace_table(guide) == guide, "run python -m nexa_distill.dialects.table --write"
    assert all(f"| `{name}` |" in guide for name in DIALECTS)


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("system", [("system", "Be brief."), ("user", "Why?")]),
        ("developer", [("developer", "Be brief."), ("user", "Why?")]),
        ("user", [("user", "Be brief.\n\nWhy?")]),
        ("none", [("user", "Why?")]),
    ],
)
def test_d15_where_the_system_prompt_is(role: Any, expected: list[tuple[str, str]]) -> None:
    found = build_messages("Be brief.", "Why?", role)
    assert [(message["role"], message["content"]) for message in found] == expected


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("mine.openai.azure.com", "azure"),
        ("api.openai.com", "openai"),
        ("generativelanguage.googleapis.com", "gemini"),
        ("models.inference.ai.azure.com", "groq"),
        ("gpu-7.local", "openai"),
        ("notopenrouter.ai.example", "openai"),
        ("notopenrouter.ai", "openai"),
    ],
)
def test_d17_the_host_names_the_dialect(host: str, name: str) -> None:
    assert dialect_of_host(host).name == name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Unsupported parameter: 'max_tokens' ... Use 'max_completion_tokens' instead.",
         "openai-reasoning"),
        ("Unsupported value: 'temperature' does not support 0.2 with this model.",
         "openai-reasoning"),
        ("System role not supported", "gemma"),
        ("Developer instruction is not enabled for models/gemma-3-27b-it", "gemma"),
        ("This model does not support system messages.", "gemma"),
        ("Conversation roles must alternate user/assistant/user/assistant/...", "gemma"),
        ("parameter.enable_thinking must be set to false for non-streaming calls", "stream-only"),
        ("This model only supports streaming output", "stream-only"),
        ("Access denied due to missing api-key header", "azure"),
        ("The engine is overloaded", None),
    ],
)  # fmt: skip
def test_d14_d15_a_refusal_names_the_dialect_that_would_avoid_it(words: str, name: str | None) -> None:
    assert dialect_avoiding(words, "openai") == name


def test_d15_the_first_refusals_stop_the_run_with_the_setting_to_change(tmp_path: Path) -> None:
    def answer(_: Asked) -> Response:
        return refusal(400, "System role not supported", code=400)

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, collection={"concurrency": 2})
        with pytest.raises(ProviderUnusable) as stopped:
            collect(made, 60)
        assert 8 <= len(server.asked) <= 10
    assert "refused the first 8 requests with HTTP 400" in str(stopped.value)
    assert "set providers.vllm.dialect: gemma" in str(stopped.value)


def test_refusals_of_single_prompts_stop_nothing(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Response:
        if asked.number < 20:
            return refusal(400, "The response was filtered by the content management policy")
        return completion()

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, collection={"concurrency": 1})
        summary = collect(made, 24)
    assert summary is not None
    assert (summary.answered, summary.unanswered_count) == (4, 20)


def test_d17_a_query_in_the_address_and_headers_of_ones_own_are_sent(tmp_path: Path) -> None:
    with serving(lambda _: completion()) as server:
        provider = {
            "base_url": f"{server.base_url}/deployments/gpt4o?api-version=2024-10-21",
            "query": {"tier": "b"}, "headers": {"X-Team": "tests"},
        }  # fmt: skip
        made = teacher_workspace(tmp_path, "", provider=provider)
        collect(made, 1)
        (asked,) = server.asked
    path, _, query = asked.path.partition("?")
    assert path == "/v1/deployments/gpt4o/chat/completions"
    assert set(query.split("&")) == {"api-version=2024-10-21", "tier=b"}
    assert asked.headers["X-Team"] == "tests"


def test_d17_a_password_or_key_of_the_address_is_sent_and_never_shown(tmp_path: Path) -> None:
    secret, words = "hunter2pass", "Titles like 2024-10-21 and Nexa Tests stay, hunter2pass goes."

    def answer(asked: Asked) -> Response:
        if asked.number == 0:
            return completion(words)
        return refusal(401, f"wrong: {secret}")

    with serving(answer) as server:
        provider = {
            "base_url": server.base_url.replace("//", f"//me:{secret}@") + "?sig=signature-1",
            "query": {"api-version": "2024-10-21"},
            "headers": {"X-Api-Key": "header-key-1", "X-Title": "Nexa Tests"},
        }
        made = teacher_workspace(tmp_path, "", provider=provider, collection={"concurrency": 1})
        with pytest.raises(ProviderUnusable) as stopped:
            collect(made, 2)
        asked = server.asked[0]
    login = base64.b64encode(f"me:{secret}".encode()).decode()
    assert asked.headers["Authorization"] == f"Basic {login}"
    assert asked.headers["X-Api-Key"] == "header-key-1"
    assert "sig=signature-1" in asked.path
    assert secret not in str(stopped.value)
    stored = b"".join(path.read_bytes() for path in made.path("journal").iterdir())
    assert b"2024-10-21 and Nexa Tests stay, *** goes" in stored
    assert secret.encode() not in stored


@pytest.mark.parametrize("address", ["http://:9/v1", "http://127.0.0.1:99999/v1"])
def test_d17_an_address_that_is_none_is_a_line(tmp_path: Path, address: str) -> None:
    made = teacher_workspace(tmp_path, address)
    with pytest.raises((ProviderUnusable, InputError), match="base_url is invalid"):
        collect(made, 1)


def test_d17_a_version_that_yaml_reads_as_a_date_is_text(tmp_path: Path) -> None:
    made = teacher_workspace(tmp_path, "http://127.0.0.1:9/v1")
    values = made.config.read_text().replace("base_url:", "query: {api-version: 2024-10-21, tier: 7}\n    base_url:")
    made.config.write_text(values)
    query = made.load().chosen_provider()[1].query
    assert query == {"api-version": "2024-10-21", "tier": "7"}


def test_an_unknown_dialect_names_the_nearest(tmp_path: Path) -> None:
    made = teacher_workspace(tmp_path, "http://127.0.0.1:9/v1", provider={"dialect": "gemni"})
    with pytest.raises(InputError, match='did you mean "gemini"'):
        made.load()


def test_the_plain_dialect_sends_what_it_always_sent(tmp_path: Path) -> None:
    """Another byte in the request is another key: every stored answer would be paid again."""
    made = teacher_workspace(tmp_path, "http://127.0.0.1:9/v1").load()
    provider = made.chosen_provider()[1]
    assert isinstance(provider, Provider)
    assert provider.dialect_changes == {}
    with serving(lambda _: completion()) as server:
        made_ = teacher_workspace(tmp_path, server.base_url)
        collect(made_, 1)
        (asked,) = server.asked
    assert list(asked.body) == sorted(["max_tokens", "messages", "model", "temperature"])


# ---- streams (14)


def test_d14_a_stream_is_put_together_with_its_reasoning_and_usage(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}

    def answer(asked: Asked) -> Response:
        assert asked.body["stream_options"] == {"include_usage": True}
        return stream(
            delta(role="assistant", content=""), delta(reasoning_content="Six by "),
            delta(reasoning_content="seven."), delta(content="It is "), delta(content="42 … ok."),
            delta("stop"), {"choices": [], "usage": usage},
        )  # fmt: skip

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, provider={"stream": True})
        collect(made, 2)
    row = answers(made)[0]
    assert (row["teacher_output"], row["reasoning_output"]) == ("It is 42 … ok.", "Six by seven.")
    assert (row["finish_reason"], row["completion_tokens"]) == ("stop", 9)


@pytest.mark.parametrize(
    ("chunks", "done", "finish"),
    [
        ([delta(content="Yes."), delta("length")], False, "length"),  # [DONE] is missing
        ([delta(content="Yes.")], True, "stop"),  # the reason is missing
        ([delta(content="Yes."), delta("eos_token")], True, "stop"),
    ],
)
def test_d14_extra_body_may_ask_for_the_stream_whose_end_may_be_bare(
    tmp_path: Path, chunks: list[Any], done: bool, finish: str
) -> None:
    with serving(lambda _: stream(*chunks, done=done)) as server:
        provider = {"extra_body": {"stream": True}}
        made = teacher_workspace(tmp_path, server.base_url, provider=provider)
        collect(made, 1)
    (row,) = answers(made)
    assert (row["teacher_output"], row["finish_reason"]) == ("Yes.", finish)


def test_d14_an_error_in_the_middle_of_a_stream_is_asked_again(tmp_path: Path) -> None:
    broken = {"error": {"code": 502, "message": "Provider disconnected"}}

    def answer(asked: Asked) -> Response:
        if asked.number == 0:
            return stream(delta(content="Ye"), broken, done=False)
        return stream(delta(content="Yes."), delta("stop"))

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, provider={"stream": True})
        collect(made, 1)
        assert len(server.asked) == 2
    assert texts(made) == {"s0000": "Yes."}


@pytest.mark.parametrize(
    "cut",
    [
        stream(delta(content="Ye"), {"error": "upstream closed"}, done=False),
        Response(body=b'event: error\ndata: {"message": "overloaded"}\n\n'),
        Response(body=b"event: error\ndata: overloaded\n\n"),
    ],
)
def test_d14_a_stream_that_ends_in_an_error_is_no_answer(tmp_path: Path, cut: Response) -> None:
    def answer(asked: Asked) -> Response:
        return stream(delta(content="Yes."), delta("stop")) if asked.number else cut

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, provider={"stream": True})
        summary = collect(made, 1)
        assert len(server.asked) == 2
    assert texts(made) == {"s0000": "Yes."}
    assert summary is not None
    assert len(summary.uncertain) == (b"Ye" in cut.body)  # what had begun may be billed


@pytest.mark.parametrize("form", ["\ufeffdata: {}\n\ndata: {}\n\n", "data: {}\ndata: {}\ndata: [DONE]\n"])
def test_d14_a_stream_with_a_mark_of_its_encoding_or_without_empty_lines(form: str) -> None:
    events = [json.dumps(delta(content="A")), json.dumps(delta("stop", content="B"))]
    raw = form.replace("{}", "%s") % tuple(events)
    found = parse_answer(raw.encode())
    assert (found.text, found.finish_reason, found.flag) == ("AB", "stop", None)


def test_d14_a_stream_in_lines_of_other_ends_and_comments() -> None:
    events = [json.dumps(delta(content="A")), json.dumps(delta("end_turn", content="B"))]
    raw = ": ping\r\n\r\n" + "".join(f"event: x\r\ndata:{event}\r\n\r\n" for event in events)
    found = parse_answer(raw.encode())
    assert (found.text, found.finish_reason, found.flag) == ("AB", "stop", None)
