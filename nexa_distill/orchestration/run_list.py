"""The runs of this project: the ones with names, and the newest of every other `storage.root`."""

import json
from collections.abc import Iterator
from pathlib import Path

from nexa_distill.console.cli import DEFAULT_CONFIG
from nexa_distill.errors import InputMissing, did_you_mean
from nexa_distill.orchestration.named_runs import RUNS
from nexa_distill.orchestration.run_folder import (
    exit_code,
    frozen_config_path,
    latest_run,
    planned_sessions,
    read_record,
    read_session,
)
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.atomic import Json, read_json_object
from nexa_distill.storage.manifests import load_manifest


def main_logs(config: DistillConfig) -> Path:
    """The logs of the runs without a name."""
    is_named = config.storage.shared_root is not None
    return Path((load_config(DEFAULT_CONFIG) if is_named else config).storage.logs).resolve()


def find_runs(logs: Path) -> dict[str, Path]:
    """By name, or by root for runs without one, the folder of its newest launch. `logs`: `main_logs`."""
    folders = sorted((plan.parent for plan in logs.glob("*/plan") if not plan.parent.is_symlink()), reverse=True)
    runs: dict[str, Path] = {}
    for folder in folders:
        record = read_record(folder)
        if record and frozen_config_path(folder):
            runs.setdefault(record.root, folder)
    named = {path.name: latest_run(path / "logs") for path in sorted(RUNS.glob("*")) if path.is_dir()}
    return runs | {name: folder for name, folder in named.items() if folder and read_record(folder)}


def load_report(name: str, logs: Path) -> Json:
    """The evaluation report of a run. Raises InputMissing (66) for a run that is not, or has none."""
    runs = find_runs(logs)
    if name not in runs:
        known = ", ".join(runs) or "none"
        raise InputMissing(f"no run {name!r}{did_you_mean(name, runs)}; known: {known} (`pipeline runs` lists them)")
    report = load_run_config(runs[name]).storage.path_of("evaluation_report")
    try:
        values: Json = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputMissing(f"run {name} has no evaluation yet ({report}): launch it again to continue") from None
    return values


def load_run_config(run_dir: Path) -> DistillConfig:
    """The settings of a run's newest launch. Raises InputMissing (66) if they are gone."""
    frozen = frozen_config_path(run_dir)
    if frozen is None:
        raise InputMissing(f"{run_dir}: its settings are gone; launch it again")
    return load_config(frozen)


def run_lines(logs: Path) -> Iterator[str]:
    """A table of the runs, the newest launch of each."""
    runs = find_runs(logs)
    if not runs:
        yield "Nothing has run yet."
        return
    width = max(8, *map(len, runs)) + 2
    yield f"{'run':<{width}}{'launched (UTC)':<18}{'state':<13}{'input':<34}{'kept':>7}  passes before, after"
    for name, folder in runs.items():
        record = read_record(folder)
        if record is None:
            continue
        source = record.input + (f", first {record.limit}" if record.limit else "")
        cells = f"{record.created_at[:16].replace('T', ' '):<18}{_state(folder):<13}{source[-32:]:<34}"
        yield f"{name:<{width}}{cells}{_results(folder)}".rstrip()


def _state(run_dir: Path) -> str:
    states = [read_session(run_dir, name) for name in planned_sessions(run_dir)]
    if any(state.code is None for state in states):
        return "running"
    code = exit_code(states)
    return f"failed {code}" if code else "done"


def _results(run_dir: Path) -> str:
    storage = load_run_config(run_dir).storage
    manifest = load_manifest(storage.path_of("filtered_dataset"), storage)
    kept = f"{manifest['kept'] if manifest else '':>7}"
    report = read_json_object(storage.path_of("evaluation_report"))
    gates = [report["models"][name]["gate"] for name in ("before", "after")] if report else []
    return kept + "".join(f"{gate['passed']:>7} of {gate['total']}" for gate in gates)
