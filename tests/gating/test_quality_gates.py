"""Run-level quality gates: what misses, and that no way leads past a miss to the training."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_distill import filter_pairs, sample_gate, to_sft
from nexa_distill.errors import InputMissing, QualityGateMissed
from nexa_distill.gating.quality_gates import enforce_gates, missed_gates
from nexa_distill.orchestration.freshness import Freshness
from nexa_distill.orchestration.stages import STAGES
from nexa_distill.settings.filters import QualityGates
from nexa_distill.settings.pipeline import DistillConfig
from tests import warm
from tests.support.answers import REPOSITORY, answer, collect, project

OFF: dict[str, Any] = dict.fromkeys(QualityGates.model_fields)
REPORT = {
    "total": 200, "p_keep": 0.25, "exec_pass_rate": 0.119, "gold_match_rate": None,
    "judge_score": {"min": None, "max": None, "mean": None},
}  # fmt: skip


@pytest.mark.parametrize(
    ("gate", "least", "line"),
    [
        ("min_total", 201, "total 200 < min_total 201"),
        ("min_total", 200, None),
        ("min_keep_rate", 0.3, "keep_rate 0.2500 < min_keep_rate 0.3000"),
        ("min_keep_rate", 0.25, None),
        ("min_exec_pass_rate", 0.5, "exec_pass_rate 0.1190 < min_exec_pass_rate 0.5000"),
        ("min_gold_match_rate", 0.0, "gold_match_rate not measured < min_gold_match_rate 0.0000"),
        ("min_judge_mean", 0.1, "judge_mean not measured < min_judge_mean 0.1000"),
    ],
)
def test_a_gate_is_missed_below_it_or_without_a_figure(gate: str, least: float, line: str | None) -> None:
    assert list(missed_gates(REPORT, QualityGates(**OFF | {gate: least}))) == ([line] if line else [])


def with_gates(folder: Path, **gates: float) -> DistillConfig:
    """A project with 3 of 4 answers kept, and these gates."""
    filters = folder / "filters.yaml"
    shipped = str(REPOSITORY / "configs/filters.yaml")
    filters.write_text(yaml.safe_dump({"extends": shipped, "quality_gates": gates}))
    config = project(folder, filters=str(filters))
    collect(config, [answer(n, finish_reason="length" if n == 3 else "stop") for n in range(4)])
    filter_pairs.run(config)
    sample_gate.run(config)
    return config


def test_packaging_stops_at_a_miss_and_names_it(tmp_path: Path) -> None:
    config = with_gates(tmp_path, min_keep_rate=0.8)
    for _ in range(2):
        with pytest.raises(QualityGateMissed, match=r"keep_rate 0\.7500 < min_keep_rate 0\.8000"):
            to_sft.run(config)
    assert not config.storage.path_of("sft_parquet").exists()


def test_a_gate_that_is_raised_after_packaging_makes_it_stale_and_stops_it(tmp_path: Path) -> None:
    config = with_gates(tmp_path, min_keep_rate=0.7)
    to_sft.run(config)
    (packaging,) = [stage for stage in STAGES if stage.name == "packaging"]
    assert Freshness(config).stale_reason(packaging) is None
    config = with_gates(tmp_path, min_keep_rate=0.8)
    assert Freshness(config).stale_reason(packaging) == "packaging: settings changed"
    with pytest.raises(QualityGateMissed):
        to_sft.run(config)


def test_a_report_of_other_answers_is_refused(tmp_path: Path) -> None:
    config = with_gates(tmp_path, min_keep_rate=0.1)
    report = config.storage.path_of("reports") / "sample_gate" / "quality_report.json"
    found = json.loads(report.read_text())
    report.write_text(json.dumps(found | {"total": 5}))
    with pytest.raises(InputMissing, match=r"run_filtering\.py"):
        enforce_gates(config)
    report.unlink()
    with pytest.raises(InputMissing, match=r"quality_report\.json"):
        enforce_gates(config)


def test_the_filtering_script_ends_with_3_and_what_it_kept_stands(tmp_path: Path) -> None:
    config = with_gates(tmp_path, min_exec_pass_rate=0.5)
    script = "scripts/python/data_processing/run_filtering.py"
    command = [warm.python(), script, "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 3
    assert "exec_pass_rate not measured < min_exec_pass_rate 0.5000" in done.stderr
    assert config.storage.path_of("filtered_dataset").exists()
