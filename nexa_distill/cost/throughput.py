"""What a journal's newest answers of a model tell: tokens of prompts and answers, latency, pace."""

from collections import defaultdict
from statistics import fmean
from typing import NamedTuple

from nexa_distill.journal.journal import ReadOnlyJournal
from nexa_distill.text.hashing import compact_json

NEWEST = 20_000  # so many answers are looked at, so that a large journal is quick to read
ENOUGH = 20  # of fewer answers neither bytes per token nor a pace is concluded
_ANSWERS = (
    "SELECT a.run, length(r.body), u.prompt_tokens, u.completion_tokens, o.latency_ms, o.ended_at "
    "FROM (SELECT * FROM usage ORDER BY attempt_id DESC LIMIT ?) u "
    "JOIN outcomes o USING (attempt_id) JOIN attempts a ON a.id = attempt_id "
    "JOIN requests r ON r.id = a.request_id WHERE instr(r.body, ?)"
)


class Rates(NamedTuple):
    """None = not measured. `answers` are those with token counts; bytes are of their requests."""

    answers: int
    tokens_per_byte: float | None
    answer_tokens: float | None
    latency_seconds: float | None
    per_second: float | None


class _Seen(NamedTuple):
    run: int
    size: int
    prompt: int | None
    completion: int | None
    latency_ms: float | None
    ended_at: float


def measure(journal: ReadOnlyJournal, model: str) -> Rates:
    """Of the newest answers; the pace is that of the last run which brought `ENOUGH` of them."""
    # In JSON a quote inside a text is escaped, so this is the key and never a part of a prompt.
    named = compact_json({"model": model})[1:-1].encode("utf-8", "surrogatepass")
    seen = [_Seen(*row) for row in journal.read(_ANSWERS, NEWEST, named)]
    counted = [s for s in seen if s.prompt is not None]
    ratio = sum(s.prompt or 0 for s in counted) / max(1, sum(s.size for s in counted))
    completions = [s.completion for s in seen if s.completion is not None]
    latencies = [s.latency_ms / 1000 for s in seen if s.latency_ms is not None]
    return Rates(
        len(counted),
        ratio if len(counted) >= ENOUGH else None,
        fmean(completions) if completions else None,
        fmean(latencies) if latencies else None,
        _pace(seen),
    )


def _pace(seen: list[_Seen]) -> float | None:
    """Answers per second, from the first send to the last answer of a run."""
    runs: dict[int, list[_Seen]] = defaultdict(list)
    for answer in seen:
        if answer.latency_ms is not None:
            runs[answer.run].append(answer)
    for run in sorted(runs, reverse=True):
        answers = runs[run]
        if len(answers) >= ENOUGH:
            first = min(a.ended_at - (a.latency_ms or 0.0) / 1000 for a in answers)
            seconds = max(a.ended_at for a in answers) - first
            return len(answers) / seconds if seconds > 0 else None
    return None
