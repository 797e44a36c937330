"""Errors in whatever form: inside a 200, a used-up quota, a busy minute, a server that loads."""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexa_distill.collection.requests import busy_notice, startup
from nexa_distill.collection.requests.response_body import hidden_error
from nexa_distill.collection.requests.retry_policy import is_out_of_quota
from nexa_distill.collection.requests.transport import pause_in_body
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal.journal import Outcome
from tests.teacher.dialect_server import Asked, Response, collect, completion, refusal, serving, teacher_workspace
from tests.teacher.faults import answers, reasons

# ---- 9: an error inside a 200


def inside(**fields: Any) -> Response:
    return Response(200, fields)


def in_choice(**choice: Any) -> Response:
    message = {"role": "assistant", "content": "We hypo"}
    return inside(model="mock-1", choices=[{"index": 0, "message": message, **choice}])


PASSING: dict[str, Response] = {
    "openrouter 429": inside(error={"code": 429, "message": "Provider returned error"}),
    "error as text": inside(error="upstream timed out"),
    "choice": in_choice(error={"code": 502, "message": "x"}, finish_reason="error"),
    "finish_reason": in_choice(finish_reason="network_error"),
    "resource": in_choice(finish_reason="insufficient_system_resource"),
    "minimax": inside(base_resp={"status_code": 1002, "status_msg": "rate limit"}, choices=None),
    "zhipu": inside(code=1302, msg="您的账户已达到速率限制"),
    "baidu": inside(error_code=18, error_msg="Open api qps request limit reached"),
    "gemini list": Response(200, [{"error": {"code": 503, "status": "UNAVAILABLE"}}]),
    "vllm": inside(object="error", message="engine died", code=500),
    "by words": inside(error={"message": "Too many requests, slow down", "type": "x"}),
    "cloudflare": inside(success=False, errors=[{"code": 10429, "message": "Too many requests"}]),
    "apigee": inside(fault={"faultstring": "Rate limit quota violation"}),
    "tencent": inside(Response={"Error": {"Code": "RequestLimitExceeded", "Message": "x"}}),
    "aws": inside(message="Too Many Requests"),
    "iflow": inside(choices=None, status="449", msg="You exceeded your current rate limit"),
    "status as text": inside(status="error", message="upstream overloaded"),
    "true": inside(error=True, message="model overloaded"),
}


@pytest.mark.parametrize("name", PASSING)
def test_d09_an_error_inside_a_200_that_passes_is_asked_again(tmp_path: Path, name: str) -> None:
    def answer(asked: Asked) -> Response:
        passing = PASSING[name]
        headers = {"Retry-After": "0"}
        return Response(200, passing.body, headers=headers) if asked.number == 0 else completion()

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url)
        collect(made, 1)
        assert len(server.asked) == 2
    assert [row["answer_flag"] for row in answers(made)] == [None]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"code": "invalid_api_key", "message": "no"}}, 401),
        ({"error": {"code": 402, "message": "Insufficient credits"}}, 402),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, 402),
        ({"code": 1113, "message": "您的账户已欠费"}, 402),
        ({"error": {"type": "not_found_error", "message": "model: x"}}, 404),
    ],
)
def test_d09_an_error_inside_a_200_that_does_not_pass_stops_the_run(tmp_path: Path, body: Any, status: int) -> None:
    with serving(lambda _: Response(200, body)) as server:
        made = teacher_workspace(tmp_path, server.base_url, collection={"concurrency": 2})
        with pytest.raises(ProviderUnusable, match=f"refuses with HTTP {status}"):
            collect(made, 30)
        assert len(server.asked) <= 4


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": 'say "error": 502'}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "error": None},
        {"choices": [{"message": {"content": "x"}}], "code": 200, "base_resp": {"status_code": 0}},
        {"choices": []},
        {},
        {"message": "pong"},
        {"status": "ok", "message": "pong"},
        {"header": {"code": 0, "message": "Success"}},
        {"message": {"role": "assistant", "content": "Too many requests"}, "done": True},
    ],
)
def test_d09_what_is_no_error(body: Any) -> None:
    assert hidden_error(json.dumps(body).encode()) is None


def test_d09_an_error_event_of_a_stream_has_the_status_of_its_code() -> None:
    raw = b'event: error\ndata: {"code": 404, "message": "no"}\n\n'
    error = hidden_error(raw)
    assert error is not None
    assert (error.status, error.is_billed) == (404, False)


