"""What the repair loop came to: each sample once, by how it ended; rounds; dollars.

Reads   collected_dataset, unanswered, regen_dataset, filtered_dataset, rejections
Writes  reports/regeneration/repair_report.{json,md}; not a byte when nothing has changed

first_pass + repaired + edited + abandoned + unanswered == samples. Abandoned: answers, none of
which was kept, by the first reason against the last of them. Unanswered: no answer at all. Dollars
and tokens are those of the repairs in the tables; null = not said or unpriced.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.annotation.decisions import EDITS_FROM
from nexa_distill.contracts import TABLES
from nexa_distill.reporting.stage_reports import shown
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.atomic import write_json, write_text
from nexa_distill.storage.manifests import repairs
from nexa_distill.storage.tables import read_batches

Json = dict[str, Any]


def repair_report(config: DistillConfig) -> Json:
    """The figures. Raises InputMissing (66) before there are any."""
    storage, first = config.storage, config.collection.samples
    samples = {s for key in ("collected_dataset", "unanswered") for s, _ in _keys(storage, key)}
    kept = dict(_keys(storage, "filtered_dataset"))
    last = _last_reasons(storage)
    abandoned = Counter(last[sample] for sample in last.keys() - kept.keys())
    asked = _asked(storage)
    by_round = _rounds(asked, kept, first)
    repaired = sum(first <= attempt < EDITS_FROM for attempt in kept.values())
    usd = _sum(asked, "cost_usd")
    return {
        "samples": len(samples),
        "first_pass": sum(attempt < first for attempt in kept.values()),
        "repaired": repaired,
        "edited": sum(attempt >= EDITS_FROM for attempt in kept.values()),
        "abandoned": abandoned.total(),
        "unanswered": len(samples - kept.keys() - last.keys()),
        "abandoned_by_reason": dict(abandoned.most_common()),
        "rounds": by_round,
        "repair_requests_answered": asked.num_rows,
        "repair_tokens": _sum(asked, "total_tokens"),
        "repair_usd": usd,
        "usd_per_repaired_sample": usd / repaired if usd is not None and repaired else None,
    }


def _keys(storage: Storage, key: str) -> Iterator[tuple[str, int]]:
    path = storage.path(key)
    for rows in read_batches(path, TABLES[key], columns=["sample_id", "attempt"]):
        yield from zip(*rows.to_pydict().values(), strict=True)


def _last_reasons(storage: Storage) -> dict[str, str]:
    """Of each sample with a rejected answer, the first reason against the last of them."""
    found: dict[str, tuple[int, str]] = {}
    columns = ["sample_id", "attempt", "rejection_reason"]
    for rows in read_batches(storage.path("rejections"), TABLES["rejections"], columns=columns):
        for sample, attempt, reason in zip(*rows.to_pydict().values(), strict=True):
            found[sample] = max(found.get(sample, (-1, "")), (attempt, reason))
    return {sample: reason for sample, (_, reason) in found.items()}


def _asked(storage: Storage) -> pa.Table:
    """The repairs that models gave."""
    table, columns = TABLES["regen_dataset"], ["sample_id", "attempt", "total_tokens", "cost_usd"]
    schema = pa.schema([table.schema.field(name) for name in columns])
    found = [
        rows for path in repairs(storage) for rows in read_batches(path, table, columns=columns)
    ]
    rows = pa.concat_tables(found) if found else schema.empty_table()
    return rows.filter(pc.less(rows["attempt"], EDITS_FROM))


def _rounds(asked: pa.Table, kept: dict[str, int], first: int) -> list[Json]:
    found = []
    for attempt in sorted(asked["attempt"].unique().to_pylist()):
        rows = asked.filter(pc.equal(asked["attempt"], attempt))
        samples = rows["sample_id"].to_pylist()
        found.append(
            {
                "round": attempt - first + 1,
                "answered": rows.num_rows,
                "kept": sum(kept.get(sample) == attempt for sample in samples),
                "tokens": _sum(rows, "total_tokens"),
                "usd": _sum(rows, "cost_usd"),
            }
        )
    return found


def _sum(rows: pa.Table, column: str) -> Any:
    """Null when one value is not known, for then the sum is not, or there is none."""
    values = rows[column]
    return None if values.null_count or not len(values) else pc.sum(values).as_py()


def markdown(report: Json) -> str:
    """The same for a person."""
    total = report["samples"] or 1
    names = {
        "first_pass": "kept at the first pass",
        "repaired": "repaired",
        "edited": "edited",
        "abandoned": "abandoned",
        "unanswered": "never answered",
    }
    lines = ["# Repair", "", "| samples | | share |", "|---|---|---|"]
    lines.append(f"| all | {report['samples']:,} | |")
    lines += [
        f"| {text} | {report[name]:,} | {shown(report[name] / total, share=True)} |"
        for name, text in names.items()
    ]
    lines += ["", "| round | answers | kept | tokens | US$ |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['round']} | {one['answered']:,} | {one['kept']:,} | {shown(one['tokens'])} | "
        f"{shown(one['usd'])} |"
        for one in report["rounds"]
    ]
    lines += ["", f"US$ per repaired sample: {shown(report['usd_per_repaired_sample'])}"]
    lines += ["", "| abandoned because of | samples |", "|---|---|"]
    lines += [f"| {reason} | {n:,} |" for reason, n in report["abandoned_by_reason"].items()]
    return "\n".join(lines) + "\n"


def write(config: DistillConfig) -> Json:
    """Write the report, unless it stands there already, and say it in a line."""
    report = repair_report(config)
    path = config.storage.path("reports") / "regeneration" / "repair_report.json"
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    page = path.with_suffix(".md")
    if not (path.is_file() and page.is_file() and path.read_text(encoding="utf-8") == text):
        write_json(path, report)
        write_text(page, markdown(report))
    print(
        f"repair: of {report['samples']} samples {report['first_pass']} kept at the first pass, "
        f"{report['repaired']} repaired, {report['edited']} edited, {report['abandoned']} "
        f"abandoned, {report['unanswered']} never answered; report: {page}"
    )
    return report
