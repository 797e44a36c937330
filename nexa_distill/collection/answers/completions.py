"""The fields of a chat completion, read from the bytes as received.

Source of the format: the OpenAI chat completions API, and the additional fields and words of other
servers (`dialects/`). Reading never fails: fields that are absent or of another type are None.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from nexa_distill.collection.answers.extraction import Cleaner
from nexa_distill.collection.answers.token_usage import TokenCounts, read_usage
from nexa_distill.collection.requests.response_body import find_error, read_body
from nexa_distill.dialects import REASONING_FIELDS, normal_finish_reason
from nexa_distill.journal.journal import StoredAnswer
from nexa_distill.settings.pipeline import Price, Provider
from nexa_distill.text.json_schemas import ResponseSchemas
from nexa_distill.text.reasoning import split_reasoning

TEXT_PARTS = ("text", "output_text")
THINKING_PARTS = ("thinking", "reasoning")
# If reasoning has this share of the tokens (or characters) of a cut answer, it is the cause of the
# cut: without reasoning the limit would have been enough.
REASONING_SHARE = 0.8


class Answer(NamedTuple):
    """A parsed answer. Tokens as billed (`token_usage.py`); `flag` is one of ANSWER_FLAGS."""

    text: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None  # in OpenAI's words; a word that no dialect has, as received
    model: str | None = None
    fingerprint: str | None = None
    flag: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


def parse_answer(raw: bytes) -> Answer:
    """The first choice of a chat completion; all fields None if `raw` is something else."""
    body = read_body(raw)
    if not body:
        return Answer(flag="malformed")
    usage = read_usage(_as_mapping(body.get("usage")))
    choices = body.get("choices")
    choice = _as_mapping(choices[0] if isinstance(choices, list) and choices else None)
    # A 200 with an error inside is no answer, even if it has choices.
    message = {} if find_error(body) else _as_mapping(choice.get("message"))
    # A server without a reasoning parser leaves the reasoning in tags before the answer.
    thought, text = split_reasoning(message_text(message) or "")
    field = _reasoning_field(message)
    # A server's parser may have extracted only a part of it; text in both is written once.
    parts = [field, thought if thought and thought not in (field or "") else None]
    reasoning = "\n\n".join(filter(None, parts)) or None
    finish = normal_finish_reason(_as_text(choice.get("finish_reason")))
    return Answer(
        text=text,
        reasoning=reasoning,
        finish_reason=finish,
        model=_as_text(body.get("model")),
        fingerprint=_as_text(body.get("system_fingerprint")),
        flag=_answer_flag(finish, message, text, _is_cut_by_reasoning(finish, text, reasoning, usage)),
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.total,
    )


def is_completion(raw: bytes) -> bool:
    try:
        # Malformed: no message, or an error inside the 200.
        return parse_answer(raw).flag != "malformed"
    except Exception:  # noqa: BLE001  a bug in the parser: it is reported where its row is written
        return True


def cost_usd(answer: Answer, price: Price | None, discount: float = 1.0) -> float | None:
    if price is None or answer.prompt_tokens is None or answer.completion_tokens is None:
        return None
    return discount * price.answer_cost(answer.prompt_tokens, answer.completion_tokens)


def output_row(
    row: Mapping[str, Any],
    attempt: int,
    key: str,
    model: str,
    stored: StoredAnswer,
    provider: Provider,
    schemas: ResponseSchemas,
    cleaner: Cleaner,
) -> dict[str, Any]:
    """One row of contracts.OUTPUTS. `model` is the requested model."""
    answer, price = parse_answer(stored.raw), provider.prices.get(model)
    text, raw_text = cleaner(row["template_name"], answer.text)
    return {
        **row,
        "attempt": attempt,
        "teacher_output": text,
        "raw_output": raw_text,
        "reasoning_output": answer.reasoning,
        # A server that we start reports a path on this machine as its model.
        "model_id": model if provider.start else answer.model or model,
        "finish_reason": answer.finish_reason,
        "answer_flag": _flag_with_schema(answer.flag, text, schemas, row["template_name"]),
        "system_fingerprint": answer.fingerprint,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.total_tokens,
        "latency_ms": stored.latency_ms,
        "cost_usd": cost_usd(answer, price, stored.discount),
        "request_key": key,
        "created_at": datetime.fromtimestamp(stored.ended_at, UTC),
    }


def _answer_flag(
    finish: str | None, message: Mapping[str, Any], text: str | None, cut_by_reasoning: bool
) -> str | None:
    signs = {  # the most severe first
        "malformed": not message,
        "content_filter": finish == "content_filter",
        "refused": bool(message.get("refusal")),
        "reasoning_cut": cut_by_reasoning,
        "truncated": finish == "length",
        "tool_calls": bool(message.get("tool_calls")),
        "no_text": not (text and text.strip()),
    }
    return next((flag for flag, holds in signs.items() if holds), None)


def _is_cut_by_reasoning(finish: str | None, text: str | None, reasoning: str | None, usage: TokenCounts) -> bool:
    if finish != "length":
        return False
    if usage.reasoning and usage.completion:  # some providers count it without showing it
        return usage.reasoning >= REASONING_SHARE * usage.completion
    # Without token counts, characters decide.
    thought = len(reasoning or "")
    return thought > 0 and thought >= REASONING_SHARE * (thought + len((text or "").strip()))


def _flag_with_schema(flag: str | None, text: str | None, schemas: ResponseSchemas, task: str) -> str | None:
    if text is None or flag not in (None, "truncated", "tool_calls"):  # more severe: it stays
        return flag
    return flag if schemas.is_satisfied(task, text) else "schema_mismatch"


def _as_mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def message_text(message: Mapping[str, Any]) -> str | None:
    value = message.get("content")
    if isinstance(value, list):
        # Other parts contain reasoning or images.
        parts = [part for part in map(_as_mapping, value) if part.get("type", "text") in TEXT_PARTS]
        return "".join(_as_text(part.get("text")) or "" for part in parts) or None
    return _as_text(value) or None


def _reasoning_field(message: Mapping[str, Any]) -> str | None:
    for name in REASONING_FIELDS:
        if text := _as_text(message.get(name)):
            return text
    # Mistral has no such field: its reasoning is in thinking parts of the content.
    value = message.get("content")
    parts = map(_as_mapping, value if isinstance(value, list) else ())
    thinking = [part.get("thinking") for part in parts if part.get("type") in THINKING_PARTS]
    return "".join(text for part in thinking for text in _inner_texts(part)) or None


def _inner_texts(thinking: object) -> list[str]:
    # A part has its text, or a list of parts with one each (Mistral).
    inner = thinking if isinstance(thinking, list) else [{"text": thinking}]
    return [text for part in inner if (text := _as_text(_as_mapping(part).get("text")))]


def _as_text(value: object) -> str | None:
    """A string that UTF-8 can carry (a lone surrogate becomes U+FFFD), or None."""
    if not isinstance(value, str):
        return None
    if value.isascii():  # nearly always, and each answer is read twice
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