@pytest.mark.parametrize("name", ["openrouter 502", "choice"])
def test_d09_both_forms_are_asked_again_by_retry_failed(tmp_path: Path, name: str) -> None:
    forms = PASSING | {"openrouter 502": inside(error={"code": 502, "message": "x"})}
    broken = [True]
    with serving(lambda _: forms[name] if broken[0] else completion()) as server:
        made = teacher_workspace(tmp_path, server.base_url, collection={"max_attempts": 1})
        with pytest.raises(ProviderUnusable, match="answered none of 3"):
            collect(made, 3)
        broken[0] = False
        collect(made, 3, retry_failed=True)
        assert len(server.asked) == 6
    assert reasons(made) == {}


def test_d09_an_error_behind_a_billed_part_may_be_billed(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    part = completion("We hypo", "error", usage=usage)
    with serving(lambda asked: completion() if asked.number else part) as server:
        made = teacher_workspace(tmp_path, server.base_url)
        summary = collect(made, 1)
    assert summary is not None
    assert len(summary.uncertain) == 1


# ---- 8: a quota is not a busy minute

QUOTA = [
    (429, {"code": 429, "message": "You exceeded your current quota", "status":
           "RESOURCE_EXHAUSTED", "details": [{"quotaId": "GenerateRequestsPerDayPerProject"}]}),
    (429, {"code": "insufficient_quota", "message": "check your plan and billing details"}),
    (429, {"message": "Rate limit reached on tokens per day (TPD): Limit 100000, Used 99000"}),
    (429, {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock"}),
    (429, {"message": "Rate limit of 150 per 86400s exceeded for UserByModelByDay"}),
    (429, {"message": "You are using a Trial key, which is limited to 1000 API calls / month"}),
    (429, {"type": "exceeded_current_quota_error", "message": "Your account is suspended"}),
    (400, {"code": "Arrearage", "message": "make sure your account is in good standing"}),
    (400, {"type": "invalid_request_error", "message": "Your credit balance is too low"}),
    (403, {"code": "AllocationQuota.FreeTierOnly", "message": "free tier exhausted"}),
    (429, {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}),
    (429, {"message": "Daily message limit of this key reached"}),
    (429, {"message": "Requests per 24 hours exceeded"}),
    (429, {"message": "You've hit your usage limit for this month"}),
    (429, {"message": "token quota exhausted, please purchase more"}),
    (429, {"message": "Budget has been exceeded! Current cost: 10.2, Max budget: 10.0"}),
    (400, {"message": "ExceededBudget: User=x over budget. Spend=10, Budget=5"}),
    (429, {"message": "Limite quotidienne atteinte pour votre compte"}),
    (429, {"message": "Límite diario de solicitudes alcanzado"}),
    (429, {"message": "일일 사용량 한도를 초과했습니다"}),
    (429, {"message": "Превышен дневной лимит запросов"}),
    (402, {"message": "Insufficient Balance"}),
    (412, {"message": "Account is suspended: reached the monthly spending limit"}),
]  # fmt: skip
BUSY = [
    {"message": "Rate limit reached on requests per min (RPM): Limit 3 / min. Add a payment method "
                "at platform.openai.com/account/billing"},
    {"code": 429, "message": "You exceeded your current quota, please check your plan and billing "
     "details.", "details": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]},
    {"code": "1302", "message": "您的账户已达到速率限制 请您控制请求频率"},
    {"message": "Model is overloaded", "type": "overloaded"},
    {"message": "Quota exhausted for 'Tokens per minute'"},
    {"message": "Resource exhausted, please try again later"},
    {"message": "請求過於頻繁"},
]  # fmt: skip


@pytest.mark.parametrize(("status", "error"), QUOTA)
def test_d08_a_used_up_quota_in_any_words_stops_the_run(tmp_path: Path, status: int, error: Any) -> None:
    def answer(asked: Asked) -> Response:
        """A run that takes it for a busy minute ends too, without an error."""
        if asked.number < 4:
            return Response(status, {"error": error}, headers={"retry-after-ms": "50"})
        return completion()

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, collection={"concurrency": 2})
        with pytest.raises(ProviderUnusable) as stopped:
            collect(made, 30)
        assert len(server.asked) <= 3
    assert error["message"][:20] in str(stopped.value)


@pytest.mark.parametrize("error", BUSY)
def test_d08_a_busy_minute_is_none(error: Any) -> None:
    raw = json.dumps({"error": error}, ensure_ascii=False).encode()
    assert not is_out_of_quota(Outcome("rejected", 429, raw))


def test_d08_a_refusal_that_quotes_the_prompt_is_no_quota() -> None:
    quoted = {"loc": ["body"], "msg": "Field required", "input": "the daily limit of 86400 s"}
    raw = json.dumps({"detail": [{"msg": "x" * 300}, quoted]}).encode()
    assert not is_out_of_quota(Outcome("rejected", 422, raw))
    error = {"message": "invalid role", "details": "my credit balance is too low"}
    assert not is_out_of_quota(Outcome("rejected", 400, json.dumps({"error": error}).encode()))


def test_d08_a_429_that_never_ends_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(busy_notice, "FIRST_NOTICE_SECONDS", 0.3)

    def answer(asked: Asked) -> Response:
        if asked.seconds < 0.8:
            return Response(429, {"error": {"message": "please slow down"}}, headers={"retry-after-ms": "100"})
        return completion()

    with serving(answer) as server:
        collect(teacher_workspace(tmp_path, server.base_url), 2)
    said = capsys.readouterr().out
    assert said.count("has answered nothing but HTTP 429 for") in (1, 2)
    assert "please slow down" in said


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b'{"error": {"details": [{"retryDelay": "3s"}]}}', 3.0),
        (b'{"error": "Model x is currently loading", "estimated_time": 20.5}', 20.5),
        (b"Please try again in 1m7.5s. Visit", 67.5),
        (b"Please try again in 120ms.", 0.12),
        (b"Please retry after 20 seconds.", 20.0),
        (b"Retry in 5 minutes", 300.0),
        (b"retry after 1 minute", 60.0),
        (b"retry in 500 milliseconds", 0.5),
        (b"limit resets in 1h; reset after 90s", 600.0),
        (b"retry 3 times at most", None),
        (b"Please wait 3600 seconds before retrying", 600.0),
        (b"too many requests", None),
    ],
)
def test_d08_a_pause_in_words(raw: bytes, seconds: float | None) -> None:
    assert pause_in_body(raw) == (None if seconds is None else pytest.approx(seconds))


