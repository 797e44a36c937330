"""Reports about runs: quality of a stage's rows, and time between stages.

Writes `reports/<stage>/quality_report.json` and `reports/timing_report.json`, each with a Markdown
twin. A missing measurement is null, never 0.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from nexa_distill.reporting.templates import render_template
from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.atomic import read_json_object, write_json, write_text
from nexa_distill.storage.manifests import run_id, utc_now

# The label that a stage leads to. Other stages have no timing.
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
LABELS = ("raw", *dict.fromkeys(STAGE_LABELS.values()))


def write_report(path: Path, figures: Mapping[str, Any], template: str, **context: Any) -> dict[str, Any]:
    """Write the figures, with run and time, to `path` (JSON) and beside it (Markdown), and return them.

    Equal figures leave both files, with their run and time, as they are.
    """
    written = read_json_object(path) or {}
    if figures.items() <= written.items() and path.with_suffix(".md").is_file():
        return written
    report = {"run_id": run_id(), **figures, "created_at": utc_now()}
    write_json(path, report)
    write_text(path.with_suffix(".md"), render_template(template, **report, **context))
    return report


def write_quality_report(
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
    `min`, `max` and `mean`, 0..1. Rates are shares of the measured rows. `judges`: statistics per
    judge (judging/statistics.py); without judges the report has no such key. `not_applied`: per
    rule the number of answers by language that the rule has no list for.
    """
    rejected = sum(reject_reason_counts.values())
    figures = {
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
        **({} if not_applied is None else {"not_applied": {k: dict(v) for k, v in not_applied.items()}}),
    }
    return write_report(path, figures, "quality_report.md.j2")


class TimingEvent(NamedTuple):
    """A run spent `seconds` in a stage, to reach a label if the stage has one. `at`: its end, UTC."""

    run_id: str
    label: str | None
    at: str
    seconds: float
    stage: str | None = None  # None in events of earlier versions


def record_timing(
    storage: Storage,
    label: str | None,
    seconds: float,
    *,
    run: str | None = None,
    at: str | None = None,
    stage: str | None = None,
) -> None:
    """Append one timing event: `run` (default: this run) spent `seconds` to reach `label`.

    A repeated event (run, label, stage, time) counts once.
    """
    if label is not None and label not in LABELS:
        raise ValueError(f"{label!r} is not one of {LABELS}")
    event = TimingEvent(run or run_id(), label, at or utc_now(), seconds, stage)._asdict()
    path = _events_path(storage)
    line = json.dumps(event) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and not _ends_line(file):
            line = "\n" + line  # the last line is incomplete after a crash
        file.write(line.encode())


def _ends_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def write_timing_report(
    storage: Storage, *, stages: Sequence[str] = (), rows: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Any]:
    """Summarise all timing events in `reports/timing_report.{json,md}`, in seconds.

    In `a__to__b`, `a` is the nearest label before `b` that any run has reached. `total` is the sum
    of all observations. One observation is the time of one run; repeated stages add up. `stages`: the
    stages to summarise by name too. `rows`: by name, the seconds of each thing that is timed by itself.
    """
    # Manifests contain end and duration of their stage. The events file outlives them.
    _record_manifests(storage, stages)
    events = _load_events(storage)
    spent, of_stages = _sum_by_run(events, "label"), _sum_by_run(events, "stage")
    durations, before = {}, LABELS[0]
    for label in LABELS:
        if label in spent:
            durations[f"{before}__to__{label}"] = _summarize_seconds(list(spent[label].values()))
            before = label
    figures = {
        "labels": list(LABELS),
        "durations": durations,
        "stages": {name: _summarize_seconds(list(of_stages[name].values())) for name in stages if name in of_stages},
        "rows": {name: _summarize_seconds(seconds) for name, seconds in (rows or {}).items() if len(seconds)},
        "total": round(sum(sum(runs.values()) for runs in spent.values()), 3) if spent else None,
    }
    return write_report(storage.path_of("reports") / "timing_report.json", figures, "timing_report.md.j2")


def _sum_by_run(events: Iterable[TimingEvent], key: str) -> dict[str, dict[str, float]]:
    """By label or stage, the seconds of each run."""
    spent: dict[str, dict[str, float]] = {}
    for event in sorted(events, key=str):
        if name := getattr(event, key):
            runs = spent.setdefault(name, {})
            runs[event.run_id] = runs.get(event.run_id, 0.0) + event.seconds
    return spent


def _summarize_seconds(seconds: Sequence[float]) -> dict[str, float | None]:
    # One observation has no distribution.
    p50, p90, p95 = np.percentile(seconds, [50, 90, 95]).tolist() if len(seconds) > 1 else (None, None, None)
    values = {
        "min": min(seconds),
        "max": max(seconds),
        "mean": sum(seconds) / len(seconds),
        "p50": p50,
        "p90": p90,
        "p95": p95,
    }
    rounded = {name: None if value is None else round(value, 3) for name, value in values.items()}
    return {"count": len(seconds), **rounded}


def _events_path(storage: Storage) -> Path:
    return storage.path_of("reports") / "timing_events.jsonl"


def _record_manifests(storage: Storage, stages: Sequence[str]) -> None:
    recorded = {event[:4] + (stage,) for event in _load_events(storage) for stage in (event.stage, None)}
    for path in sorted(storage.path_of("manifests").glob("*/manifest.json")):
        stage = "train" if path.parent.name.startswith("train.") else path.parent.name
        label = STAGE_LABELS.get(stage)
        if label is None and stage not in stages:
            continue
        manifest = json.loads(path.read_text(encoding="utf-8"))
        run, at, seconds = manifest["run_id"], manifest["created_at"], manifest["seconds"]
        # An event of an earlier version has no stage: it is found by its label.
        if (run, label, at, seconds, None if label else stage) not in recorded:
            record_timing(storage, label, seconds, run=run, at=at, stage=stage)


def _load_events(storage: Storage) -> set[TimingEvent]:
    path = _events_path(storage)
    if not path.is_file():
        return set()
    events = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # incomplete after a crash; its manifest is recorded again
        events.add(TimingEvent(**event))
    return events
