"""Tokens, latency and answers per second of a model, measured on a journal's newest answers."""

from collections import defaultdict
from statistics import fmean
from typing import NamedTuple

from nexa_distill.journal.journal import ReadOnlyJournal
from nexa_distill.text.hashing import compact_json

NEWEST_ANSWERS = 20_000  # answers that are read, so that a large journal stays quick
MIN_ANSWERS = 20  # fewer answers give neither bytes per token nor answers per second
_ANSWERS = (
    "SELECT a.run, length(r.body), u.prompt_tokens, u.completion_tokens, o.latency_ms, o.ended_at "
    "FROM (SELECT * FROM usage ORDER BY attempt_id DESC LIMIT ?) u "
    "JOIN outcomes o USING (attempt_id) JOIN attempts a ON a.id = attempt_id "
    "JOIN requests r ON r.id = a.request_id WHERE instr(r.body, ?)"
)


class Throughput(NamedTuple):
    """None = not measured. `answers` have token counts; bytes are those of their requests."""

    answers: int
    tokens_per_byte: float | None
    answer_tokens: float | None
    latency_seconds: float | None
    per_second: float | None


class _AnswerTiming(NamedTuple):
    run: int
    size: int
    prompt: int | None
    completion: int | None
    latency_ms: float | None
    ended_at: float


def measure_throughput(journal: ReadOnlyJournal, model: str) -> Throughput:
    """Measure the newest answers; the speed is that of the last run with enough of them."""
    # In JSON a quote inside a text is escaped, so this is the key and never a part of a prompt.
    named = compact_json({"model": model})[1:-1].encode("utf-8", "surrogatepass")
    answers = [_AnswerTiming(*row) for row in journal.read_rows(_ANSWERS, NEWEST_ANSWERS, named)]
    counted = [a for a in answers if a.prompt is not None]
    ratio = sum(a.prompt or 0 for a in counted) / max(1, sum(a.size for a in counted))
    completions = [a.completion for a in answers if a.completion is not None]
    latencies = [a.latency_ms / 1000 for a in answers if a.latency_ms is not None]
    return Throughput(
        len(counted),
        ratio if len(counted) >= MIN_ANSWERS else None,
        fmean(completions) if completions else None,
        fmean(latencies) if latencies else None,
        _answers_per_second(answers),
    )


def _answers_per_second(answers: list[_AnswerTiming]) -> float | None:
    runs: dict[int, list[_AnswerTiming]] = defaultdict(list)
    for answer in answers:
        if answer.latency_ms is not None:
            runs[answer.run].append(answer)
    # The newest run with enough answers: earlier ones may have had other settings.
    for _, of_run in sorted(runs.items(), reverse=True):
        if len(of_run) >= MIN_ANSWERS:
            first = min(a.ended_at - (a.latency_ms or 0.0) / 1000 for a in of_run)
            seconds = max(a.ended_at for a in of_run) - first
            return len(of_run) / seconds if seconds > 0 else None
    return None
