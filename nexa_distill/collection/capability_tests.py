"""What the answers to the probe's questions show.

`json_schema` is kept when the answer satisfies the schema although the question asks for a
sentence; `reasoning` is unknown where the model showed none.
"""

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
    """What came back for a question. `refused`: the API said no; `evidence`: its last word."""

    stored: Answered | None
    refused: bool
    evidence: str

    @property
    def answer(self) -> Answer:
        """What it says; malformed when there is none."""
        return parse_answer(self.stored.raw if self.stored else b"")

    @property
    def said(self) -> str:
        """The body or the error, for a person."""
        return self.stored.raw.decode(errors="replace") if self.stored else self.evidence

    def choices(self) -> list[dict[str, Any]]:
        """As received, where `answer` is not malformed."""
        found: list[dict[str, Any]] = json.loads(self.stored.raw if self.stored else b"")["choices"]
        return found


def findings(replies: Mapping[str, Reply]) -> dict[str, Finding]:
    """By capability; `completion` is answered, or there is nothing to find."""
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
    """From the status and body of GET /models."""
    status, body = models
    try:
        names = [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Finding(None, f"GET /models: {f'HTTP {status}: ' if status else ''}{start(body)}")
    if model in names:
        return Finding(True, f"one of {len(names)}")
    return Finding(False, start(f"not among {len(names)}: {', '.join(names)}"))


def start(said: str | bytes) -> str:
    """The start of a text, on one line."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    line = " ".join(text.encode(errors="replace").decode().split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _tried(reply: Reply, look: Callable[[Reply], Finding]) -> Finding:
    """What `look` finds in an answer; a refusal is a no, and any other silence is not known."""
    if reply.answer.flag == "malformed":
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
        return Finding(None, "it showed no reasoning")
    if split_reasoning(message_text(message) or "")[0]:
        return Finding(False, "in tags inside the answer; taken apart when it is read")
    return Finding(True, start(reply.answer.reasoning))


def _choices(reply: Reply) -> Finding:
    found = len(reply.choices())
    return Finding(found > 1, f"{found} of 2")
