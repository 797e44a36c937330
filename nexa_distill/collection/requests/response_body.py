"""The JSON of a response, and an error inside a 200: which status it would have had.

Errors inside a 200 as they occur: a top-level `error` (object or text), an `error` of the choice
(OpenRouter), a finish_reason that means a failure, `base_resp` (MiniMax), a `code`, `error_code` or
`errcode` other than success beside a message and without choices (Zhipu, Baidu).
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from nexa_distill.collection.requests.event_stream import assemble, is_event_stream
from nexa_distill.dialects import ERROR_STATUSES, FINISH_REASONS, finish_reason

BRIEF = 200  # characters of a message
UNKNOWN_ERROR = 502  # an error that names no status: the server failed, and may not the next time
SUCCESS = {"0", "200", "20000", "ok", "success", "none", ""}
# Without one of these bytes, and with choices, a body has no error in it. In the text of an answer
# a quote is escaped, so a word of it never looks like a key.
_FAILED = [word for word, normal in FINISH_REASONS.items() if normal == "error"]
_KEYS = "|".join(map(re.escape, ["error", "base_resp", "error_code", "errcode", *_FAILED]))
_SIGNS = re.compile(f'"(?:{_KEYS})"'.encode(), re.IGNORECASE)
# Words of a message that names no status, tried in this order.
_WORDS = (
    (429, r"rate.?limit|too many|throttl|exceeded.{0,20}limit|限流|频率|请求过多|并发"),
    (402, r"balance|credits?\b|quota|billing|arrear|欠费|余额"),
    (401, r"api.?key|unauthori[sz]ed|authenticat|invalid token|鉴权"),
    (503, r"overload|busy|capacity|unavailable|loading|繁忙|负载"),
    (504, r"time.?out|timed out|超时"),
    (404, r"(?:model|deployment).{0,60}(?:not (?:exist|found)|unknown)|no such model"),
    (400, r"context (?:length|window)|too long|invalid (?:request|param|argument)|unsupported|"
          r"not supported|content (?:policy|filter)|sensitive|敏感"),
)  # fmt: skip
_PATTERNS = [(status, re.compile(pattern, re.IGNORECASE)) for status, pattern in _WORDS]


class HiddenError(NamedTuple):
    """An error inside a 200. `is_billed`: tokens of an answer were counted before it."""

    status: int
    words: str
    is_billed: bool


def read_body(raw: bytes) -> Mapping[str, Any]:
    """The body's object, of a stream the one it is the pieces of; empty when there is none."""
    if is_event_stream(raw):
        return assemble(raw)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    if isinstance(body, list) and len(body) == 1:  # Gemini's errors
        body = body[0]
    return body if isinstance(body, dict) else {}


def hidden_error(raw: bytes) -> HiddenError | None:
    """The error that a 200's body holds, or None."""
    if b'"choices"' in raw and not _SIGNS.search(raw):
        return None
    return error_of(read_body(raw))


def error_of(body: Mapping[str, Any]) -> HiddenError | None:
    """The error in a body's object, or None."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, dict) else {}
    usage = body.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    is_billed = isinstance(tokens, int) and tokens > 0
    if found := body.get("error") or choice.get("error"):
        return HiddenError(_status(found), _words(found), is_billed)
    base = body.get("base_resp")
    if isinstance(base, dict) and str(base.get("status_code", 0)) not in SUCCESS:
        status = ERROR_STATUSES.get(f"base_resp.{base['status_code']}")
        return HiddenError(status or _status(base), _words(base), is_billed)
    word = choice.get("finish_reason")
    if isinstance(word, str) and finish_reason(word) == "error":
        status = 503 if "resource" in word.lower() else UNKNOWN_ERROR
        return HiddenError(status, f"finish_reason {word}", is_billed)
    return None if choices else _without_choices(body)


def brief_words(raw: bytes) -> str:
    """The code and the beginning of the message of an error body, without its details."""
    body = read_body(raw)
    error = body.get("error") or body.get("base_resp") or body
    if not isinstance(error, dict):
        return str(error)[:BRIEF]
    names = ("code", "type", "status", "status_code", "message", "msg", "status_msg", "detail")
    return " ".join(str(error[name])[:BRIEF] for name in names if error.get(name))


def _without_choices(body: Mapping[str, Any]) -> HiddenError | None:
    """An error whose fields are at the top; a body without a code or a message is none."""
    code = _first(body, "code", "error_code", "errcode", "errorCode", "status_code")
    says = _first(body, "message", "msg", "error_msg", "errmsg", "errorMessage", "detail")
    fails = body.get("object") == "error" or body.get("success") is False or "detail" in body
    if (code is None or str(code).lower() in SUCCESS) and not (fails and says):
        return None
    return HiddenError(_status(body), _words(body), False)


def _first(body: Mapping[str, Any], *names: str) -> Any:
    return next((body[name] for name in names if body.get(name) is not None), None)


def _status(error: object) -> int:
    """The HTTP status that an error object names by number, by code or by words."""
    if isinstance(error, dict):
        names = ("code", "status", "status_code", "http_code", "error_code", "errcode", "type")
        for name in names:
            value = error.get(name)
            code = str(value).lower() if isinstance(value, str | int) else ""
            if code in ERROR_STATUSES:
                return ERROR_STATUSES[code]
            if code.isdigit() and 400 <= int(code) < 600:
                return int(code)
    words = _words(error)
    return next((s for s, pattern in _PATTERNS if pattern.search(words)), UNKNOWN_ERROR)


def _words(error: object) -> str:
    text = error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
    return " ".join(text.split())[:2000]
