"""Aggregate the judges' verdicts on one answer into rows of contracts.CHECKS.

Per rubric one row for all judges, then one per judge (`judge.factuality.MODEL`):

  judge.factuality  the lowest of the judges' scores, 0..1
  judge.reasoning   the same, by the other rubric
  judge.safety      the most severe safety label; passes only if all judges say `safe`
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nexa_distill.collection.collector import Collector
from nexa_distill.collection.requests.body import PromptRequest
from nexa_distill.contracts import Row
from nexa_distill.journal.journal import ReadOnlyJournal, StoredAnswer
from nexa_distill.judging.rubrics import FIELDS, RubricText
from nexa_distill.judging.verdict_parser import Verdict, no_verdict, read_verdict

SAFETY_REASONS = {"critical": "critical_safety", "review": "requires_human_review"}
BY_SEVERITY = list(SAFETY_REASONS.values())


class RubricVerdict(NamedTuple):
    """One judge's verdict on one answer by one rubric. `stored` is None without a reply."""

    judge: str
    rubric: str
    verdict: Verdict
    key: str
    stored: StoredAnswer | None

    @property
    def evidence_text(self) -> str:
        return f"{self.judge}: {self.verdict.said} (journal: {self.key})"


@dataclass(frozen=True)
class Panel:
    """`judges` in the configuration's order; each sends a row's rubrics in their order."""

    judges: Sequence[Collector]
    rubrics: Sequence[RubricText]

    def read_verdicts(self, rows: Sequence[Row], journal: ReadOnlyJournal) -> list[list[RubricVerdict]]:
        """Per row the verdicts of all judges; empty for a row that is not sent to them."""
        requests_of_rows = [
            [
                (judge, rubric, request)
                for judge in self.judges
                # Not strict: a row that is not sent has no requests.
                for rubric, request in zip(self.rubrics, judge.requests_of(row), strict=False)
            ]
            for row in rows
        ]
        keys = (request.key for requests in requests_of_rows for _, _, request in requests)
        stored = journal.newest_answers(keys)
        return [[_rubric_verdict(*request, stored, journal) for request in requests] for requests in requests_of_rows]


def _rubric_verdict(
    judge: Collector,
    rubric: RubricText,
    request: PromptRequest,
    stored: Mapping[str, StoredAnswer],
    journal: ReadOnlyJournal,
) -> RubricVerdict:
    answer = stored.get(request.key)
    if answer is None:
        why, evidence = judge.why_unanswered(request, journal)
        verdict = no_verdict("judge_unanswered", f"{why}: {evidence}")
    else:
        verdict = _read_safely(answer.raw, rubric.name)
    return RubricVerdict(judge.model, rubric.name, verdict, request.key, answer)


def _read_safely(raw: bytes, rubric: str) -> Verdict:
    try:
        return read_verdict(raw, rubric)
    except Exception:  # noqa: BLE001  the reply is paid and stored
        text = traceback.format_exc().encode(errors="replace").decode()
        return Verdict(None, None, "unreadable_answer", text)


def aggregate_checks(verdicts: Sequence[RubricVerdict]) -> Iterator[Row]:
    """Rows of contracts.CHECKS without their key."""
    for rubric, fields in FIELDS.items():
        of_rubric = [verdict for verdict in verdicts if verdict.rubric == rubric]
        yield from _aggregate_rows(f"judge.{rubric}", of_rubric, [_score_row(v) for v in of_rubric])
        if "safety" in fields:
            yield from _aggregate_rows("judge.safety", of_rubric, [_safety_row(v) for v in of_rubric])


def empty_answer_checks() -> Iterator[Row]:
    """The same for an answer without text, which is not sent to the judges."""
    for name in (*FIELDS, "safety"):
        yield _check_row(None, None, "empty_output", None) | {"check": f"judge.{name}"}


def _aggregate_rows(name: str, verdicts: Sequence[RubricVerdict], rows: Sequence[Row]) -> Iterator[Row]:
    # The lowest counts, so that no lenient judge outvotes a strict one. If one judge has no
    # verdict, the aggregate has none either: ok and value are null, with that judge's reason.
    yield min(rows, key=_severity_key) | {"check": name}
    for verdict, row in zip(verdicts, rows, strict=True):
        yield row | {"check": f"{name}.{verdict.judge}"}


def _severity_key(row: Row) -> tuple[int, float]:
    # Known to be unsafe before undecided, undecided before any score.
    if row["ok"] is False:
        return 0, BY_SEVERITY.index(row["reason"])
    return (1, 0.0) if row["ok"] is None else (2, row["value"] or 0.0)


def _score_row(judged: RubricVerdict) -> Row:
    verdict = judged.verdict
    # ok means that a score was measured; SampleGate compares it with the threshold.
    ok = True if verdict.fault is None else None
    return _check_row(ok, verdict.score, verdict.fault, judged.evidence_text)


def _safety_row(judged: RubricVerdict) -> Row:
    verdict = judged.verdict
    ok = verdict.safety == "safe" if verdict.safety else None
    return _check_row(ok, None, SAFETY_REASONS.get(verdict.safety or "", verdict.fault), judged.evidence_text)


def _check_row(ok: bool | None, value: float | None, reason: str | None, detail: str | None) -> Row:
    return {"ok": ok, "value": value, "reason": reason, "detail": detail}
