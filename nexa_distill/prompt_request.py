"""What a model is asked: the JSON of a chat completion, and the key that tells requests apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexa_distill.config import DistillConfig
from nexa_distill.contracts import compact_json, sha256_text


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One question to a model: `body` is the chat completion's JSON, `data` its bytes."""

    sample_id: str
    attempt: int
    key: str
    body: dict[str, Any]
    data: bytes


def prompt_request(
    sample_id: str, body: dict[str, Any], *, attempt: int = 0, round_: int = 0, index: int = 0
) -> PromptRequest:
    """The request and its key: what makes two requests the same.

    That is the endpoint's kind, model, messages, decoding parameters, sample index and round.
    """
    text = compact_json(body)
    key = sha256_text(f'["chat",{text},{index},{round_}]')
    return PromptRequest(sample_id, attempt, key, body, text.encode("utf-8", "surrogatepass"))


def request_body(
    system: str, prompt: str, model: str, config: DistillConfig, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """A chat completion's JSON: what changes the answer. A null in `extra` drops its key."""
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": prompt},
        ],
        "max_tokens": config.collection.max_tokens,
        "temperature": config.collection.temperature,
        **extra,
    }
    return {key: value for key, value in body.items() if value is not None}
