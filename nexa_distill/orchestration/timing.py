"""The timing report of a run: its stages, and the rows that are timed one by one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nexa_distill.errors import StorageFailed
from nexa_distill.journal.journal import ReadOnlyJournal
from nexa_distill.orchestration.stages import STAGES
from nexa_distill.reporting import stage_reports
from nexa_distill.reporting.training_curve import read_metrics, step_seconds
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml

_LATENCIES = "SELECT latency_ms FROM outcomes WHERE outcome = 'answered' AND latency_ms IS NOT NULL"


def write_timing_report(config: DistillConfig) -> dict[str, Any]:
    """Write `reports/timing_report.{json,md}` (`stage_reports.write_timing_report`)."""
    rows = {f"{name} request": seconds for name, seconds in _answer_seconds(config)}
    metrics = load_yaml(Path(config.student), StudentConfig).metrics_path(config.storage)
    rows["train step"] = step_seconds(read_metrics(metrics))
    stages = [stage.name for stage in STAGES]
    return stage_reports.write_timing_report(config.storage, stages=stages, rows=rows)


def _answer_seconds(config: DistillConfig) -> Iterator[tuple[str, list[float]]]:
    """By stage, the seconds from request to complete answer; those of batches are not known."""
    for path in sorted(config.storage.path_of("journal").glob("*.sqlite")):
        try:
            with ReadOnlyJournal(path) as journal:
                yield path.stem, [latency / 1000 for (latency,) in journal.read_rows(_LATENCIES)]
        except StorageFailed:  # the cost report names it
            continue
