"""The test server itself, seen by plain clients: what it bills and how it misbehaves."""

import email.utils
import http.client
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.teacher.ledger_teacher import ODD_TEXT, Teacher, answer_text, ledger_teacher
from tests.teacher.teacher_answers import ODD_BODIES, Json
from tests.teacher.teacher_batches import BATCH_FAULTS
from tests.teacher.teacher_faults import DELIVERIES, Bucket
from tests.teacher.teacher_script import FAULTS

PROMPT = "Question 0?"


def post(
    teacher: Teacher, prompt: str = PROMPT, seconds: float = 5.0, **more: Any
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body; raises as http.client does."""
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]} | more
    return call(teacher, "POST", "/v1/chat/completions", json.dumps(body).encode(), seconds)


def call(
    teacher: Teacher, method: str, path: str, body: bytes | None = None, seconds: float = 5.0
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(teacher.base_url).netloc, timeout=seconds)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def choice(raw: bytes) -> Json:
    found: Json = json.loads(raw)["choices"][0]
    return found


def billed(teacher: Teacher) -> int:
    return sum(teacher.billed().values())


def test_an_answer_is_a_function_of_the_prompt_and_is_billed_under_its_hash(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        first, again, other = post(teacher)[2], post(teacher)[2], post(teacher, "Another?")[2]
        assert first == again != other
        assert choice(first)["message"]["content"] == answer_text(PROMPT)
        assert sorted(teacher.billed().values()) == [1, 2]
        sends = teacher.sends()
    assert [send["key"] for send in sends[:2]] == [sends[0]["key"]] * 2
    assert set(teacher.billed()) == {send["key"] for send in sends}
    assert {(send["status"], send["authorization_present"]) for send in sends} == {(200, False)}
    assert 0 <= sends[2]["monotonic"] - sends[0]["monotonic"] < 5
    assert time.time() - 30 < sends[0]["at"] < time.time()


def test_the_ledger_outlives_a_kill_and_the_next_server_writes_on(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="hang") as teacher:
        with pytest.raises(TimeoutError):
            post(teacher, seconds=0.4)
        teacher.process.kill()
        assert billed(teacher) == len(teacher.sends()) == 1
    with ledger_teacher(tmp_path) as teacher:
        post(teacher)
        assert list(teacher.billed().values()) == [2]
        assert [send["fault"] for send in teacher.sends()] == ["hang", "none"]


@pytest.mark.parametrize(
    ("fault", "ended", "bills", "status"),
    [
        ("reset_before", ConnectionResetError, 0, None),
        ("reset_after", ConnectionResetError, 1, None),
        ("reset_mid", ConnectionResetError, 1, 200),
        ("cut", http.client.IncompleteRead, 1, 200),
        ("cut_chunked", http.client.IncompleteRead, 1, 200),
        ("close", http.client.RemoteDisconnected, 1, None),
        ("hang", TimeoutError, 1, None),
    ],
)
def test_a_fault_of_the_connection_strikes_once(
    tmp_path: Path, fault: str, ended: type[Exception], bills: int, status: int | None
) -> None:
    with ledger_teacher(tmp_path, fault=fault) as teacher:
        with pytest.raises(ended) as raised:
            post(teacher, seconds=0.5)
        assert raised.type is ended
        assert billed(teacher) == bills
        assert choice(post(teacher)[2])["message"]["content"] == answer_text(PROMPT)
        assert [(s["fault"], s["status"]) for s in teacher.sends()] == [(fault, status), ("none", 200)]


@pytest.mark.parametrize(
    ("fault", "expected", "ended"),
    [
        ("cut", 19, http.client.IncompleteRead),
        ("cut_chunked", 300, http.client.IncompleteRead),
        ("reset_mid", 300, ConnectionResetError),
    ],
)
def test_what_was_sent_before_a_cut_arrives(tmp_path: Path, fault: str, expected: int, ended: type[Exception]) -> None:
    with ledger_teacher(tmp_path, fault=fault) as teacher:
        connection = http.client.HTTPConnection(urlsplit(teacher.base_url).netloc, timeout=5)
        body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        response = connection.getresponse()
        assert len(response.read(expected)) == expected
        with pytest.raises(ended):
            response.read()
        connection.close()


def test_with_every_request_reset_not_even_a_large_body_is_read(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="reset_before", always=True) as teacher:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            post(teacher, "long " * 4_000_000)
        assert [send["key"] for send in teacher.sends()] == [None]
        assert not teacher.billed()


def test_a_late_answer_is_billed_at_once(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="late") as teacher:
        with pytest.raises(TimeoutError):
            post(teacher, seconds=0.4)
        assert billed(teacher) == 1
    with ledger_teacher(tmp_path / "patient", fault="late:0.3") as teacher:
        start = time.monotonic()
        assert post(teacher)[0] == 200
        assert time.monotonic() - start >= 0.3


def test_a_dripped_answer_is_right_in_the_end(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="drip:0") as teacher:
        assert choice(post(teacher)[2])["message"]["content"] == answer_text(PROMPT)
    with ledger_teacher(tmp_path / "slow", fault="drip") as teacher, pytest.raises(TimeoutError):
        post(teacher, seconds=0.8)  # the next byte comes after one second


def test_a_large_answer_is_a_hundred_megabytes(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="large") as teacher:
        raw = post(teacher)[2]
    assert len(choice(raw)["message"]["content"]) == 100 * 2**20


def test_a_gzip_bomb_inflates_a_thousandfold(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault=["gzip_bomb:16"]) as teacher:
        _, headers, raw = post(teacher)
        assert headers["Content-Encoding"] == "gzip"
        assert choice(zlib.decompress(raw, 31))["message"]["content"] == "a" * (16 * 2**20)
    with ledger_teacher(tmp_path / "full", fault="gzip_bomb") as teacher:
        raw = post(teacher, seconds=20)[2]
    assert 2**20 <= len(raw) < 1.2 * 2**20
    assert 2**30 < int.from_bytes(raw[-4:], "little") < 2**30 + 200


@pytest.mark.parametrize(("fault", "times"), [("sse", 1), ("sse:twice", 2)])
def test_a_stream_ends_without_an_end(tmp_path: Path, fault: str, times: int) -> None:
    with ledger_teacher(tmp_path, fault=fault) as teacher:
        _, headers, raw = post(teacher, stream=True)
    events = [json.loads(line[6:]) for line in raw.decode().split("\n\n") if line]
    words = [event["choices"][0]["delta"]["content"] for event in events]
    assert headers["Content-Type"].startswith("text/event-stream")
    assert "".join(words[::times]).strip() in answer_text(PROMPT)
    assert len(words) == 20 * times
    assert {event["choices"][0]["finish_reason"] for event in events} == {None}


Check = Callable[[bytes, str], object]


def _message(check: Callable[[Json, str], object], finish: str = "stop") -> Check:
    def of_choice(raw: bytes, text: str) -> object:
        return check(choice(raw)["message"], text) and choice(raw)["finish_reason"] == finish

    return of_choice


ODD: dict[str, Check] = {
    "html": lambda raw, _: raw.startswith(b"<html>"),
    "empty": lambda raw, _: raw == b"",
    "no_object": lambda raw, _: raw == b"{}",
    "empty_choices": lambda raw, _: json.loads(raw)["choices"] == [],
    "no_choices": lambda raw, _: json.loads(raw)["choices"] is None,
    "error_object": lambda raw, _: set(json.loads(raw)) == {"error"},
    "no_usage": lambda raw, _: "usage" not in json.loads(raw) and choice(raw),
    "nan": lambda raw, _: b'"total_tokens": NaN' in raw,
    "parts": _message(lambda said, text: said["content"] == [{"type": "text", "text": text}]),
    "length": _message(lambda said, text: said["content"] == text[: len(text) // 2], "length"),
    "content_filter": _message(lambda said, _: said["content"] == "", "content_filter"),
    "refusal": _message(lambda said, _: said["content"] is None and said["refusal"]),
    "reasoning": _message(lambda said, _: said["content"] is None and said["reasoning_content"]),
    "thinking": _message(lambda said, text: said["content"] == text and said["reasoning_content"]),
    "tool_calls": _message(lambda said, _: json.loads(said["tool_calls"][0]["function"]["arguments"]), "tool_calls"),
    "odd_text": _message(lambda said, text: said["content"] == ODD_TEXT + text + ODD_TEXT),
    "other_model": lambda raw, _: (
        (json.loads(raw)["model"], json.loads(raw)["system_fingerprint"]) == ("another", "fp_2")
    ),
}


@pytest.fixture(scope="module")
def odd_answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, str]]:
    """Fault -> body and what it would have said: prompts are asked until each fault was met."""
    found: dict[str, tuple[bytes, str]] = {}
    with ledger_teacher(tmp_path_factory.mktemp("odd"), fault=list(ODD_BODIES)) as teacher:
        for n in range(300):
            status, _, raw = post(teacher, f"Question {n}?")
            found[teacher.sends()[-1]["fault"]] = raw, answer_text(f"Question {n}?")
            assert (status, billed(teacher)) == (200, n + 1)
            if len(found) == len(ODD_BODIES):
                break
        assert choice(post(teacher)[2])["message"]["content"] == answer_text(PROMPT)
    return found


@pytest.mark.parametrize("fault", ODD_BODIES)
def test_an_odd_body_is_a_billed_200(odd_answers: dict[str, tuple[bytes, str]], fault: str) -> None:
    raw, text = odd_answers[fault]
    assert ODD[fault](raw, text), raw


def test_odd_text_holds_a_surrogate_escape_and_raw_separators(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="odd_text") as teacher:
        raw = post(teacher)[2]
    assert b"\\ud800 \\u0000" in raw
    assert all(text.encode() in raw for text in ("\ufeff", "\u2028", "\U0001f9ea", "\u202e"))


def test_a_length_with_a_number_spares_requests_that_allow_more(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="length:200", always=True) as teacher:
        reasons = [choice(post(teacher, max_tokens=n)[2])["finish_reason"] for n in (200, 201)]
    assert reasons == ["length", "stop"]


def test_every_fault_is_covered_here() -> None:
    assert set(ODD) == set(ODD_BODIES)
    assert set(ODD) | set(DELIVERIES) | {"none", "status", "reset_before"} == FAULTS


@pytest.mark.parametrize(
    "wrong",
    [
        {"fault": "rest_after"}, {"fault": ["cut", "cute"]}, {"batch_fault": "lost"},
        {"api_faults": {"POST /v1/files": "statsu:500"}}, {"capabilities": ["model"]},
    ],
)  # fmt: skip
def test_a_name_that_is_not_known_is_refused(tmp_path: Path, wrong: Json) -> None:
    with pytest.raises(ValueError, match="it knows"), ledger_teacher(tmp_path, **wrong):
        pass


@pytest.mark.parametrize("after", ["0", "-5", "3600", "0.25", "garbage", None])
def test_a_429_carries_the_header_as_it_is_scripted(tmp_path: Path, after: str | None) -> None:
    script: Json = {"retry_after": after, "retry_after_ms": "250", "code": "insufficient_quota"}
    with ledger_teacher(tmp_path, fault="429", **script) as teacher:
        status, headers, raw = post(teacher)
        assert (status, headers["Retry-After"], headers["retry-after-ms"]) == (429, after, "250")
        assert json.loads(raw)["error"]["code"] == "insufficient_quota"
        assert not teacher.billed()
        (send,) = teacher.sends()
        assert (send["status"], send["fault"], send["retry_after"]) == (429, "status", after)


def test_a_date_to_retry_after_is_relative_to_now(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="status:503", retry_after="date:+2") as teacher:
        before = time.time()
        text = post(teacher)[1]["Retry-After"]
    assert text.endswith(" GMT")
    assert 2 <= email.utils.parsedate_to_datetime(text).timestamp() - before < 4


def test_a_share_of_the_requests_fails_so_often_and_as_listed(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault=["500", "502", "529"], share=0.5, times=2) as teacher:
        asked = [[post(teacher, f"Question {n}?")[0] for n in range(40)] for _ in range(3)]
    first, second, third = asked
    assert 10 < first.count(200) < 30
    assert {500, 502, 529, 200} == set(first)
    assert [a == 200 for a in first] == [a == 200 for a in second]
    assert first != second  # a repetition meets the next fault of the list
    assert set(third) == {200}


def test_waves_come_and_go(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="529", always=True, waves=0.5) as teacher:
        first = post(teacher)[0]
        time.sleep(0.55)
        assert (first, post(teacher)[0]) == (529, 200)


def test_the_limit_lets_through_what_it_allows_and_says_when_to_come_back(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, rate=5, burst=10) as teacher:
        got = [post(teacher, f"Question {n}?") for n in range(20)]
        statuses = [status for status, *_ in got]
        sends = teacher.sends()
        took = sends[-1]["monotonic"] - sends[0]["monotonic"]
        assert statuses[:10] == [200] * 10
        assert 10 <= statuses.count(200) <= 11 + 5 * took
        assert [send["status"] for send in sends] == statuses
        assert {send["retry_after"] for send in sends if send["fault"] == "rate"} == {"1"}
        assert billed(teacher) == statuses.count(200)
        time.sleep(0.25)
        assert post(teacher)[0] == 200


def test_half_the_rate_is_left_after_a_while() -> None:
    bucket = Bucket(rate=10, burst=10, halve_after=4)
    assert [bucket.earned(seconds) for seconds in (2, 4, 6)] == [20, 40, 50]
    taken = sum(bucket.take(step / 100) == 0 for step in range(801))
    assert taken == 10 + 40 + 20
    assert Bucket(rate=10, burst=10).earned(100) == 1000
    empty = Bucket(rate=0.5, burst=1)
    assert (empty.take(0), empty.take(0), empty.take(2)) == (0, 2, 0)


def test_another_model_answers_from_there_on(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="other_model", swap_after=2) as teacher:
        models = [json.loads(post(teacher, f"Question {n}?")[2])["model"] for n in range(4)]
    assert models == ["m", "m", "another", "another"]


def test_a_schema_logprobs_and_several_choices_are_served(tmp_path: Path) -> None:
    parts = {
        "title": {"type": "string"}, "year": {"type": "integer", "minimum": 1900},
        "score": {"type": "number", "maximum": 1}, "open": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}}, "kind": {"enum": ["a", "b"]},
    }  # fmt: skip
    schema = {"type": "object", "properties": parts, "required": list(parts)}
    wanted = {"type": "json_schema", "json_schema": {"name": "paper", "schema": schema}}
    with ledger_teacher(tmp_path, models=["big"]) as teacher:
        client = openai.OpenAI(base_url=teacher.base_url, api_key="k", max_retries=0)
        assert [model.id for model in client.models.list()] == ["ledger-teacher", "big"]
        made = json.loads(choice(post(teacher, response_format=wanted)[2])["message"]["content"])
        said = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": PROMPT}], n=3, logprobs=True,
            top_logprobs=2,
        )  # fmt: skip
        assert sorted(teacher.billed().values()) == [1, 3]
        assert teacher.sends()[-1]["authorization_present"]
    assert [type(value) for value in made.values()] == [str, int, float, bool, list, str]
    assert made["year"] >= 1900
    assert made["score"] <= 1
    assert {type(tag) for tag in made["tags"]} == {str}
    assert len({answer.message.content for answer in said.choices}) == 3
    for answer in said.choices:
        tokens = (answer.logprobs and answer.logprobs.content) or []
        assert "".join(token.token for token in tokens) == answer.message.content
        assert {len(token.top_logprobs) for token in tokens} == {2}
    assert said.usage
    assert said.usage.completion_tokens == 150


def test_a_capability_that_is_switched_off_is_refused_or_left_out(tmp_path: Path) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}}
    with ledger_teacher(tmp_path, capabilities=[]) as teacher:
        assert call(teacher, "GET", "/v1/models")[0] == 404
        status, _, raw = post(teacher, response_format=schema)
        assert (status, "json_schema" in raw.decode()) == (400, True)
        assert post(teacher, logprobs=True)[0] == 400
        assert "usage" not in json.loads(post(teacher)[2])
        assert billed(teacher) == 1


def client_of(teacher: Teacher) -> openai.OpenAI:
    return openai.OpenAI(base_url=teacher.base_url, api_key="k", max_retries=0)


def lines_of(count: int, **more: Any) -> bytes:
    lines = [
        {
            "custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": f"Question {n}?"}]},
        } | more
        for n in range(count)
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def submit(client: openai.OpenAI, content: bytes, **metadata: str) -> openai.types.Batch:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
        metadata=metadata,
    )  # fmt: skip


def wait(client: openai.OpenAI, batch: openai.types.Batch, *until: str) -> openai.types.Batch:
    deadline = time.monotonic() + 10
    while batch.status not in (until or ("completed", "expired", "failed", "cancelled")):
        assert time.monotonic() < deadline, batch
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
    return batch


def read(client: openai.OpenAI, file: str | None) -> list[Json]:
    return [json.loads(line) for line in client.files.content(file).text.splitlines()] if file else []


def ids(lines: list[Json]) -> list[str]:
    return [line["custom_id"] for line in lines]


def test_a_batch_is_answered_and_billed_like_its_requests(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_delay=0.3) as teacher:
        client = client_of(teacher)
        batch = submit(client, lines_of(5), run="7")
        assert batch.status == "validating"
        assert batch.output_file_id is None
        done = wait(client, batch)
        assert done.in_progress_at
        assert done.finalizing_at
        assert batch.created_at <= done.in_progress_at <= done.finalizing_at
        assert (done.status, done.metadata, done.error_file_id) == ("completed", {"run": "7"}, None)
        assert done.request_counts
        assert (done.request_counts.total, done.request_counts.completed) == (5, 5)
        assert teacher.batches() == [batch.id]
        assert sorted(teacher.billed().values()) == [1] * 5
        lines = read(client, done.output_file_id)
        assert teacher.sends() == []
        assert len([s for s in teacher.sends("/v1/files") if s["authorization_present"]]) == 1
    assert ids(lines) == [f"r{n}" for n in range(5)]
    assert set(lines[0]) == {"id", "custom_id", "response", "error"}
    assert (lines[0]["response"]["status_code"], lines[0]["error"]) == (200, None)
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"] == answer_text(PROMPT)


MISSING = ["r1", "r2", "r4", "r5"]


@pytest.mark.parametrize(
    ("fault", "status", "output", "errors", "bills"),
    [
        ("shuffled", "completed", ["r5", "r4", "r3", "r2", "r1", "r0"], [], 6),
        ("duplicated", "completed", ["r0", "r1", "r2", "r3", "r4", "r5", "r0", "r3"], [], 6),
        ("missing", "completed", MISSING, [], 4),
        ("unknown_id", "completed", ["r0", "r1", "r2", "r3", "r4", "r5", "unasked"], [], 6),
        ("half_expired", "expired", ["r0", "r1", "r2"], ["batch_expired"] * 3, 3),
        ("error_file", "completed", MISSING, [400, 500], 4),
        ("failed", "failed", [], [], 0),
    ],
)
def test_a_batch_goes_wrong_once(
    tmp_path: Path, fault: str, status: str, output: list[str], errors: list[Any], bills: int
) -> None:
    with ledger_teacher(tmp_path, batch_fault=fault, batch_delay=0.05) as teacher:
        client = client_of(teacher)
        done = wait(client, submit(client, lines_of(6)))
        assert (done.status, ids(read(client, done.output_file_id))) == (status, output)
        bad = read(client, done.error_file_id)
        told = [(b["error"] or {}).get("code") or b["response"]["status_code"] for b in bad]
        assert (told, billed(teacher)) == (errors, bills)
        if fault == "failed":
            assert done.errors
            assert [error.code for error in done.errors.data or []] == ["token_limit_exceeded"]
        again = wait(client, submit(client, lines_of(6)))
        assert ids(read(client, again.output_file_id)) == [f"r{n}" for n in range(6)]
        assert len(teacher.batches()) == 2


def test_a_stuck_batch_is_cancelled_and_hands_over_what_it_made(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, batch_fault="stuck", batch_delay=0.05) as teacher:
        client = client_of(teacher)
        batch = wait(client, submit(client, lines_of(4)), "in_progress")
        time.sleep(0.2)
        assert client.batches.retrieve(batch.id).status == "in_progress"
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = wait(client, batch)
        assert (done.status, ids(read(client, done.output_file_id))) == ("cancelled", ["r0", "r1"])
        assert billed(teacher) == 2
        with pytest.raises(openai.BadRequestError):
            client.batches.cancel(batch.id)


def test_a_batch_that_is_cancelled_before_it_began_bills_nothing(tmp_path: Path) -> None:
    # Validating takes a tenth: however late this process comes to cancel it, that is before.
    with ledger_teacher(tmp_path, batch_delay=600) as teacher:
        client = client_of(teacher)
        batch = client.batches.cancel(submit(client, lines_of(4)).id)
        done = wait(client, batch)
        assert (done.status, done.output_file_id, billed(teacher)) == ("cancelled", None, 0)


def test_every_batch_fault_is_covered_here() -> None:
    marks = test_a_batch_goes_wrong_once.pytestmark
    assert {"none", "stuck", *(case[0] for case in marks[0].args[1])} == BATCH_FAULTS


def test_batches_are_listed_newest_first_by_pages(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        client = client_of(teacher)
        made = [submit(client, lines_of(1), number=str(n)).id for n in range(5)]
        page = client.batches.list(limit=2)
        assert ([batch.id for batch in page.data], page.has_more) == (made[:2:-1], True)
        assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1] == (teacher.batches()[::-1])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no json\n", "invalid_json_line"),
        (lines_of(1) * 2, "duplicate_custom_id"),
        (lines_of(1, url="/v1/embeddings"), "invalid_url"),
    ],
)
def test_an_input_file_that_is_wrong_fails_the_batch(tmp_path: Path, content: bytes, code: str) -> None:
    with ledger_teacher(tmp_path, batch_delay=0.05) as teacher:
        client = client_of(teacher)
        done = wait(client, submit(client, content))
        assert done.status == "failed"
        assert done.errors
        assert [error.code for error in done.errors.data or []] == [code]
        assert not teacher.billed()


def test_an_answer_about_a_batch_can_be_lost_after_the_batch_was_made(tmp_path: Path) -> None:
    faults = {"POST /v1/batches": "reset_after", "GET /v1/batches/*": "status:500"}
    with ledger_teacher(tmp_path, api_faults=faults) as teacher:
        client = client_of(teacher)
        with pytest.raises(openai.APIConnectionError):
            submit(client, lines_of(1), run="7")
        (found,) = client.batches.list()
        assert (found.metadata, [found.id]) == ({"run": "7"}, teacher.batches())
        with pytest.raises(openai.InternalServerError):
            client.batches.retrieve(found.id)
        assert wait(client, found).status == "completed"
