"""Conclude a model's capabilities from its replies to the probe's requests."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nexa_distill.collection.answers.completions import Answer, message_text, parse_answer
from nexa_distill.collection.capabilities import Finding
from nexa_distill.collection.requests.connections import model_ids
from nexa_distill.journal.journal import StoredAnswer
from nexa_distill.text.json_schemas import compile_schemas
from nexa_distill.text.reasoning import split_reasoning

SHOWN_CHARACTERS = 120  # characters of evidence
PROBE_SCHEMA = compile_schemas(
    {
        "probe": {
            "type": "object",
            "properties": {"legs": {"type": "integer"}},
            "required": ["legs"],
            "additionalProperties": False,
        }
    }
)


@dataclass(frozen=True)
class ProbeReply:
    """The reply to one request. `evidence`: the API's last response if no answer is stored."""

    stored: StoredAnswer | None
    refused: bool
    evidence: str

    @property
    def parsed_answer(self) -> Answer:
        # Without a stored answer: an empty body, which parses as malformed.
        return parse_answer(self.stored.raw if self.stored else b"")

    @property
    def response_text(self) -> str:
        return self.stored.raw.decode(errors="replace") if self.stored else self.evidence

    def raw_choices(self) -> list[dict[str, Any]]:
        """The choices as received; only for an answer that is not malformed."""
        body: dict[str, list[dict[str, Any]]] = json.loads(self.stored.raw if self.stored else b"")
        return body["choices"]


def collect_findings(replies: Mapping[str, ProbeReply]) -> dict[str, Finding]:
    """Findings by capability. The request `completion` must be answered."""
    plain = replies["completion"]
    return {
        "completion": Finding(
            True, f"{_format_latency(plain)}: {shorten_text(plain.parsed_answer.text or plain.response_text)}"
        ),
        "usage": _check_usage(plain.parsed_answer),
        "json_schema": _check_reply(replies["json_schema"], _check_json_schema),
        "logprobs": _check_reply(replies["logprobs"], _check_logprobs),
        "reasoning": _check_reasoning(plain),
        # Whether a seed has an effect cannot be seen in one answer; a refusal can.
        "seed": _check_reply(replies["seed"], lambda _: Finding(True, "not refused")),
        "n": _check_reply(replies["n"], _check_choices),
    }


def check_model_listed(models: tuple[int | None, bytes], model: str) -> Finding:
    status, body = models
    names = model_ids(body)
    if names is None:
        return Finding(None, f"GET /models: {f'HTTP {status}: ' if status else ''}{shorten_text(body)}")
    if model in names:
        return Finding(True, f"one of {len(names)}")
    return Finding(False, shorten_text(f"not among {len(names)}: {', '.join(names)}"))


def shorten_text(text: str | bytes) -> str:
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    # A lone surrogate in a reply could be neither printed nor written.
    line = " ".join(text.encode(errors="replace").decode().split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}..."


def _check_reply(reply: ProbeReply, look: Callable[[ProbeReply], Finding]) -> Finding:
    if reply.parsed_answer.flag == "malformed":  # a refusal is a no, any other failure is not known
        return Finding(False if reply.refused else None, shorten_text(reply.response_text))
    return look(reply)


def _format_latency(reply: ProbeReply) -> str:
    milliseconds = reply.stored.latency_ms if reply.stored else None
    return f"{(milliseconds or 0.0) / 1000:.1f} s"


def _check_usage(answer: Answer) -> Finding:
    if answer.prompt_tokens is None or answer.completion_tokens is None:
        return Finding(False, "the answer names no tokens: cost and budget cannot be counted")
    return Finding(True, f"{answer.prompt_tokens} + {answer.completion_tokens} tokens")


def _check_json_schema(reply: ProbeReply) -> Finding:
    answer = reply.parsed_answer
    # The question asks for a sentence, so a JSON answer means that the schema was enforced.
    if PROBE_SCHEMA.is_satisfied("probe", answer.text or ""):
        return Finding(True, shorten_text(answer.text or ""))
    if answer.flag == "truncated":
        return Finding(None, f"cut by max_tokens: {shorten_text(reply.response_text)}")
    return Finding(False, f"ignored: {shorten_text(answer.text or reply.response_text)}")


def _check_logprobs(reply: ProbeReply) -> Finding:
    logprobs = reply.raw_choices()[0].get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if isinstance(tokens, list) and tokens:
        return Finding(True, f"of {len(tokens)} tokens")
    return Finding(False, "ignored: none in the answer")


def _check_reasoning(reply: ProbeReply) -> Finding:
    message = reply.raw_choices()[0]["message"]
    if reply.parsed_answer.reasoning is None:
        return Finding(None, "it returned no reasoning")
    if split_reasoning(message_text(message) or "")[0]:
        return Finding(False, "in tags inside the answer; separated when it is read")
    return Finding(True, shorten_text(reply.parsed_answer.reasoning))


def _check_choices(reply: ProbeReply) -> Finding:
    count = len(reply.raw_choices())
    return Finding(count > 1, f"{count} of 2")
