"""Data of the Run page, read from the files of the stages. Missing data is None or empty."""

from pathlib import Path

from nexa_distill.errors import NexaError
from nexa_distill.orchestration.run_folder import SessionState, latest_run, planned_sessions, read_session
from nexa_distill.orchestration.stages import STAGES, locate_path
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.atomic import Json, read_json_object
from nexa_distill.storage.manifests import load_manifest

FUNNEL_STEPS = {
    "prompts": "canonical",
    "without duplicates": "raw_dataset",
    "answered": "collected_dataset",
    "pass the rules": "rule_filtered",
    "kept by SampleGate": "filtered_dataset",
    "packaged": "sft_parquet",
}


def count_funnel(storage: Storage) -> list[Json]:
    manifests = ((step, load_manifest(storage.path_of(key), storage)) for step, key in FUNNEL_STEPS.items())
    return [{"step": step, "rows": manifest["count"]} for step, manifest in manifests if manifest]


def count_reasons(storage: Storage) -> list[Json]:
    report = load_gate_report(storage)
    counts = report["reject_reason_counts"] if report else {}
    rows = [{"reason": reason, "answers": count} for reason, count in counts.items()]
    return sorted(rows, key=lambda row: -row["answers"])


def load_gate_report(storage: Storage) -> Json | None:
    return read_json_object(storage.path_of("reports") / "sample_gate" / "gate_report.json")


def load_cost_report(storage: Storage) -> Json | None:
    return read_json_object(storage.path_of("reports") / "cost_report.json")


def stage_timings(config: DistillConfig) -> list[Json]:
    rows = []
    for stage in STAGES:
        manifest = load_manifest(locate_path(stage.outputs[0], config), config.storage)
        if manifest:
            keys = {"rows_in": "rows in", "cost_usd": "US$"}
            columns = ("rows_in", "kept", "rejected", "seconds", "cost_usd")
            rows.append({"stage": stage.name} | {keys.get(c, c): manifest[c] for c in columns})
    return rows


def metrics_path(config: DistillConfig) -> Path:
    return load_yaml(Path(config.student), StudentConfig).metrics_path(config.storage)


def latest_sessions(config: DistillConfig) -> tuple[str | None, list[SessionState]]:
    """Name and sessions of the newest run with these files."""
    try:
        run_dir = latest_run(Path(config.storage.logs).resolve(), config.storage.root)
        if run_dir is None:
            return None, []
        return run_dir.name, [read_session(run_dir, name) for name in planned_sessions(run_dir)]
    except NexaError:
        return None, []
