"""SampleGate's funnel as one HTML page that needs nothing else."""

from collections.abc import Mapping
from html import escape
from typing import Any

from nexa_distill.reporting import charts
from nexa_distill.reporting.html import document
from nexa_distill.reporting.stage_reports import language_name, shown

TITLE = "What SampleGate kept"


def page(report: Mapping[str, Any]) -> str:
    """The page of `gate_report.funnel`'s report."""
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in _facts(report))
    body = f"<header><h1>{TITLE}</h1><ul>{facts}</ul></header>" + _section(
        "From answers to training", "each rejected answer counts once, under its first reason",
        _funnel(report),
    )  # fmt: skip
    for title, key in (("Kept by task type", "by_template_name"), ("Kept by domain", "by_domain")):
        body += _section(title, "share of the answers", _shares(report[key]))
    return document(TITLE, body)


def _facts(report: Mapping[str, Any]) -> list[str]:
    total, kept = report["total"], report["kept"]
    facts = [f"{kept:,} of {total:,} answers kept ({shown(kept / total, share=True)})"]
    facts += [f"judge: {shown(None)}"] * (not report["families"]["judge"])
    rates = {"executes": "exec_pass_rate", "matches the known answer": "gold_match_rate"}
    facts += [f"{name}: {shown(report[key], share=True)}" for name, key in rates.items()]
    facts += [
        f"{check} not applied to {count:,} answers (no list for {language_name(code)})"
        for check, languages in report["not_applied"].items()
        for code, count in languages.items()
    ]
    return facts


def _funnel(report: Mapping[str, Any]) -> str:
    rows = [charts.Bar("answers", report["total"], f"{report['total']:,}", "teacher")]
    rows += [
        charts.Bar(f"- {reason}", count, f"{count:,}", "before")
        for reason, count in report["reject_reason_counts"].items()
    ]
    rows.append(charts.Bar("kept", report["kept"], f"{report['kept']:,}", "after"))
    return charts.bars(rows, top=report["total"])


def _shares(groups: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        charts.Bar(name, part["kept"] / part["total"], f"{part['kept']:,} of {part['total']:,}",
                   "after")
        for name, part in groups.items()
    ]  # fmt: skip
    return charts.bars(rows, top=1.0)


def _section(title: str, note: str, plot: str) -> str:
    return f'<section><h2>{title}</h2><p class="note">{note}</p>{plot}</section>'
