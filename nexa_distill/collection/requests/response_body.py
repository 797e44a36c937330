"""The JSON of a response, and errors inside a 200 with their status."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from nexa_distill.collection.requests.event_stream import PARTIAL, assemble_body, is_event_stream
from nexa_distill.dialects import ERROR_STATUSES, FINISH_REASONS, normal_finish_reason

BRIEF_CHARACTERS = 200  # characters of a message
UNKNOWN_ERROR = 502  # for an error without a status: the server failed, and is asked again
SUCCESS = {"0", "200", "20000", "ok", "success", "none", ""}
FAILURES = {"error", "failed", "failure", "fail"}
# A body with choices and without one of these keys has no error. Quotes inside an answer's text are
# escaped, so its words never look like a key.
_FAILED = [word for word, normal in FINISH_REASONS.items() if normal == "error"]
_KEYS = "|".join(map(re.escape, ["error", "base_resp", "error_code", "errcode", *_FAILED]))
_SIGNS = re.compile(f'"(?:{_KEYS})"'.encode(), re.IGNORECASE)
_HAS_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\{')
# For a message without a status; the first match counts.
_WORDS = (
    (429, r"rate.?limit|too many|throttl|exceeded.{0,20}limit|limit.?exceeded|"
          r"限流|频率|请求过多|并发"),
    (402, r"balance|credits?\b|quota|billing|arrear|欠费|余额"),
    (401, r"api.?key|unauthori[sz]ed|authenticat|invalid token|鉴权"),
    (503, r"overload|busy|capacity|unavailable|loading|繁忙|负载"),
    (504, r"time.?out|timed out|超时"),
    (404, r"(?:model|deployment).{0,60}(?:not (?:exist|found)|unknown)|no such model"),
    (400, r"context (?:length|window)|too long|invalid (?:request|param|argument)|unsupported|"
          r"not supported|content (?:policy|filter)|sensitive|敏感"),
)  # fmt: skip
# Objects with the error's fields, in a body without choices; names in lower case.
_HOLDERS = ("error", "errors", "fault", "response", "responsemetadata", "header", "exception")
_CODES = ("code", "error_code", "errcode", "errorcode", "status_code", "statuscode")
_MESSAGES = ("message", "msg", "error_msg", "errmsg", "errormessage", "faultstring", "detail")
_PATTERNS = [(status, re.compile(pattern, re.IGNORECASE)) for status, pattern in _WORDS]


class HiddenError(NamedTuple):
    """An error inside a 200. `is_billed`: it came after a part of an answer."""

    status: int
    words: str
    is_billed: bool


def read_body(raw: bytes) -> Mapping[str, Any]:
    """The JSON object of a body or of a stream of events; empty if there is none."""
    if is_event_stream(raw):
        return assemble_body(raw)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    if isinstance(body, list) and len(body) == 1:  # Gemini's errors
        body = body[0]
    return body if isinstance(body, dict) else {}


def hidden_error(raw: bytes) -> HiddenError | None:
    is_whole = not is_event_stream(raw) or b"[DONE]" in raw[-64:]
    # Nearly every body is an answer: the two patterns spare it the parsing.
    if is_whole and _HAS_CHOICES.search(raw) and not _SIGNS.search(raw):
        return None
    return find_error(read_body(raw))


def find_error(body: Mapping[str, Any]) -> HiddenError | None:
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, dict) else {}
    usage = body.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    # After a part of an answer, the provider may bill that part.
    is_billed = (isinstance(tokens, int) and tokens > 0) or PARTIAL in body
    if error := body.get("error") or choice.get("error"):  # in the choice: OpenRouter
        error = error if isinstance(error, str | dict) else body
        return HiddenError(_error_status(error), _error_text(error), is_billed)
    base = body.get("base_resp")  # MiniMax
    if isinstance(base, dict) and str(base.get("status_code", 0)) not in SUCCESS:
        status = ERROR_STATUSES.get(f"base_resp.{base['status_code']}")
        return HiddenError(status or _error_status(base), _error_text(base), is_billed)
    word = choice.get("finish_reason")
    if isinstance(word, str) and normal_finish_reason(word) == "error":
        status = 503 if "resource" in word.lower() else UNKNOWN_ERROR
        return HiddenError(status, f"finish_reason {word}", is_billed)
    return None if choices else _top_level_error(body)


def brief_message(raw: bytes) -> str:
    """Code and beginning of the message of an error body, without its details."""
    body = read_body(raw)
    error = body.get("error") or body.get("base_resp") or body
    if not isinstance(error, dict):
        return str(error)[:BRIEF_CHARACTERS]
    names = ("code", "type", "status", "status_code", "message", "msg", "status_msg", "detail")
    return " ".join(str(error[name])[:BRIEF_CHARACTERS] for name in names if error.get(name))


def _top_level_error(body: Mapping[str, Any]) -> HiddenError | None:
    fields = {name.lower(): value for name, value in body.items()}
    # Zhipu, Baidu, iFlow: a code or status other than success.
    code = next((fields[name] for name in _CODES if fields.get(name) is not None), None)
    message = next((fields[name] for name in _MESSAGES if fields.get(name)), None)
    status = str(fields.get("status")).lower()
    failed = fields.get("object") == "error" or fields.get("success") is False
    failed = failed or "detail" in fields or status in FAILURES
    failed = failed or (status.isdigit() and int(status) >= 400)
    if (code is not None and str(code).lower() not in SUCCESS) or (failed and message):
        return HiddenError(_error_status(fields), _error_text(body), False)
    for name in _HOLDERS:  # Cloudflare, Apigee, Tencent
        holder = fields.get(name)
        holder = holder[0] if isinstance(holder, list) and holder else holder
        if isinstance(holder, dict) and (error := _top_level_error(holder)):
            return error
    # AWS: only the message tells that it is an error.
    if isinstance(message, str) and (known_status := _status_by_words(message)):
        return HiddenError(known_status, _error_text(body), False)
    return None


def _status_by_words(words: str) -> int | None:
    return next((status for status, pattern in _PATTERNS if pattern.search(words)), None)


def _error_status(error: object) -> int:
    if isinstance(error, dict):
        names = ("code", "status", "status_code", "http_code", "error_code", "errcode", "type")
        for name in names:
            value = error.get(name)
            code = str(value).lower() if isinstance(value, str | int) else ""
            if code in ERROR_STATUSES:
                return ERROR_STATUSES[code]
            if code.isdigit() and 400 <= int(code) < 600:
                return int(code)
    # Words are the weakest sign: number and code come before them.
    return _status_by_words(_error_text(error)) or UNKNOWN_ERROR


def _error_text(error: object) -> str:
    text = error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
    return " ".join(text.split())[:2000]
