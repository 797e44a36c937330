"""The judges of a run, and what their verdicts on one answer come to.

Rows of contracts.CHECKS, for each of the rubrics a row that all judges together made, then one per
judge (`judge.factuality.MODEL`):

  judge.factuality  the lowest of the judges' scores, 0..1
  judge.reasoning   the same, by the other rubric
  judge.safety      the gravest of their words; ok only when every judge says safe

The lowest counts, so that no lenient judge outvotes a strict one. `ok` of a score means that it was
measured: what is enough is SampleGate's to say. Where one judge has no verdict there is none: ok
and value are null, and its reason stands there.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nexa_distill.collection.collector import Collector
from nexa_distill.collection.requests.body import PromptRequest
from nexa_distill.journal.journal import Answered, ReadOnlyJournal
from nexa_distill.judging.rubrics import FIELDS, Rubric
from nexa_distill.judging.verdict_parser import Verdict, no_verdict, read_verdict

Row = dict[str, Any]

UNSAFE = {"critical": "critical_safety", "review": "requires_human_review"}
GRAVEST = list(UNSAFE.values())


class Judged(NamedTuple):
    """One judge's word on one answer by one rubric. `stored` is None when it gave none."""

    judge: str
    rubric: str
    verdict: Verdict
    key: str
    stored: Answered | None

    @property
    def evidence(self) -> str:
        """For a person: who said what, and where the whole of it is."""
        return f"{self.judge}: {self.verdict.said} (journal: {self.key})"


@dataclass(frozen=True)
class Panel:
    """`judges` in the configuration's order; each asks a row's rubrics in theirs."""

    judges: Sequence[Collector]
    rubrics: Sequence[Rubric]

    def read(self, rows: Sequence[Row], journal: ReadOnlyJournal) -> list[list[Judged]]:
        """What every judge said of each row; of a row that nobody is asked about, nothing."""
        asked = [
            [
                (judge, rubric, request)
                for judge in self.judges
                for rubric, request in zip(self.rubrics, judge.requests_of(row), strict=False)
            ]
            for row in rows
        ]
        keys = (request.key for requests in asked for _, _, request in requests)
        stored = journal.answers(keys)
        return [[_judged(*one, stored, journal) for one in requests] for requests in asked]


def _judged(
    judge: Collector, rubric: Rubric, request: PromptRequest, stored: Mapping[str, Answered],
    journal: ReadOnlyJournal,
) -> Judged:  # fmt: skip
    answer = stored.get(request.key)
    if answer is None:
        why, evidence = judge.why_unanswered(request, journal)
        verdict = no_verdict("judge_unanswered", f"{why}: {evidence}")
    else:
        verdict = _read(answer.raw, rubric.name)
    return Judged(judge.model, rubric.name, verdict, request.key, answer)


def _read(raw: bytes, rubric: str) -> Verdict:
    """A bug in reading a verdict sets this answer aside, not the run; it is read again later."""
    try:
        return read_verdict(raw, rubric)
    except Exception:  # noqa: BLE001  the reply is paid and stored
        text = traceback.format_exc().encode(errors="replace").decode()
        return Verdict(None, None, "unreadable_answer", text)


def checks_of(said: Sequence[Judged]) -> Iterator[Row]:
    """Rows of contracts.CHECKS without their key."""
    for rubric, fields in FIELDS.items():
        mine = [one for one in said if one.rubric == rubric]
        yield from _together(f"judge.{rubric}", mine, [_score(one) for one in mine])
        if "safety" in fields:
            yield from _together("judge.safety", mine, [_safety(one) for one in mine])


def nothing_to_judge() -> Iterator[Row]:
    """The same for an answer without text, which no judge is shown."""
    for name in ("factuality", "reasoning", "safety"):
        yield _row(None, None, "empty_output", None) | {"check": f"judge.{name}"}


def _together(name: str, said: Sequence[Judged], rows: Sequence[Row]) -> Iterator[Row]:
    yield min(rows, key=_lowest_first) | {"check": name}
    for one, row in zip(said, rows, strict=True):
        yield row | {"check": f"{name}.{one.judge}"}


def _lowest_first(row: Row) -> tuple[int, float]:
    """Known to be unsafe, then in doubt, then the lowest score."""
    if row["ok"] is False:
        return 0, GRAVEST.index(row["reason"])
    return (1, 0.0) if row["ok"] is None else (2, row["value"] or 0.0)


def _score(one: Judged) -> Row:
    verdict = one.verdict
    ok = True if verdict.fault is None else None
    return _row(ok, verdict.score, verdict.fault, one.evidence)


def _safety(one: Judged) -> Row:
    verdict = one.verdict
    ok = verdict.safety == "safe" if verdict.safety else None
    return _row(ok, None, UNSAFE.get(verdict.safety or "", verdict.fault), one.evidence)


def _row(ok: bool | None, value: float | None, reason: str | None, detail: str | None) -> Row:
    return {"ok": ok, "value": value, "reason": reason, "detail": detail}
