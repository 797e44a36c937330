"""What each judge did in a run, in figures, and the report made of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from nexa_distill.collection.answers.completions import cost_usd, parse_answer
from nexa_distill.judging.aggregation import Judged, Panel
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import Price

Row = dict[str, Any]
FAULTS = ("judge_unparseable", "judge_out_of_range", "judge_unanswered", "unreadable_answer")


@dataclass
class JudgeFigures:
    """Of one judge. `verdicts` counts its replies to real answers by fault, None = a verdict.

    Scores are 0..1, by rubric; those of canaries by canary first, null = no verdict. `usd` counts
    canaries too; None while no reply has a known cost. `silence`: the API's word for no reply;
    `unreadable`: the start of the last reply that is no verdict.
    """

    price: Price | None
    verdicts: Counter[str | None] = field(default_factory=Counter)
    scores: dict[str, list[float]] = field(default_factory=dict)
    canaries: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    usd: float | None = None
    silence: str = ""
    unreadable: str = ""

    def add(self, one: Judged, canary: str | None) -> None:
        """Count one reply."""
        score = one.verdict.score
        if canary:
            by_rubric = self.canaries.setdefault(canary, {})
            by_rubric.setdefault(one.rubric, []).append(score)
        else:
            self.verdicts[one.verdict.fault] += 1
            if score is not None:
                self.scores.setdefault(one.rubric, []).append(score)
        if one.verdict.fault == "judge_unparseable":
            self.unreadable = one.verdict.said
        if one.stored is None:
            self.silence = one.verdict.said
        elif one.verdict.fault != "unreadable_answer":
            cost = cost_usd(parse_answer(one.stored.raw), self.price)
            self.usd = self.usd if cost is None else (self.usd or 0.0) + cost

    def report(self) -> Row:
        """As JSON; a mean over nothing is null."""
        means = {name: fmean(scores) for name, scores in self.scores.items() if scores}
        return {
            "asked": self.verdicts.total(),
            "verdicts": self.verdicts[None],
            **{fault: self.verdicts[fault] for fault in FAULTS},
            "mean_factuality": means.get("factuality"),
            "mean_reasoning": means.get("reasoning"),
            "usd": self.usd,
            "canary_scores": self.canaries,
        }


@dataclass
class JudgeSummary:
    """`reasons` counts each answer that has a check without ok once, under its first reason."""

    judges: dict[str, JudgeFigures]
    answers: int = 0
    requests: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, panel: Panel) -> "JudgeSummary":
        """Nothing counted yet."""
        return cls({judge.model: JudgeFigures(judge.price) for judge in panel.judges})

    @property
    def usd(self) -> float | None:
        """Of all verdicts in the tables; None when none has a known cost."""
        known = [judge.usd for judge in self.judges.values() if judge.usd is not None]
        return sum(known) if known else None

    def add(self, said: Sequence[Judged], checks: Iterable[Row], canary: str | None) -> None:
        """One answer or canary."""
        for one in said:
            self.judges[one.judge].add(one, canary)
        if canary:
            return
        self.answers += 1
        together = [row for row in checks if row["check"].count(".") == 1]
        self.scores += [row["value"] for row in together if row["value"] is not None]
        if wrong := [row["reason"] for row in together if not row["ok"]]:
            self.reasons[wrong[0]] += 1

    def report(self, path: Path, versions: dict[str, str]) -> None:
        """Write the quality report, JSON and Markdown; `versions` of the rubrics by name."""
        low_high = (min, max, fmean) if self.scores else ()
        stage_reports.quality_report(
            path, stage="judge", total=self.answers, reject_reason_counts=self.reasons,
            judge_scores=dict(zip(("min", "max", "mean"), (f(self.scores) for f in low_high),
                                  strict=False)) or None,
            judges={name: judge.report() for name, judge in self.judges.items()},
            notes=[*(f"rubric {name}, version {v}" for name, v in versions.items()),
                   *self.warnings],
        )  # fmt: skip
