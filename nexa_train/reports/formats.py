"""How the reports on a student are rendered, and how they write their numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_distill.reporting.templates import render_template

Json = Mapping[str, Any]
TEMPLATES = Path(__file__).parent / "templates"
TITLES = {"teacher": "teacher", "before": "student before training", "after": "student after training"}
NOT_MEASURED = "not measured"


def render_report(name: str, **context: Any) -> str:
    """The text of `templates/NAME`, which can use the formats below under the names here."""
    return render_template(
        name,
        TEMPLATES,
        titles=TITLES,
        not_measured=NOT_MEASURED,
        passes=format_passes,
        with_interval=format_with_interval,
        interval=format_interval,
        documents=format_documents,
        percent=format_percent,
        p_value=format_p_value,
        millions=format_millions,
        number=format_number,
        **context,
    )


def format_passes(gate: Json | None) -> str:
    """`21 of 26 (81 %)`."""
    if not gate or gate["rate"] is None:
        return NOT_MEASURED
    return f"{gate['passed']} of {gate['total']} ({format_percent(gate['rate'])})"


def format_with_interval(gate: Json | None) -> str:
    """`21 of 26 (81 %) [62 %, 92 %]`: with its 95 % score interval."""
    if not gate or gate["rate"] is None:
        return NOT_MEASURED
    return f"{format_passes(gate)} [{format_percent(gate['low'])}, {format_percent(gate['high'])}]"


def format_interval(difference: Json, *, percent: bool = False) -> str:
    """`difference +0.20, 95 % interval +0.10 to +0.30`; shares in percentage points."""
    scale, digits, unit = (100, 0, " points") if percent else (1, 3, "")

    def format_value(value: float) -> str:
        return f"{value * scale:+.{digits}f}" if value else "0"

    text = f"difference {format_value(difference['difference'])}{unit}"
    if difference["low"] is None:
        return f"{text}, no interval from {format_documents(difference['documents'])}"
    return f"{text}, 95 % interval {format_value(difference['low'])} to {format_value(difference['high'])}"


def format_documents(count: int) -> str:
    """`1 document`, `3 documents`."""
    return f"{count:,} document{'' if count == 1 else 's'}"


def format_percent(share: float | None) -> str:
    """`81 %` with a no-break space, or "not measured"."""
    return NOT_MEASURED if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def format_p_value(p: float) -> str:
    """`p = 0.031`; below 0.001 a bound."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def format_millions(count: int | None) -> str:
    """`135 M`; a number below a million in full."""
    return f"{count / 1e6:.0f} M" if count and count >= 1e6 else format_number(count)


def format_number(value: float | None, digits: int = 0) -> str:
    """With thousands separators, or "not measured"."""
    return NOT_MEASURED if value is None else f"{value:,.{digits}f}"
