"""SampleGate's report: counts of kept and rejected answers, as JSON, Markdown and one HTML page."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from nexa_distill.reporting.templates import render_template
from nexa_distill.settings.filters import GateConfig

FAMILIES = ("rules", "exec", "judge")


@dataclass
class FilterStats:
    """Counts of answers. `reasons` counts each rejected answer once, under its first reason.

    `groups`: (column, value) -> [answers, kept]. `measured`: rates, scores and errors as in the quality report.
    `not_applied`: by rule, the answers per language for which it has no list.
    `canaries`: by judge, the bad answers that were shown, and that would be accepted.
    """

    total: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    families: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    canaries: dict[str, dict[str, float]] | None = None
    not_applied: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def rejected_count(self) -> int:
        """Answers that were not kept."""
        return self.total - self.kept

    def add(self, rows: pa.Table, all_reasons: list[list[str]]) -> None:
        """Count a batch of answers, each with its reasons; no reason = kept."""
        self.total += len(all_reasons)
        self.kept += sum(not r for r in all_reasons)
        self.reasons.update(r[0] for r in all_reasons if r)
        for column in ("template_name", "domain"):
            for value, reasons in zip(rows[column].to_pylist(), all_reasons, strict=True):
                group = self.groups.setdefault((column, value or "not said"), [0, 0])
                group[0] += 1
                group[1] += not reasons


def count_funnel(stats: FilterStats, config: GateConfig) -> dict[str, Any]:
    """The report as JSON; null = not run."""
    groups: dict[str, dict[str, dict[str, int]]] = {"template_name": {}, "domain": {}}
    for (column, value), (total, kept) in sorted(stats.groups.items()):
        groups[column][value] = {"total": total, "kept": kept}
    return {
        "total": stats.total,
        "kept": stats.kept,
        "rejected": stats.rejected_count,
        "reject_reason_counts": dict(stats.reasons.most_common()),
        "families": {name: name in stats.families for name in FAMILIES},
        "judge_score": stats.measured.get("judge_scores"),
        "canaries": stats.canaries,
        "exec_pass_rate": stats.measured.get("exec_pass_rate"),
        "gold_match_rate": stats.measured.get("gold_match_rate"),
        "by_template_name": groups["template_name"],
        "by_domain": groups["domain"],
        "not_applied": {check: dict(n) for check, n in sorted(stats.not_applied.items())},
        "thresholds": config.model_dump(),
    }


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    return render_template("gate_report.md.j2", **report)


def render_page(report: Mapping[str, Any]) -> str:
    """The report as one self-contained HTML page."""
    funnel = [
        ("answers", report["total"], f"{report['total']:,}", "teacher"),
        *((f"- {why}", count, f"{count:,}", "before") for why, count in report["reject_reason_counts"].items()),
        ("kept", report["kept"], f"{report['kept']:,}", "after"),
    ]
    shares = {"task type": _share_bars(report["by_template_name"]), "domain": _share_bars(report["by_domain"])}
    return render_template("gate_report.html.j2", funnel=funnel, shares=shares, **report)


def _share_bars(groups: Mapping[str, Mapping[str, int]]) -> list[tuple[str, float, str, str]]:
    return [
        (name, part["kept"] / part["total"], f"{part['kept']:,} of {part['total']:,}", "after")
        for name, part in groups.items()
    ]
