"""Conclude a model's capabilities from its replies to the probe's requests."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nexa_distill.collection.answers.completions import Answer, message_text, parse_answer
from nexa_distill.collection.capabilities import Finding
from nexa_distill.journal.journal import Answered
from nexa_distill.text.json_schemas import compiled
from nexa_distill.text.reasoning import split_reasoning

SHOWN = 120  # characters of evidence
PROBE_SCHEMA = compiled(
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
class Reply:
    """The reply to one request. `evidence`: the API's last response if no answer is stored."""

    stored: Answered | None
    refused: bool
    evidence: str

    @property
    def answer(self) -> Answer:
        """The parsed answer; malformed if there is none."""
        return parse_answer(self.stored.raw if self.stored else b"")

    @property
    def said(self) -> str:
        """The body or the error as text."""
        return self.stored.raw.decode(errors="replace") if self.stored else self.evidence

    def choices(self) -> list[dict[str, Any]]:
        """The choices as received; only for an answer that is not malformed."""
        body: dict[str, list[dict[str, Any]]] = json.loads(self.stored.raw if self.stored else b"")
        return body["choices"]


def findings(replies: Mapping[str, Reply]) -> dict[str, Finding]:
    """Findings by capability. The request `completion` must be answered."""
    plain = replies["completion"]
    return {
        "completion": Finding(True, f"{_seconds(plain)}: {start(plain.answer.text or plain.said)}"),
        "usage": _usage(plain.answer),
        "json_schema": _tried(replies["json_schema"], _json_schema),
        "logprobs": _tried(replies["logprobs"], _logprobs),
        "reasoning": _reasoning(plain),
        "seed": _tried(replies["seed"], lambda _: Finding(True, "not refused")),
        "n": _tried(replies["n"], _choices),
    }


def listed(models: tuple[int | None, bytes], model: str) -> Finding:
    """Whether the status and body of GET /models list the model."""
    status, body = models
    try:
        names = [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Finding(None, f"GET /models: {f'HTTP {status}: ' if status else ''}{start(body)}")
    if model in names:
        return Finding(True, f"one of {len(names)}")
    return Finding(False, start(f"not among {len(names)}: {', '.join(names)}"))


def start(text: str | bytes) -> str:
    """The start of a text, on one line."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    line = " ".join(text.encode(errors="replace").decode().split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _tried(reply: Reply, look: Callable[[Reply], Finding]) -> Finding:
    if reply.answer.flag == "malformed":  # a refusal is a no, any other failure is not known
        return Finding(False if reply.refused else None, start(reply.said))
    return look(reply)


def _seconds(reply: Reply) -> str:
    milliseconds = reply.stored.latency_ms if reply.stored else None
    return f"{(milliseconds or 0.0) / 1000:.1f} s"


def _usage(answer: Answer) -> Finding:
    if answer.prompt_tokens is None or answer.completion_tokens is None:
        return Finding(False, "the answer names no tokens: cost and budget cannot be counted")
    return Finding(True, f"{answer.prompt_tokens} + {answer.completion_tokens} tokens")


def _json_schema(reply: Reply) -> Finding:
    answer = reply.answer
    # The question asks for a sentence, so a JSON answer means that the schema was enforced.
    if PROBE_SCHEMA.satisfied("probe", answer.text or ""):
        return Finding(True, start(answer.text or ""))
    if answer.flag == "truncated":
        return Finding(None, f"cut by max_tokens: {start(reply.said)}")
    return Finding(False, f"ignored: {start(answer.text or reply.said)}")


def _logprobs(reply: Reply) -> Finding:
    logprobs = reply.choices()[0].get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if isinstance(tokens, list) and tokens:
        return Finding(True, f"of {len(tokens)} tokens")
    return Finding(False, "ignored: none in the answer")


def _reasoning(reply: Reply) -> Finding:
    message = reply.choices()[0]["message"]
    if reply.answer.reasoning is None:
        return Finding(None, "it returned no reasoning")
    if split_reasoning(message_text(message) or "")[0]:
        return Finding(False, "in tags inside the answer; separated when it is read")
    return Finding(True, start(reply.answer.reasoning))


def _choices(reply: Reply) -> Finding:
    count = len(reply.choices())
    return Finding(count > 1, f"{count} of 2")
