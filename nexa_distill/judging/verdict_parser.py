"""Parse a judge's reply strictly: an ambiguous reply is no verdict.

The reply must be exactly one JSON object with exactly the fields of its rubric, each once. Nothing
is searched for in prose and nothing is repaired: no code fence, no second object, no "80/100", no
number in quotes, no NaN. Parsing never raises, whatever the bytes are.
"""

from typing import Any, NamedTuple

from nexa_distill.collection.answers.completions import Answer, parse_answer
from nexa_distill.judging.rubrics import FIELDS, SAFETY
from nexa_distill.text.json_schemas import parse_json

UNREADABLE = (
    "Its verdicts must be one JSON object each, with nothing around it. Give the judge "
    "extra_body: {response_format: {type: json_object}}, or another judge"
)
SHOWN = 500  # characters of a judge's reason that a check keeps; the journal has them all


class Verdict(NamedTuple):
    """Without a verdict, `score` and `safety` are None and `fault` is the reason (contracts.REASONS)."""

    score: float | None  # 0..1
    safety: str | None  # one of rubrics.SAFETY, if the rubric has that field
    fault: str | None
    said: str  # the judge's reason, or the start of a reply that could not be parsed


def read_verdict(raw: bytes, rubric: str) -> Verdict:
    answer = parse_answer(raw)
    # A cut or filtered reply may still look complete.
    if answer.flag or answer.text is None:
        text = answer.text or raw.decode("utf-8", "replace")
        return no_verdict("judge_unparseable", f"{answer.flag}: {text}")
    return parse_verdict(answer.text, rubric)


def is_json_object(answer: Answer) -> bool:
    try:
        return isinstance(parse_json(answer.text or ""), dict)
    except ValueError:
        return False


def parse_verdict(text: str, rubric: str) -> Verdict:
    try:
        reply = parse_json(text, _unique_pairs)
    except ValueError:
        return no_verdict("judge_unparseable", text)
    if not isinstance(reply, dict) or reply.keys() != FIELDS[rubric].keys():
        return no_verdict("judge_unparseable", text)
    reason, score, safety = reply["reason"], reply["score"], reply.get("safety")
    has_label = "safety" not in reply or (isinstance(safety, str) and safety in SAFETY)
    # True is an int in Python, and no score.
    has_score = isinstance(score, int | float) and not isinstance(score, bool)
    if not (isinstance(reason, str) and has_score and has_label):
        return no_verdict("judge_unparseable", text)
    if not 0 <= score <= 1:
        return no_verdict("judge_out_of_range", text)
    return Verdict(float(score), safety, None, _shorten_text(reason))


def no_verdict(fault: str, text: str) -> Verdict:
    return Verdict(None, None, fault, _shorten_text(text))


def _shorten_text(text: str) -> str:
    # The encoding replaces lone surrogates, which cannot be stored.
    line = " ".join(text.encode(errors="replace").decode().split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys: a reply could show one score and count with another.
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate key")
    return values
