"""Reports about runs: quality of a stage's rows, and time between stages.

Writes `reports/<stage>/quality_report.json` and `reports/timing_report.json`, each with a Markdown
twin beside it. A measurement that was not made is null, never 0.

Timing needs nothing from the stages: each manifest says when its stage finished and how long it
took. `timing_report` appends the manifests it has not seen to `reports/timing_events.jsonl`, which
outlives them, and summarises that file. One observation is what one run spent on one hand-off; a
stage that one run executed twice counts with both times.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.atomic import write_json, write_text
from nexa_distill.storage.manifests import run_id, utc_now

LABELS = (
    "raw",
    "canonical",
    "hashed",
    "teacher",
    "filtered",
    "eval",
    "selected",
    "distilled",
    "student_gen",
    "student_eval",
)
# The label that a stage's work leads to. A stage that is not here is no hand-off of the chain.
STAGE_LABELS = {
    "canonicalize": "canonical",
    "dedup": "hashed",
    "teacher": "teacher",
    "rules": "filtered",
    "exec": "eval",
    "judge": "eval",
    "sample_gate": "selected",
    "packaging": "distilled",
    "train": "distilled",
    "student_gen": "student_gen",
    "evaluation": "student_eval",
}


def quality_report(
    path: Path,
    *,
    stage: str,
    total: int,
    reject_reason_counts: Mapping[str, int],
    exec_pass_rate: float | None = None,
    gold_match_rate: float | None = None,
    judge_scores: Mapping[str, float | None] | None = None,
    exec_error_counts: Mapping[str, int] | None = None,
    judges: Mapping[str, Mapping[str, Any]] | None = None,
    not_applied: Mapping[str, Mapping[str, int]] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the report of a stage to `path` (JSON) and beside it (Markdown), and return it.

    `reject_reason_counts` counts each rejected row once, under its first reason; `judge_scores` has
    `min`, `max` and `mean`, 0..1. Rates are shares of the rows that were measured. `judges`: what
    each judge did (judging/statistics.py); the report of a stage that asks none has no such key.
    `not_applied`: by rule, the answers of each language that it has no list for.
    """
    rejected = sum(reject_reason_counts.values())
    report = {
        "run_id": run_id(),
        "stage": stage,
        "total": total,
        "kept": total - rejected,
        "rejected": rejected,
        "p_keep": (total - rejected) / total if total else None,
        "exec_pass_rate": exec_pass_rate,
        "gold_match_rate": gold_match_rate,
        "judge_score": dict(judge_scores or {"min": None, "max": None, "mean": None}),
        "reject_reason_counts": dict(reject_reason_counts),
        "exec_error_counts": None if exec_error_counts is None else dict(exec_error_counts),
        **({} if judges is None else {"judges": dict(judges), "notes": list(notes)}),
        **(
            {}
            if not_applied is None
            else {"not_applied": {k: dict(v) for k, v in not_applied.items()}}
        ),
        "created_at": utc_now(),
    }
    write_json(path, report)
    write_text(path.with_suffix(".md"), _quality_markdown(report))
    return report


def shown(value: float | None, *, share: bool = False) -> str:
    """A number for a person; `not run` for a measurement that was not made."""
    if value is None:
        return "not run"
    return f"{value:.1%}" if share else f"{value:,.3f}".rstrip("0").rstrip(".")


def not_applied_lines(counts: Mapping[str, Mapping[str, int]] | None) -> list[str]:
    """A table of the rules that were not applied, by language; nothing where all were."""
    if not counts:
        return []
    lines = ["", "| rule | not applied: no list for | answers |", "|---|---|---|"]
    for check, languages in sorted(counts.items()):
        ordered = sorted(languages.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"| {check} | {language_name(code)} | {count:,} |" for code, count in ordered]
    return lines


def language_name(code: str) -> str:
    """`zh`, and in words what is no language."""
    return {"zxx": "code or formulas, without prose"}.get(code, code)


def _quality_markdown(report: Mapping[str, Any]) -> str:
    judge = report["judge_score"]
    scores = ", ".join(f"{name} {shown(judge[name])}" for name in ("min", "mean", "max"))
    lines = [
        f"# Quality of {report['stage']}",
        "",
        f"Run {report['run_id']}, {report['created_at']}.",
        "",
        "| measure | value |",
        "|---|---|",
        f"| rows | {report['total']:,} |",
        f"| kept | {report['kept']:,} ({shown(report['p_keep'], share=True)}) |",
        f"| rejected | {report['rejected']:,} |",
        f"| executes | {shown(report['exec_pass_rate'], share=True)} |",
        f"| matches the known answer | {shown(report['gold_match_rate'], share=True)} |",
        f"| judge score (0..1) | {scores if judge['mean'] is not None else 'not run'} |",
    ]
    for title, counts in (
        ("first reason", report["reject_reason_counts"]),
        ("execution error", report["exec_error_counts"] or {}),
    ):
        if counts:
            lines += ["", f"| {title} | rows |", "|---|---|"]
            ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            lines += [f"| {name} | {count:,} |" for name, count in ordered]
    lines += not_applied_lines(report.get("not_applied"))
    if "judges" in report:
        lines += _judges(report["judges"])
        lines += ["", *(f"- {note}" for note in report["notes"])] if report["notes"] else []
    return "\n".join(lines) + "\n"


