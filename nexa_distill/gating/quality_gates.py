"""Run-level quality gates: whether the kept answers are good enough for training.

Reads `reports/sample_gate/quality_report.json` and `quality_gates:` of the filters file. A figure
below its gate, or a gate whose figure was not measured, stops the run before training (exit 3).
The filtering script checks first, so that the run stops early; packaging checks again.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from nexa_distill.errors import InputMissing, QualityGateMissed
from nexa_distill.settings.filters import QualityGates, load_filter_config
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import read_json_object
from nexa_distill.storage.manifests import load_manifest

FILTERING = "python scripts/python/data_processing/run_filtering.py"


def missed_gates(report: Mapping[str, Any], gates: QualityGates) -> Iterator[str]:
    """One line per missed gate: `exec_pass_rate 0.1190 < min_exec_pass_rate 0.5000`."""
    measured = {
        "total": report["total"],
        "keep_rate": report["p_keep"],
        "exec_pass_rate": report["exec_pass_rate"],
        "gold_match_rate": report["gold_match_rate"],
        "judge_mean": report["judge_score"]["mean"],
    }
    for name, value in measured.items():
        least = getattr(gates, f"min_{name}")
        # `not >=` instead of `<`: NaN misses its gate too.
        if least is not None and (value is None or not value >= least):
            yield f"{name} {_format_figure(value)} < min_{name} {_format_figure(least)}"


def _format_figure(value: float | None) -> str:
    if value is None:
        return "not measured"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def enforce_gates(config: DistillConfig) -> None:
    """Raises QualityGateMissed (3); InputMissing (66) without a report of the kept answers."""
    gates = load_filter_config(config.filters).quality_gates
    if all(value is None for value in gates.model_dump().values()):
        return
    path = config.storage.path_of("reports") / "sample_gate" / "quality_report.json"
    manifest = load_manifest(config.storage.path_of("filtered_dataset"), config.storage)
    report = read_json_object(path) or {}
    counts = manifest and (manifest["rows_in"], manifest["kept"])
    # The report of other answers must not open the gate.
    if (report.get("total"), report.get("kept")) != counts:
        raise InputMissing(f"{path}: is not the report of the kept answers; run `{FILTERING}`")
    if missed := list(missed_gates(report, gates)):
        advice = (
            f"quality_gates: in {config.filters} stopped the run before training; read "
            f"{path.with_name('gate_report.md')}, fix the causes that it names or lower the gate, "
            "and run the same command again"
        )
        raise QualityGateMissed("\n       ".join([*missed, advice]))
