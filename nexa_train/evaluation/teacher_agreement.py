"""Do student and teacher earn the same scores on the held-out prompts?

Reads:  the answers of both (`collected_dataset`, `student_outputs`), what the gates said of each
        (`gate_results.gate_files`), the held-out prompts
Writes: `reports/evaluation/score_agreement.{json,md}`
Keeps:  every held-out prompt that the teacher answered; one that the student has no score for is
        counted as missing

A score (0..1) is execution's (1.0 matches, 0.5 executes, 0.0); where nothing was executed the mean
of the judges' scores; without judges 1.0 for an answer that passes the gates and 0.0 for one that
does not. An answer that the rules reject, and that nobody looks at further, has 0.0; what could not
be decided has no score. From `judge_f_threshold` on a score passes.

All figures but the counts are over the prompts that both have a score for (`matched`); None = not
defined (no pair, or no variance for a correlation). Spearman is Pearson's coefficient of the ranks,
ties at their mean rank.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from nexa_distill.contracts import TABLES
from nexa_distill.reporting.stage_reports import shown
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.atomic import write_json, write_text
from nexa_distill.storage.manifests import run_id, utc_now
from nexa_distill.storage.tables import read_table
from nexa_train.evaluation.gate_results import gate_files
from nexa_train.evaluation.held_out_prompts import held_out
from nexa_train.evaluation.metrics import ANSWERS

Rows = Sequence[Mapping[str, Any]]
JUDGED = ("judge.factuality", "judge.reasoning")


def scores(
    answered: Sequence[str], passed_rules: Rows, checks: Rows, kept: Rows
) -> dict[str, float]:
    """Score by `sample_id`. Rows of first attempts only; `checks` of execution and of judges."""
    kind = "exec." if any(row["check"] == "exec.score" for row in checks) else "judge."
    wanted = ("exec.score",) if kind == "exec." else JUDGED
    measured: dict[str, list[float | None]] = {}
    for row in checks:
        if row["check"] in wanted:
            measured.setdefault(row["sample_id"], []).append(row["value"])
    passing, looked_at = ({row["sample_id"] for row in rows} for rows in (kept, passed_rules))
    found: dict[str, float] = {}
    for sample in answered:
        values = measured.get(sample)
        if not measured or sample not in looked_at:
            found[sample] = float(sample in passing)
        elif values and None not in values:
            found[sample] = fmean(value for value in values if value is not None)
    return found


def _scores(config: DistillConfig, model: str, wanted: set[str]) -> dict[str, float]:
    files, key = gate_files(config.storage, model), ANSWERS[model]

    def rows(path: Path, table: str) -> list[dict[str, Any]]:
        found = read_table(path, TABLES[table]).to_pylist()
        return [r for r in found if r["sample_id"] in wanted and r["attempt"] == 0]

    answered = [row["sample_id"] for row in rows(config.storage.path(key), key)]
    checks = rows(files.exec_checks, "exec_checks") + rows(files.judge_checks, "judge_checks")
    passed, kept = rows(files.passed_rules, "rule_filtered"), rows(files.kept, "filtered_dataset")
    return scores(answered, passed, checks, kept)


def run(config: DistillConfig, student: StudentConfig) -> Path:
    """Write the report, unless its figures are what it says already; returns its path."""
    prompts = read_table(config.storage.path("raw_dataset"), TABLES["raw_dataset"])
    wanted = {row["sample_id"] for row in held_out(prompts, student.generate)}
    limit = load_yaml(Path(config.filters), FilterConfig).sample_gate.judge_f_threshold
    teacher, after = (_scores(config, model, wanted) for model in ("teacher", "after"))
    figures = score_agreement(teacher, after, limit)
    path = config.storage.path("reports") / "evaluation" / "score_agreement.json"
    if not (path.is_file() and figures.items() <= json.loads(path.read_text()).items()):
        write_json(path, {"run_id": run_id(), **figures, "created_at": utc_now()})
        write_text(path.with_suffix(".md"), markdown(figures))
    return path


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
