"""How well a student's scores agree with its teacher's, prompt by prompt. Pure.

Scores are 0..1. `matched` are the prompts that both have a score for; all figures but the counts
are over these; None = not defined (no pair, or no variance for a correlation). Spearman is
Pearson's coefficient of the ranks, ties at their mean rank.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nexa_distill.reporting.stage_reports import shown

TOLERANCES = (0.0, 0.05, 0.1, 0.2)
UNDEFINED = "not defined (no pair of scores, or one side's are all alike)"
EPSILON = 1e-9  # 0.3 - 0.1 is a hair more than 0.2


def score_agreement(
    teacher: Mapping[str, float], student: Mapping[str, float], pass_threshold: float
) -> dict[str, Any]:
    """The report: `{sample_id: score}` of each; a score of at least `pass_threshold` passes.

    `total` counts the teacher's scores, `missing` those without one of the student.
    """
    keys = sorted(teacher.keys() & student.keys())
    both = pd.DataFrame(
        {"teacher": [teacher[k] for k in keys], "student": [student[k] for k in keys]}, dtype=float
    )
    gap = (both["teacher"] - both["student"]).abs()
    passes = both >= pass_threshold
    return {
        "total": len(teacher),
        "matched": len(keys),
        "missing": len(teacher) - len(keys),
        "teacher_mean": _mean(both["teacher"]),
        "student_mean": _mean(both["student"]),
        "mae": _mean(gap),
        "rmse": None if gap.empty else float(np.sqrt((gap**2).mean())),
        **{f"agreement_at_{t}": _mean(gap <= t + EPSILON) for t in TOLERANCES},
        "pearson": _correlation(both),
        "spearman": _correlation(both.rank()),
        "pass_threshold": pass_threshold,
        "pass_agreement": _mean(passes["teacher"] == passes["student"]),
    }


def _mean(values: "pd.Series[Any]") -> float | None:
    return None if values.empty else float(values.mean())


def _correlation(both: pd.DataFrame) -> float | None:
    if len(both) < 2 or (both.nunique() < 2).any():
        return None
    return float(both["teacher"].corr(both["student"]))


def markdown(report: Mapping[str, Any]) -> str:
    """The same for a person."""
    lines = ["# Scores of teacher and student", "", "| measure | value |", "|---|---|"]
    lines += [
        f"| {name} | {UNDEFINED if value is None else shown(value)} |"
        for name, value in report.items()
    ]
    return "\n".join(lines) + "\n"