def _judges(judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What each judge did; its canaries with the scores that they got, not run without one."""
    if not judges:
        return ["", "judge: not run"]
    counts = [name for name in next(iter(judges.values())) if name != "canary_scores"]
    lines = ["", f"| judge | {' | '.join(counts)} |", "|---" * (len(counts) + 1) + "|"]
    for name, judge in judges.items():
        cells = (
            "unpriced" if key == "usd" and judge[key] is None else shown(judge[key])
            for key in counts
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| judge | canary | rubric | scores |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {canary} | {rubric} | {', '.join(_given(score) for score in scores)} |"
        for name, judge in judges.items()
        for canary, by_rubric in judge["canary_scores"].items()
        for rubric, scores in by_rubric.items()
    ]
    rate = "How many of them would have been kept, by today's thresholds, says SampleGate's report."
    return [*lines, "", rate]


def _given(score: float | None) -> str:
    return "none" if score is None else shown(score)


def record(
    storage: Storage, label: str, seconds: float, *, run: str | None = None, at: str | None = None
) -> None:
    """Append one timing event: `run` (this run) spent `seconds` on the hand-off to `label`.

    The same event (run, label, time) may be recorded twice; it counts once.
    """
    if label not in LABELS:
        raise ValueError(f"{label!r} is not one of {LABELS}")
    event = {"run_id": run or run_id(), "label": label, "seconds": seconds, "at": at or utc_now()}
    path = _events_path(storage)
    line = json.dumps(event) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and not _ends_line(file):
            line = "\n" + line  # after a line that a crash cut, start a new one
        file.write(line.encode())


def _ends_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def timing_report(storage: Storage) -> dict[str, Any]:
    """Summarise all hand-offs so far in `reports/timing_report.{json,md}`, in seconds.

    The first name of `a__to__b` is the nearest label before `b` that any run has reached. `total`
    is the sum of all observations.
    """
    _record_manifests(storage)
    spent: dict[str, dict[str, float]] = {}
    for run, label, _at, seconds in sorted(_events(storage)):
        runs = spent.setdefault(label, {})
        runs[run] = runs.get(run, 0.0) + seconds
    durations, before = {}, LABELS[0]
    for label in LABELS:
        if label in spent:
            durations[f"{before}__to__{label}"] = _summary(list(spent[label].values()))
            before = label
    report = {
        "run_id": run_id(),
        "labels": list(LABELS),
        "durations": durations,
        "total": round(sum(sum(runs.values()) for runs in spent.values()), 3) if spent else None,
        "created_at": utc_now(),
    }
    path = storage.path("reports") / "timing_report.json"
    if path.is_file():  # nothing has run since: not a byte changes
        written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if written["durations"] == durations:
            return written
    write_json(path, report)
    write_text(path.with_suffix(".md"), _timing_markdown(report))
    return report


def _summary(seconds: list[float]) -> dict[str, float]:
    p50, p90, p95 = np.percentile(seconds, [50, 90, 95]).tolist()
    values = {
        "min": min(seconds),
        "max": max(seconds),
        "mean": sum(seconds) / len(seconds),
        "p50": p50,
        "p90": p90,
        "p95": p95,
    }
    return {"count": len(seconds), **{name: round(value, 3) for name, value in values.items()}}


def _timing_markdown(report: Mapping[str, Any]) -> str:
    columns = ("count", "min", "mean", "p50", "p90", "p95", "max")
    lines = [
        "# Time between stages",
        "",
        f"Run {report['run_id']}, {report['created_at']}. Seconds; one observation per run.",
        "",
        f"| from | to | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, summary in report["durations"].items():
        values = " | ".join(shown(summary[column]) for column in columns)
        lines.append(f"| {name.replace('__to__', ' | ')} | {values} |")
    return "\n".join([*lines, "", f"Total: {shown(report['total'])}"]) + "\n"


def _events_path(storage: Storage) -> Path:
    return storage.path("reports") / "timing_events.jsonl"


def _record_manifests(storage: Storage) -> None:
    seen = _events(storage)
    for path in sorted(storage.path("manifests").glob("*/manifest.json")):
        stage = path.parent.name
        label = STAGE_LABELS.get("train" if stage.startswith("train.") else stage)
        if label is None:
            continue
        manifest = json.loads(path.read_text(encoding="utf-8"))
        run, at, seconds = manifest["run_id"], manifest["created_at"], manifest["seconds"]
        if (run, label, at, seconds) not in seen:
            record(storage, label, seconds, run=run, at=at)


def _events(storage: Storage) -> set[tuple[str, str, str, float]]:
    path = _events_path(storage)
    if not path.is_file():
        return set()
    events = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line cut by a crash; its manifest is recorded again
        events.add((event["run_id"], event["label"], event["at"], event["seconds"]))
    return events
