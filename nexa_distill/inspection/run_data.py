"""What the Run page shows, read from what the stages leave on disk. Absent is None or empty.

The pages look while stages write: a half-written last line is left for the next look.
"""

import json
from pathlib import Path
from typing import Any

from nexa_distill.errors import NexaError
from nexa_distill.orchestration.run_folder import (
    SessionState,
    latest_run,
    planned_sessions,
    read_session,
)
from nexa_distill.orchestration.stages import STAGES, locate
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.manifests import load_manifest

Json = dict[str, Any]
STEPS = {
    "prompts": "canonical",
    "without duplicates": "raw_dataset",
    "answered": "collected_dataset",
    "pass the rules": "rule_filtered",
    "kept by SampleGate": "filtered_dataset",
    "packaged": "sft_parquet",
}


def read_json(path: Path) -> Json | None:
    """A report, or None when it is not there (or is no report)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def funnel(storage: Storage) -> list[Json]:
    """Rows after each step that has been made, from the manifests."""
    found = ((step, load_manifest(storage.path(key), storage)) for step, key in STEPS.items())
    return [{"step": step, "rows": manifest["count"]} for step, manifest in found if manifest]


def reasons(storage: Storage) -> list[Json]:
    """Rejected prompts and answers by their first reason, the most frequent first."""
    report = read_json(storage.path("reports") / "sample_gate" / "gate_report.json")
    counts = report["reject_reason_counts"] if report else {}
    rows = [{"reason": reason, "answers": count} for reason, count in counts.items()]
    return sorted(rows, key=lambda row: -row["answers"])


def gate_facts(storage: Storage) -> Json | None:
    """SampleGate's report."""
    return read_json(storage.path("reports") / "sample_gate" / "gate_report.json")


def costs(storage: Storage) -> Json | None:
    """The cost report's figures."""
    return read_json(storage.path("reports") / "cost_report.json")


def timing(config: DistillConfig) -> list[Json]:
    """Seconds of each stage that is sealed, and its rows, in the order of the work."""
    rows = []
    for stage in STAGES:
        manifest = load_manifest(locate(stage.outputs[0], config), config.storage)
        if manifest:
            names = {
                "rows_in": "rows in",
                "kept": "kept",
                "rejected": "rejected",
                "seconds": "seconds",
                "cost_usd": "US$",
            }
            rows.append({"stage": stage.name} | {new: manifest[old] for old, new in names.items()})
    return rows


def metrics_path(config: DistillConfig) -> Path:
    """Where the configured student's training writes its progress."""
    student = load_yaml(Path(config.student), StudentConfig)
    return config.storage.path("students") / student.run_name / "metrics.jsonl"


def curve(path: Path) -> list[Json]:
    """{step, kind, loss}: the loss per step, and on the val split where it was measured."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        for kind, name in (("training", "loss"), ("validation", "val_loss")):
            if row.get(name) is not None:
                rows.append({"step": row["step"], "kind": kind, "loss": row[name]})
    return rows


def sessions(config: DistillConfig) -> tuple[str | None, list[SessionState]]:
    """The newest run's name and its sessions; (None, []) when nothing has run."""
    try:
        run_dir = latest_run(Path(config.storage.logs).resolve())
        if run_dir is None:
            return None, []
        return run_dir.name, [read_session(run_dir, name) for name in planned_sessions(run_dir)]
    except NexaError:
        return None, []
