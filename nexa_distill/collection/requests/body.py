"""The JSON of a chat completion request, and the key that identifies it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexa_distill.dialects import DIALECTS, SystemRole
from nexa_distill.settings.pipeline import DistillConfig, Provider
from nexa_distill.text.hashing import compact_json, sha256_text

# max_completion_tokens first: if a request has both, it takes precedence.
LIMIT_KEYS = sorted({d.limit_key for d in DIALECTS.values()})


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One request to a model: `body` is the chat completion's JSON, `data` its bytes."""

    sample_id: str
    attempt: int
    key: str
    body: dict[str, Any]
    data: bytes


def prompt_request(
    sample_id: str, body: dict[str, Any], *, attempt: int = 0, round_: int = 0, index: int = 0
) -> PromptRequest:
    """The request and its key: a hash of the body, sample index and round."""
    text = compact_json(body)
    # This exact text is hashed: with one character changed, every stored answer would be paid again.
    key = sha256_text(f'["chat",{text},{index},{round_}]')
    return PromptRequest(sample_id, attempt, key, body, text.encode("utf-8", "surrogatepass"))


def request_body(
    system: str, prompt: str, model: str, config: DistillConfig, provider: Provider, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """A chat completion's JSON, in the provider's dialect. A null in `extra` removes its key."""
    dialect, stream = provider.active_dialect, provider.stream
    body = {
        "model": model,
        "messages": build_messages(system, prompt, provider.system_role or dialect.system_role),
        dialect.limit_key: config.collection.max_tokens,
        "temperature": config.collection.temperature if dialect.sends_temperature else None,
        **dialect.body,
        **({"stream": True} if (dialect.stream if stream is None else stream) else {}),
        **extra,
    }
    if body.get("stream"):  # the usage is sent only if it is asked for
        body.setdefault("stream_options", {"include_usage": True})
    return {key: value for key, value in body.items() if value is not None}


def row_messages(row: Mapping[str, Any], system: str | None) -> list[dict[str, str]]:
    """The messages before the answer, in training, packaging and evaluation alike.

    `system` is the collection's system prompt; the row's own takes precedence. Without either there
    is no system message.
    """
    return build_messages(row["system_prompt"] or system or "", row["user_prompt"], "system")


def build_messages(system: str, prompt: str, role: SystemRole) -> list[dict[str, str]]:
    if role == "user":
        prompt = "\n\n".join(filter(None, [system, prompt]))
    user = {"role": "user", "content": prompt}
    if not system or role in ("user", "none"):
        return [user]
    return [{"role": role, "content": system}, user]


def answer_limit(body: Mapping[str, Any]) -> int | None:
    limits = (body.get(key) for key in LIMIT_KEYS)
    return next((limit for limit in limits if limit), None)


def raise_limit(body: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The same request with its token limits doubled, and at least `tokens`."""
    limits = {key: max(tokens, 2 * body[key]) for key in LIMIT_KEYS if body.get(key)}
    return body | limits