# ---- 20: a server that is still loading

LOADING: dict[str, Callable[[], Response]] = {
    "llama.cpp": lambda: refusal(503, "Loading model", type="unavailable_error", code=503),
    "nginx": lambda: Response(502, b"<html>502 Bad Gateway</html>", kind="text/html"),
    "tgi": lambda: Response(503, {"error": "x is currently loading", "estimated_time": 0.1}),
    "by words": lambda: Response(500, {"error": "llm server loading model"}),
    "initialising": lambda: refusal(500, "The server is initializing"),
    "chinese": lambda: refusal(500, "模型加载中"),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "FIRST_POLL_SECONDS", 0.05)
    monkeypatch.setattr(startup, "LAST_POLL_SECONDS", 0.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", LOADING)
def test_d20_a_loading_server_is_waited_for_and_costs_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def answer(asked: Asked) -> Response:
        return LOADING[name]() if asked.seconds < 0.7 else completion()

    with serving(answer) as server:
        made = teacher_workspace(
            tmp_path, server.base_url, provider={"startup_wait_seconds": 30.0},
            collection={"max_attempts": 2, "concurrency": 4},
        )  # fmt: skip
        summary = collect(made, 8)
        refused = len(server.asked) - 8
    assert summary is not None
    assert summary.answered == 8
    assert refused >= 6  # more than max_attempts of one row
    said = capsys.readouterr().out
    assert "is not ready" in said
    assert "is ready after" in said


@pytest.mark.usefixtures("quick")
def test_d20_the_wait_has_an_end_and_the_next_run_asks_every_row(tmp_path: Path) -> None:
    ready = [False]
    with serving(lambda _: completion() if ready[0] else LOADING["llama.cpp"]()) as server:
        made = teacher_workspace(
            tmp_path, server.base_url, provider={"startup_wait_seconds": 0.5},
            collection={"max_attempts": 1},
        )  # fmt: skip
        with pytest.raises(ProviderUnusable, match="was not ready within"):
            collect(made, 4)
        ready[0] = True
        summary = collect(made, 4)
    assert summary is not None
    assert summary.answered == 4


@pytest.mark.usefixtures("quick")
def test_d20_a_server_that_does_not_listen_yet_is_waited_for(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = threading.Event()

    def listen_later() -> None:
        time.sleep(0.5)
        with serving(lambda _: completion(), port=port):
            done.wait(20)

    thread = threading.Thread(target=listen_later)
    thread.start()
    try:
        made = teacher_workspace(tmp_path, f"http://127.0.0.1:{port}/v1", provider={"startup_wait_seconds": 30.0})
        summary = collect(made, 2)
    finally:
        done.set()
        thread.join()
    assert summary is not None
    assert summary.answered == 2


def test_d20_after_the_first_answer_a_503_is_a_failure(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Response:
        return LOADING["llama.cpp"]() if asked.number else completion()

    with serving(answer) as server:
        made = teacher_workspace(
            tmp_path, server.base_url, provider={"startup_wait_seconds": 30.0},
            collection={"max_attempts": 1, "concurrency": 1},
        )  # fmt: skip
        collect(made, 3)
    assert set(reasons(made).values()) == {"provider_failed"}
    assert len(reasons(made)) == 2
