"""Agreement of the student's and the teacher's scores on the held-out prompts.

Reads:  the answers of both (`collected_dataset`, `student_outputs`), their gate results
        (`gate_results.gate_files`), the held-out prompts
Writes: `reports/evaluation/score_agreement.{json,md}`
Keeps:  every held-out prompt that the teacher answered; one without a score of the student is
        counted as missing

All figures but the counts are over the prompts with two scores (`matched`); None = not defined (no
pair, or no variance for a correlation). A score of at least `judge_f_threshold` passes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from nexa_distill.contracts import SCORE_REASONS, TABLES
from nexa_distill.reporting.stage_reports import write_report
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.tables import read_table
from nexa_train.evaluation.gate_results import first_attempts, gate_files
from nexa_train.evaluation.held_out_prompts import select_held_out
from nexa_train.evaluation.metrics import ANSWER_TABLES

Rows = Sequence[Mapping[str, Any]]
TOLERANCES = (0.0, 0.05, 0.1, 0.2)
EPSILON = 1e-9  # 0.3 - 0.1 is slightly more than 0.2


def score_answers(answered: Sequence[str], passed_rules: Rows, checks: Rows, kept: Rows) -> dict[str, float]:
    """Score 0..1 per `sample_id`. Rows of first attempts only; `checks` of execution and judges."""
    # Execution's score (1.0 matches, 0.5 executes, 0.0); without execution the mean of the judges'
    # scores; without judges 1.0 for an answer that passes the gates and 0.0 for any other.
    kind = "exec." if any(row["check"] == "exec.score" for row in checks) else "judge."
    names = ("exec.score",) if kind == "exec." else tuple(SCORE_REASONS)
    measured: dict[str, list[float | None]] = {}
    for row in checks:
        if row["check"] in names:
            measured.setdefault(row["sample_id"], []).append(row["value"])
    passing, scored = ({row["sample_id"] for row in rows} for rows in (kept, passed_rules))
    scores: dict[str, float] = {}
    for sample in answered:
        values = measured.get(sample)
        if not measured or sample not in scored:  # the rules rejected it: 0.0
            scores[sample] = float(sample in passing)
        elif values and None not in values:  # an undecided check leaves no score
            scores[sample] = fmean(value for value in values if value is not None)
    return scores


def _load_scores(config: DistillConfig, model: str, sample_ids: set[str]) -> dict[str, float]:
    files, key = gate_files(config.storage, model), ANSWER_TABLES[model]
    rows = partial(first_attempts, sample_ids=sample_ids)
    answered = [row["sample_id"] for row in rows(config.storage.path_of(key), key)]
    checks = rows(files.exec_checks, "exec_checks") + rows(files.judge_checks, "judge_checks")
    passed, kept = rows(files.passed_rules, "rule_filtered"), rows(files.kept, "filtered_dataset")
    return score_answers(answered, passed, checks, kept)


def run(config: DistillConfig, student: StudentConfig) -> Path:
    prompts = read_table(config.storage.path_of("raw_dataset"), TABLES["raw_dataset"])
    sample_ids = {row["sample_id"] for row in select_held_out(prompts, student.generate)}
    limit = load_yaml(Path(config.filters), FilterConfig).sample_gate.judge_f_threshold
    teacher, after = (_load_scores(config, model, sample_ids) for model in ("teacher", "after"))
    figures = score_agreement(teacher, after, limit)
    path = config.storage.path_of("reports") / "evaluation" / "score_agreement.json"
    write_report(path, figures, "score_agreement.md.j2", measures=figures)
    return path


def score_agreement(
    teacher: Mapping[str, float], student: Mapping[str, float], pass_threshold: float
) -> dict[str, Any]:
    """`total` counts the teacher's scores, `missing` those of them without a score of the student."""
    keys = sorted(teacher.keys() & student.keys())
    both = pd.DataFrame({"teacher": [teacher[k] for k in keys], "student": [student[k] for k in keys]}, dtype=float)
    gap = (both["teacher"] - both["student"]).abs()
    passes = both >= pass_threshold
    return {
        "total": len(teacher),
        "matched": len(keys),
        "missing": len(teacher) - len(keys),
        "teacher_mean": _mean_or_none(both["teacher"]),
        "student_mean": _mean_or_none(both["student"]),
        "mae": _mean_or_none(gap),
        "rmse": None if gap.empty else float(np.sqrt((gap**2).mean())),
        **{f"agreement_at_{t}": _mean_or_none(gap <= t + EPSILON) for t in TOLERANCES},
        "pearson": _correlation_or_none(both),
        "spearman": _correlation_or_none(both.rank()),  # Pearson's coefficient of ranks, ties at the mean
        "pass_threshold": pass_threshold,
        "pass_agreement": _mean_or_none(passes["teacher"] == passes["student"]),
    }


def _mean_or_none(values: "pd.Series[Any]") -> float | None:
    return None if values.empty else float(values.mean())


def _correlation_or_none(both: pd.DataFrame) -> float | None:
    # With equal scores on one side there is no variance: the coefficient would be NaN.
    if len(both) < 2 or (both.nunique() < 2).any():
        return None
    return float(both["teacher"].corr(both["student"]))
