"""Counts and scores per judge in one run, and the judge's quality report."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from nexa_distill.collection.answers.completions import cost_usd, parse_answer
from nexa_distill.contracts import Row
from nexa_distill.judging.aggregation import Panel, RubricVerdict
from nexa_distill.judging.rubrics import FIELDS
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import Price

FAULTS = ("judge_unparseable", "judge_out_of_range", "judge_unanswered", "unreadable_answer")


@dataclass
class JudgeStatistics:
    """Of one judge. Scores are 0..1, by rubric."""

    price: Price | None
    verdicts: Counter[str | None] = field(default_factory=Counter)  # replies to real answers by fault; None = a verdict
    scores: dict[str, list[float]] = field(default_factory=dict)
    # By canary first; null = no verdict.
    canaries: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    usd: float | None = None  # with canaries; None while no reply has a known cost
    silence: str = ""  # why the last missing reply is missing
    unreadable: str = ""  # the start of the last reply that could not be parsed

    def add_verdict(self, judged: RubricVerdict, canary: str | None) -> None:
        verdict = judged.verdict
        if canary:
            by_rubric = self.canaries.setdefault(canary, {})
            by_rubric.setdefault(judged.rubric, []).append(verdict.score)
        else:
            self.verdicts[verdict.fault] += 1
            if verdict.score is not None:
                self.scores.setdefault(judged.rubric, []).append(verdict.score)
        if verdict.fault == "judge_unparseable":
            self.unreadable = verdict.said
        if judged.stored is None:
            self.silence = verdict.said
        # Such a reply raises in the parser, and would raise here again.
        elif verdict.fault != "unreadable_answer":
            cost = cost_usd(parse_answer(judged.stored.raw), self.price)
            self.usd = self.usd if cost is None else (self.usd or 0.0) + cost

    def to_report(self) -> Row:
        means = {name: fmean(scores) for name, scores in self.scores.items() if scores}
        return {
            "asked": self.verdicts.total(),
            "verdicts": self.verdicts[None],
            **{fault: self.verdicts[fault] for fault in FAULTS},
            **{f"mean_{name}": means.get(name) for name in FIELDS},
            "usd": self.usd,
            "canary_scores": self.canaries,
        }


@dataclass
class JudgeSummary:
    """`reasons` counts each answer with a check that is not ok once, under its first reason."""

    judges: dict[str, JudgeStatistics]
    answers: int = 0
    requests: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def for_panel(cls, panel: Panel) -> "JudgeSummary":
        return cls({judge.model: JudgeStatistics(judge.model_price) for judge in panel.judges})

    @property
    def total_usd(self) -> float | None:
        """The cost of all verdicts in the tables; None if none has a known cost."""
        costs = [judge.usd for judge in self.judges.values() if judge.usd is not None]
        return sum(costs) if costs else None

    def add_answer(self, verdicts: Sequence[RubricVerdict], checks: Iterable[Row], canary: str | None) -> None:
        for judged in verdicts:
            self.judges[judged.judge].add_verdict(judged, canary)
        if canary:
            return
        self.answers += 1
        # Names of per-judge checks have a second dot.
        aggregates = [row for row in checks if row["check"].count(".") == 1]
        self.scores += [row["value"] for row in aggregates if row["value"] is not None]
        if failed := [row["reason"] for row in aggregates if not row["ok"]]:
            self.reasons[failed[0]] += 1

    def write_report(self, path: Path, versions: dict[str, str]) -> None:
        """Write the quality report (JSON, Markdown); `versions`: rubric -> version."""
        low_high = (min, max, fmean) if self.scores else ()
        stage_reports.write_quality_report(
            path,
            stage="judge",
            total=self.answers,
            reject_reason_counts=self.reasons,
            judge_scores=dict(zip(("min", "max", "mean"), (f(self.scores) for f in low_high), strict=False)) or None,
            judges={name: judge.to_report() for name, judge in self.judges.items()},
            notes=[*(f"rubric {name}, version {v}" for name, v in versions.items()), *self.warnings],
        )
