"""report.json as one self-contained HTML page: no script, no network, every text escaped."""

import re
from html import escape
from typing import Any

from nexa_distill.reporting import charts
from nexa_distill.reporting.html import render_document
from nexa_train.reports.evaluation_text import build_context
from nexa_train.reports.formats import NOT_MEASURED, TITLES, Json, format_number, format_passes, render_report

# The order of the bars in each chart.
FROM_WORST = ("before", "after", "teacher")


def render_page(report: Json) -> str:
    """The complete document."""
    seconds = {name: format_number(value, 1) for name, value in report["facts"]["seconds"].items()}
    context = {**build_context(report), "inline_code": inline_code, "seconds": seconds}
    context |= _draw_models(context["models"], context["groups"]) | _draw_reasons(context["models"])
    return render_document(
        f"Evaluation of {report['run_name']}",
        render_report(
            "evaluation.html.j2",
            **context,
            curve_plot=_draw_curve(report["training_curve"]),
            funnel_plot=charts.draw_bars(
                [charts.Bar(s["step"], s["count"], format_number(s["count"])) for s in report["funnel"]]
            ),
        ),
    )


def inline_code(text: str) -> str:
    """Escaped HTML of a sentence with Markdown's inline code."""
    return re.sub(r"(`+) ?(.+?) ?\1(?!`)", r"<code>\2</code>", escape(text))


def _draw_models(models: Json, groups: list[tuple[str, str, list[str]]]) -> dict[str, Any]:
    gates = {name: models[name]["gate"] for name in FROM_WORST}
    losses = {name: (models[name]["loss"] or {}).get("nats_per_token") for name in FROM_WORST}

    def draw_group(key: str, group: str) -> str:
        return charts.draw_ranges([_group_range(name, models[name][key].get(group)) for name in FROM_WORST])

    return {
        "gate_plot": charts.draw_ranges(
            [_gate_range(TITLES[n], gate, format_passes(gate), n) for n, gate in gates.items()]
        ),
        "loss_plot": charts.draw_bars([charts.Bar(TITLES[n], v, format_number(v, 3), n) for n, v in losses.items()]),
        "group_plots": {key: {name: draw_group(key, name) for name in names} for _, key, names in groups},
    }


def _group_range(model: str, gate: Json | None) -> charts.Range:
    if gate is None:
        return charts.Range(model, None, None, None, NOT_MEASURED, model)
    return _gate_range(model, gate, f"{gate['passed']} of {gate['total']}", model)


def _gate_range(label: str, gate: Json, text: str, kind: str) -> charts.Range:
    return charts.Range(label, gate["rate"], gate["low"], gate["high"], text, kind)


def _draw_reasons(models: Json) -> dict[str, Any]:
    counts = {name: models[name]["reject_reason_counts"] for name in FROM_WORST}
    # One scale for all reasons, so that their bars can be compared.
    most = max((n for count in counts.values() for n in count.values()), default=1)

    def draw_reason(reason: str) -> str:
        numbers = {model: count.get(reason, 0) for model, count in counts.items()}
        return charts.draw_bars([charts.Bar(model, n, str(n), model) for model, n in numbers.items()], top=most)

    return {"reason_plots": {reason: draw_reason(reason) for count in counts.values() for reason in count}}


def _draw_curve(rows: list[Json]) -> str:
    lines = {"loss": ("training loss", "plain"), "val_loss": ("validation loss", "after")}
    return charts.draw_lines(
        [
            charts.Line(label, [(row["step"], row[key]) for row in rows if key in row], kind)
            for key, (label, kind) in lines.items()
        ],
        x_label="optimizer step",
        y_label="loss, nats per token",
    )
