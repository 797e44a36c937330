"""The cost report as text: its Markdown version, and the lines of `pipeline summary`."""

from collections.abc import Mapping
from typing import Any

from nexa_distill.collection.requests.budget import format_usd
from nexa_distill.console.progress import format_duration
from nexa_distill.reporting.templates import render_template

Figures = Mapping[str, Any]


def format_figure(key: str, value: float | None) -> str:
    """A figure of the report as text; its key tells the unit."""
    if value is None:
        return "not known"
    if "usd" in key:
        return f"${format_usd(value)}"
    if key == "seconds":
        return format_duration(value) if value >= 60 else f"{value:.{1 if value >= 1 else 3}f} s"
    if key == "keep_rate":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def summary_lines(report: Figures) -> list[str]:
    """Spending per stage, cost per kept sample, projection. Empty if nothing was spent."""
    return render_template("cost_summary.md.j2", figure=format_figure, **report).splitlines()
