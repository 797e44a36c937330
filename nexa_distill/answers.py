"""What an answer says: the fields of a chat completion, read from the bytes as received.

Source of the format: the OpenAI chat completions API, and the fields that vLLM, SGLang, Ollama and
OpenRouter add (`reasoning_content`, `reasoning`). Whatever the bytes are, reading never fails: what
is not there or not of its type is missing, and a row without answer text is rejected by the rules.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nexa_distill.config import Price, Provider
from nexa_distill.journal import Answered


@dataclass(frozen=True)
class Answer:
    """Tokens as billed. `model` and `fingerprint` as the API named them; `flag`: see contracts."""

    text: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    fingerprint: str | None = None
    flag: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


def parse_answer(raw: bytes) -> Answer:
    """The first choice of a chat completion; all fields missing when `raw` is something else."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return Answer(flag="malformed")
    body = _mapping(body)
    usage = _mapping(body.get("usage"))
    choices = body.get("choices")
    choice = _mapping(choices[0] if isinstance(choices, list) and choices else None)
    message = _mapping(choice.get("message"))
    text = _content(message.get("content"))
    return Answer(
        text=text,
        reasoning=_text(message.get("reasoning_content")) or _text(message.get("reasoning")),
        finish_reason=_text(choice.get("finish_reason")),
        model=_text(body.get("model")),
        fingerprint=_text(body.get("system_fingerprint")),
        flag=_flag(choice, message, text),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        total_tokens=_count(usage.get("total_tokens")),
    )


def cost_usd(answer: Answer, price: Price | None) -> float | None:
    """US dollars of an answer; None when its tokens or the model's price are not known."""
    if price is None or answer.prompt_tokens is None or answer.completion_tokens is None:
        return None
    return price.cost(answer.prompt_tokens, answer.completion_tokens)


def output_row(
    row: Mapping[str, Any], attempt: int, key: str, model: str, stored: Answered, provider: Provider
) -> dict[str, Any]:
    """One row of contracts.OUTPUTS. `model` is the name asked for, used when the API says none.

    A server that we start names itself by a path on this machine; it is called by its own name.
    """
    answer = parse_answer(stored.raw)
    return {
        **row,
        "attempt": attempt,
        "teacher_output": answer.text,
        "reasoning_output": answer.reasoning,
        "model_id": model if provider.start else answer.model or model,
        "finish_reason": answer.finish_reason,
        "answer_flag": answer.flag,
        "system_fingerprint": answer.fingerprint,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.total_tokens,
        "latency_ms": stored.latency_ms,
        "cost_usd": cost_usd(answer, provider.prices.get(model)),
        "request_key": key,
        "created_at": datetime.fromtimestamp(stored.ended_at, UTC),
    }


def _flag(choice: Mapping[str, Any], message: Mapping[str, Any], text: str | None) -> str | None:
    """What is unusual about a choice (contracts.ANSWER_FLAGS), the gravest first."""
    finish = choice.get("finish_reason")
    signs = {
        "malformed": not message,
        "content_filter": finish == "content_filter",
        "refused": bool(message.get("refusal")),
        "truncated": finish == "length",
        "tool_calls": bool(message.get("tool_calls")),
        "no_text": not text,
    }
    return next((flag for flag, holds in signs.items() if holds), None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _content(value: object) -> str | None:
    """Text, or the text parts of a list of content parts."""
    if isinstance(value, list):
        parts = (_text(_mapping(part).get("text")) for part in value)
        return "".join(part for part in parts if part) or None
    return _text(value)


def _text(value: object) -> str | None:
    """A string that UTF-8 can carry (a lone surrogate becomes U+FFFD), or None."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return int(value) if is_count and isinstance(value, int) else None
