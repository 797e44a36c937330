"""preflight.json as one self-contained HTML page: no script, every text escaped."""

from nexa_train.reports.formats import Json, render_report
from nexa_train.reports.preflight_text import FORMATS, format_figure


def render_page(report: Json) -> str:
    """The complete document."""
    limit, lengths, refused = report["max_length"], report["tokens_per_row"], report["refused"]
    return render_report(
        "preflight.html.j2",
        report=report,
        length_bars=[
            *((name, length, format_figure(length), "after") for name, length in lengths.items()),
            ("max_length", limit, format_figure(limit), "plain"),
        ],
        refused_bars=[(name, count, format_figure(count), "before") for name, count in refused.items()],
        **FORMATS,
    )
