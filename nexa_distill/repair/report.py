"""Report of the repair loop: each sample once, by its outcome; rounds; cost.

Reads   collected_dataset, unanswered, regen_dataset, filtered_dataset, rejections
Writes  reports/regeneration/repair_report.{json,md}, only if something has changed

first_pass + repaired + edited + abandoned + unanswered == samples. Abandoned: has answers, none
kept; counted under the first reason against the last answer. Unanswered: no answer at all. Dollars
and tokens are those of the repairs in the tables; null = unknown or unpriced.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.annotation.decisions import FIRST_EDIT_ATTEMPT
from nexa_distill.contracts import TABLES
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.atomic import Json
from nexa_distill.storage.manifests import valid_regenerations
from nexa_distill.storage.tables import read_columns, read_values


def repair_figures(config: DistillConfig) -> Json:
    """The figures. Raises InputMissing (66) before the gates have run."""
    storage, first = config.storage, config.collection.samples
    samples = {s for key in ("collected_dataset", "unanswered") for s, _ in _load_keys(storage, key)}
    kept = dict(_load_keys(storage, "filtered_dataset"))
    last = _last_reasons(storage)
    abandoned = Counter(last[sample] for sample in last.keys() - kept.keys())
    asked = _load_repairs(storage)
    by_round = _round_figures(asked, kept, first)
    repaired = sum(first <= attempt < FIRST_EDIT_ATTEMPT for attempt in kept.values())
    usd = _sum_column(asked, "cost_usd")
    return {
        "samples": len(samples),
        "first_pass": sum(attempt < first for attempt in kept.values()),
        "repaired": repaired,
        "edited": sum(attempt >= FIRST_EDIT_ATTEMPT for attempt in kept.values()),
        "abandoned": abandoned.total(),
        "unanswered": len(samples - kept.keys() - last.keys()),
        "abandoned_by_reason": dict(abandoned.most_common()),
        "rounds": by_round,
        "repair_requests_answered": asked.num_rows,
        "repair_tokens": _sum_column(asked, "total_tokens"),
        "repair_usd": usd,
        "usd_per_repaired_sample": usd / repaired if usd is not None and repaired else None,
    }


def _load_keys(storage: Storage, key: str) -> Iterator[tuple[str, int]]:
    yield from read_values(storage.path_of(key), TABLES[key], "sample_id", "attempt")


def _last_reasons(storage: Storage) -> dict[str, str]:
    """Sample -> first reason against its last rejected answer."""
    last: dict[str, tuple[int, str]] = {}
    columns = ("sample_id", "attempt", "rejection_reason")
    for sample, attempt, reason in read_values(storage.path_of("rejections"), TABLES["rejections"], *columns):
        last[sample] = max(last.get(sample, (-1, "")), (attempt, reason))
    return {sample: reason for sample, (_, reason) in last.items()}


def _load_repairs(storage: Storage) -> pa.Table:
    """The repairs written by models."""
    table, columns = TABLES["regen_dataset"], ["sample_id", "attempt", "total_tokens", "cost_usd"]
    repaired = [read_columns(path, table, columns) for path in valid_regenerations(storage)]
    rows = repaired[0] if repaired else table.schema.empty_table().select(columns)
    return rows.filter(pc.less(rows["attempt"], FIRST_EDIT_ATTEMPT))


def _round_figures(asked: pa.Table, kept: dict[str, int], first: int) -> list[Json]:
    rounds = []
    for attempt in sorted(asked["attempt"].unique().to_pylist()):
        rows = asked.filter(pc.equal(asked["attempt"], attempt))
        samples = rows["sample_id"].to_pylist()
        rounds.append(
            {
                "round": attempt - first + 1,
                "answered": rows.num_rows,
                "kept": sum(kept.get(sample) == attempt for sample in samples),
                "tokens": _sum_column(rows, "total_tokens"),
                "usd": _sum_column(rows, "cost_usd"),
            }
        )
    return rounds


def _sum_column(rows: pa.Table, column: str) -> Any:
    """The sum, or null without values or with an unknown one."""
    values = rows[column]
    return None if values.null_count or not len(values) else pc.sum(values).as_py()


def write_report(config: DistillConfig) -> Json:
    """Write the report if it has changed, and print it as one line."""
    path = config.storage.path_of("reports") / "regeneration" / "repair_report.json"
    report = stage_reports.write_report(path, repair_figures(config), "repair_report.md.j2")
    print(
        f"repair: of {report['samples']} samples {report['first_pass']} kept at the first pass, "
        f"{report['repaired']} repaired, {report['edited']} edited, {report['abandoned']} "
        f"abandoned, {report['unanswered']} never answered; report: {path.with_suffix('.md')}"
    )
    return report
