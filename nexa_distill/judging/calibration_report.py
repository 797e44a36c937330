"""`judge calibrate`: writes reports/judge/calibration.{json,md,html} from stored scores.

Reads judge_checks, the annotations (JSONL) and the thresholds of SampleGate.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_distill.annotation.annotations import Key
from nexa_distill.contracts import RUBRICS, TABLES
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.judging import calibration
from nexa_distill.judging.calibration import HumanDecisions
from nexa_distill.reporting.templates import render_template
from nexa_distill.settings.filters import load_filter_config
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import write_json, write_text
from nexa_distill.storage.manifests import refuse_stale, run_id, sealed_hash, utc_now
from nexa_distill.storage.tables import read_batches

Figures = dict[str, Any]
NAMED = 5  # unknown answers that are named
KINDS = {"kappa": "after", "precision": "teacher", "recall": "before"}  # colours of the plot


def write_calibration(
    config: DistillConfig, annotations: Path | None = None, checks: Path | None = None, report: Path | None = None
) -> Iterator[str]:
    """Write the three files; yields the headline.

    Raises InputMissing (66) if the judge was not run, InputError (65) for a bad annotation or if
    no judged answer has a human decision.
    """
    storage = config.storage
    checks = checks or storage.path_of("judge_checks")
    sealed_hash(checks, storage)
    refuse_stale(checks, storage)
    annotations = annotations or storage.path_of("annotations")
    report = report or storage.path_of("reports") / "judge" / "calibration.json"
    decided = calibration.read_decisions(annotations)
    gate = load_filter_config(config.filters).sample_gate
    limits = {rubric.name: gate.score_thresholds[rubric.check_name] for rubric in RUBRICS}
    figures = _calibration_figures(decided, _load_scores(checks), limits, annotations, checks)
    write_json(report, figures)
    write_text(report.with_suffix(".md"), render_markdown(figures))
    write_text(report.with_suffix(".html"), render_page(figures))
    yield from figures["headline"]
    yield f"judge: {report.with_suffix('.html')} (and .md, .json beside it)"


def _load_scores(checks: Path) -> dict[str, dict[Key, float | None]]:
    """Check -> answer -> score, None without a verdict."""
    scores: dict[str, dict[Key, float | None]] = {}
    columns = ["sample_id", "attempt", "check", "value"]
    for batch in read_batches(checks, TABLES["judge_checks"], columns=columns):
        for row in batch.to_pylist():
            if row["check"].split(".")[1] != "safety":
                key = row["sample_id"], row["attempt"]
                scores.setdefault(row["check"], {})[key] = row["value"]
    if not scores:
        raise InputMissing(
            f"{checks}: contains no scores: judge: not run; name judges in judging.judges and run "
            "`python -m nexa_distill.judge`"
        )
    return scores


def _calibration_figures(
    decided: HumanDecisions,
    scores: Mapping[str, Mapping[Key, float | None]],
    limits: Mapping[str, float],
    annotations: Path,
    checks: Path,
) -> Figures:
    judged = {key for of in scores.values() for key in of}
    unknown = sorted((decided.agreed.keys() | set(decided.disputed)) - judged)
    if not decided.agreed.keys() & judged:
        raise InputError(
            f"{annotations}: has no undisputed decision on any of the {len(judged)} judged answers "
            f"in {checks}; {len(unknown)} decisions are on other answers"
        )
    by_check = {name: _check_figures(name, of, decided, limits) for name, of in scores.items()}
    return {
        "run_id": run_id(),
        "headline": [_headline_sentence(name, figures) for name, figures in by_check.items()],
        "answers_decided": len(decided.agreed),
        "answers_disputed": len(decided.disputed),
        "annotators": len(decided.annotators),
        "accepted": sum(decided.agreed.values()),
        "unknown_answers": len(unknown),
        "unknown_named": [list(key) for key in unknown[:NAMED]],
        "bootstrap": {"draws": calibration.DRAWS, "seed": calibration.SEED, "level": calibration.LEVEL},
        "checks": by_check,
        "created_at": utc_now(),
    }


def _check_figures(
    name: str, of: Mapping[Key, float | None], decided: HumanDecisions, limits: Mapping[str, float]
) -> Figures:
    scores = {key: score for key, score in of.items() if score is not None}
    threshold = limits[name.split(".")[1]]
    now = calibration.count_agreement(scores, decided.agreed, threshold)
    points = calibration.agreement_curve(scores, decided.agreed)
    return {
        "answers": sum(now),
        "without_verdict": sum(of[key] is None for key in decided.agreed if key in of),
        "threshold": threshold,
        **now._asdict(),
        "kappa": now.cohens_kappa,
        "kappa_interval": now.kappa_interval(),
        "best_threshold": calibration.best_threshold(points),
        "curve": points,
    }


def _headline_sentence(name: str, check: Figures) -> str:
    highest = "" if check["best_threshold"] is None else f"; highest at {check['best_threshold']:g}"
    return f"{name}: kappa {_kappa_text(check)} at {check['threshold']:g} over {check['answers']} answers{highest}"


def _kappa_text(check: Figures) -> str:
    if check["kappa"] is None:
        return "not defined"
    low_high = check["kappa_interval"]
    interval = "no interval" if low_high is None else f"{low_high[0]:.2f} to {low_high[1]:.2f}"
    return f"{check['kappa']:.2f} ({interval})"


def render_markdown(report: Figures) -> str:
    """The report as Markdown."""
    context = report | {"facts": _list_facts(report), "method": calibration.__doc__, "kappa_text": _kappa_text}
    return render_template("calibration.md.j2", **context)


def render_page(report: Figures) -> str:
    """A self-contained HTML page with a plot per check."""
    curves = {name: _curve_lines(check["curve"]) for name, check in report["checks"].items()}
    context = report | {"facts": _list_facts(report), "curves": curves, "curve_names": ", ".join(KINDS)}
    return render_template("calibration.html.j2", **context)


def _list_facts(report: Figures) -> list[str]:
    return render_template("calibration_facts.md.j2", **report).splitlines()


def _curve_lines(curve: Sequence[Figures]) -> list[tuple[str, list[tuple[float, float]], str]]:
    return [
        (figure, [(p["threshold"], p[figure]) for p in curve if p[figure] is not None], kind)
        for figure, kind in KINDS.items()
    ]
