"""SampleGate's report: counts of kept and rejected answers, as JSON, Markdown and one HTML page."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import pyarrow as pa

from nexa_distill.reporting import charts, stage_reports
from nexa_distill.reporting.html import render_document
from nexa_distill.reporting.stage_reports import format_number, language_name
from nexa_distill.settings.filters import GateConfig

FAMILIES = ("rules", "exec", "judge")


@dataclass
class FilterStats:
    """Counts of answers. `reasons` counts each rejected answer once, under its first reason.

    `groups`: (column, value) -> [answers, kept]. Rates and scores are None if nothing was measured.
    `not_applied`: by rule, the answers per language for which it has no list.
    `canaries`: by judge, the bad answers that were shown, and that would be accepted.
    """

    total: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    families: list[str] = field(default_factory=list)
    exec_pass_rate: float | None = None
    gold_match_rate: float | None = None
    judge_scores: dict[str, float] | None = None
    exec_error_counts: dict[str, int] | None = None
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
        "judge_score": stats.judge_scores,
        "canaries": stats.canaries,
        "exec_pass_rate": stats.exec_pass_rate,
        "gold_match_rate": stats.gold_match_rate,
        "by_template_name": groups["template_name"],
        "by_domain": groups["domain"],
        "not_applied": {check: dict(n) for check, n in sorted(stats.not_applied.items())},
        "thresholds": config.model_dump(),
    }


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    total, remaining, share = report["total"], report["total"], stage_reports.format_number
    lines = ["# SampleGate", "", "| step | answers | left |", "|---|---|---|"]
    lines.append(f"| answers | {total:,} | {total:,} |")
    for reason, count in report["reject_reason_counts"].items():
        remaining -= count
        lines.append(f"| - {reason} | {count:,} | {remaining:,} |")
    lines.append(f"| kept | {report['kept']:,} | {share(report['kept'] / total, share=True)} |")
    lines += ["", "Each rejected answer is counted once, under its first reason.", ""]
    lines += [f"- {name}: {'run' if ran else 'not run'}" for name, ran in report["families"].items()]
    for name, key in (("executes", "exec_pass_rate"), ("matches", "gold_match_rate")):
        lines.append(f"- {name}: {share(report[key], share=True)}")
    if report["judge_score"]:
        scores = (f"{name} {share(value)}" for name, value in report["judge_score"].items())
        lines.append(f"- judge score (0..1): {', '.join(scores)}")
    for judge, counts in (report["canaries"] or {}).items():
        lines.append(
            f"- canaries that would pass: {counts['accepted']} of {counts['canaries']} "
            f"({share(counts['rate'], share=True)}) by {judge}"
        )
    lines += stage_reports.not_applied_lines(report["not_applied"])
    for title, key in (("task type", "by_template_name"), ("domain", "by_domain")):
        lines += ["", f"| {title} | answers | kept | share |", "|---|---|---|---|"]
        for name, group in report[key].items():
            part = share(group["kept"] / group["total"], share=True)
            lines.append(f"| {name} | {group['total']:,} | {group['kept']:,} | {part} |")
    return "\n".join(lines) + "\n"


TITLE = "What SampleGate kept"


def render_page(report: Mapping[str, Any]) -> str:
    """The report as one self-contained HTML page."""
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in _list_facts(report))
    body = f"<header><h1>{TITLE}</h1><ul>{facts}</ul></header>" + _render_section(
        "From answers to training", "each rejected answer counts once, under its first reason", _draw_funnel(report)
    )
    for title, key in (("Kept by task type", "by_template_name"), ("Kept by domain", "by_domain")):
        body += _render_section(title, "share of the answers", _draw_shares(report[key]))
    return render_document(TITLE, body)


def _list_facts(report: Mapping[str, Any]) -> list[str]:
    total, kept = report["total"], report["kept"]
    facts = [f"{kept:,} of {total:,} answers kept ({format_number(kept / total, share=True)})"]
    facts += [f"judge: {format_number(None)}"] * (not report["families"]["judge"])
    rates = {"executes": "exec_pass_rate", "matches the known answer": "gold_match_rate"}
    facts += [f"{name}: {format_number(report[key], share=True)}" for name, key in rates.items()]
    facts += [
        f"{check} not applied to {count:,} answers (no list for {language_name(code)})"
        for check, languages in report["not_applied"].items()
        for code, count in languages.items()
    ]
    return facts


def _draw_funnel(report: Mapping[str, Any]) -> str:
    rows = [charts.Bar("answers", report["total"], f"{report['total']:,}", "teacher")]
    rows += [
        charts.Bar(f"- {reason}", count, f"{count:,}", "before")
        for reason, count in report["reject_reason_counts"].items()
    ]
    rows.append(charts.Bar("kept", report["kept"], f"{report['kept']:,}", "after"))
    return charts.draw_bars(rows, top=report["total"])


def _draw_shares(groups: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        charts.Bar(name, part["kept"] / part["total"], f"{part['kept']:,} of {part['total']:,}", "after")
        for name, part in groups.items()
    ]
    return charts.draw_bars(rows, top=1.0)


def _render_section(title: str, note: str, plot: str) -> str:
    return f'<section><h2>{title}</h2><p class="note">{note}</p>{plot}</section>'
