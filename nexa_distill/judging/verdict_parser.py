"""What a judge's reply says. Read strictly: a reply that leaves any doubt is no verdict.

The reply's text is exactly one JSON object with exactly the fields of its rubric, each once.
Nothing is looked for in prose and nothing is repaired: no code fence, no second object, no
"80/100", no number in quotes, no NaN. Whatever the bytes are, reading does not fail.
"""

import json
from typing import Any, NamedTuple, NoReturn

from nexa_distill.collection.answers.completions import Answer, parse_answer
from nexa_distill.judging.rubrics import FIELDS, SAFETY

UNREADABLE = (
    "Its verdicts must be one JSON object each, with nothing around it. Give the judge "
    "extra_body: {response_format: {type: json_object}}, or another judge"
)
SHOWN = 500  # characters of a judge's reason that a check keeps; the journal has them all


class Verdict(NamedTuple):
    """`score` 0..1; `safety` of rubrics.SAFETY where the rubric asks for it.

    Without a verdict both are None and `fault` is the reason (contracts.REASONS). `said`: the
    judge's own reason, or the start of what it replied instead.
    """

    score: float | None
    safety: str | None
    fault: str | None
    said: str


def read_verdict(raw: bytes, rubric: str) -> Verdict:
    """The verdict in a chat completion as received, by the rubric of that name."""
    answer = parse_answer(raw)
    if answer.flag or answer.text is None:
        text = answer.text or raw.decode("utf-8", "replace")
        return no_verdict("judge_unparseable", f"{answer.flag}: {text}")
    return parse_verdict(answer.text, rubric)


def is_one_object(answer: Answer) -> bool:
    """Whether a reply is one JSON object, as every rubric asks for."""
    try:
        return isinstance(json.loads(answer.text or ""), dict)
    except (ValueError, RecursionError):
        return False


def parse_verdict(text: str, rubric: str) -> Verdict:
    """The verdict in a reply's text."""
    try:
        found = json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return no_verdict("judge_unparseable", text)
    if not isinstance(found, dict) or found.keys() != FIELDS[rubric].keys():
        return no_verdict("judge_unparseable", text)
    reason, score, safety = found["reason"], found["score"], found.get("safety")
    known = "safety" not in found or (isinstance(safety, str) and safety in SAFETY)
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not (isinstance(reason, str) and number and known):
        return no_verdict("judge_unparseable", text)
    if not 0 <= score <= 1:
        return no_verdict("judge_out_of_range", text)
    return Verdict(float(score), safety, None, _start(reason))


def no_verdict(fault: str, said: str) -> Verdict:
    """There is none, for this reason."""
    return Verdict(None, None, fault, _start(said))


def _start(text: str) -> str:
    """On one line; a lone surrogate cannot be stored."""
    line = " ".join(text.encode(errors="replace").decode().split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
