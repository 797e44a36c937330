"""report.json as one self-contained HTML page: no script, no network, every text escaped."""

import re
from html import escape
from typing import Any

from nexa_distill.reporting.training_curve import loss_lines
from nexa_train.reports.evaluation_text import build_context
from nexa_train.reports.formats import NOT_MEASURED, TITLES, Json, format_number, format_passes, render_report

# The order of the bars in each chart.
FROM_WORST = ("before", "after", "teacher")
Row = tuple[str, Any, str, str]  # of a plot: label, figure, its text, colour


def render_page(report: Json) -> str:
    """The complete document."""
    models = {name: report["models"][name] for name in FROM_WORST}
    losses = {name: (model["loss"] or {}).get("nats_per_token") for name, model in models.items()}
    counts = {name: model["reject_reason_counts"] for name, model in models.items()}

    def group_ranges(key: str, group: str) -> list[Row]:
        gates = {name: model[key].get(group) for name, model in models.items()}
        return [(n, g, f"{g['passed']} of {g['total']}" if g else NOT_MEASURED, n) for n, g in gates.items()]

    def reason_bars(reason: str) -> list[Row]:
        return [(name, count.get(reason, 0), str(count.get(reason, 0)), name) for name, count in counts.items()]

    return render_report(
        "evaluation.html.j2",
        **build_context(report),
        inline_code=inline_code,
        seconds={name: format_number(value, 1) for name, value in report["facts"]["seconds"].items()},
        gate_ranges=[(TITLES[n], model["gate"], format_passes(model["gate"]), n) for n, model in models.items()],
        group_ranges=group_ranges,
        loss_bars=[(TITLES[name], loss, format_number(loss, 3), name) for name, loss in losses.items()],
        loss_lines=loss_lines(report["training_curve"], "training loss", "validation loss"),
        reason_bars=reason_bars,
        # One scale for all reasons, so that their bars can be compared.
        most_rejected=max((n for count in counts.values() for n in count.values()), default=1),
        funnel_bars=[(s["step"], s["count"], format_number(s["count"]), "plain") for s in report["funnel"]],
    )


def inline_code(text: str) -> str:
    """Escaped HTML of a sentence with Markdown's inline code."""
    return re.sub(r"(`+) ?(.+?) ?\1(?!`)", r"<code>\2</code>", escape(text))
