"""preflight.json as one self-contained HTML page: no script, every text escaped."""

from nexa_distill.reporting import charts
from nexa_distill.reporting.html import render_document
from nexa_train.reports.formats import Json, render_report
from nexa_train.reports.preflight_text import FORMATS, format_figure


def render_page(report: Json) -> str:
    """The complete document."""
    limit, lengths, refused = report["max_length"], report["tokens_per_row"], report["refused"]
    bars = [charts.Bar(name, value, format_figure(value), "after") for name, value in lengths.items()]
    bars.append(charts.Bar("max_length", limit, format_figure(limit)))
    page = render_report(
        "preflight.html.j2",
        report=report,
        lengths_plot=charts.draw_bars(bars),
        refused_plot=charts.draw_bars([charts.Bar(name, n, format_figure(n), "before") for name, n in refused.items()]),
        **FORMATS,
    )
    return render_document(f"Preflight of {report['run_name']}", page)
