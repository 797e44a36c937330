"""Render the reports from the templates beside their code: Markdown and HTML.

A template `NAME.md.j2` is plain text, a template `NAME.html.j2` escapes every value and draws plots
with `plots.html.j2`. Macros of
`nexa_distill/reporting/templates/` can be imported by the templates of every package.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from nexa_distill.reporting.charts import SIZE, chart_axes
from nexa_distill.reporting.markdown import as_code

SHARED = Path(__file__).parent / "templates"


def render_template(name: str, folder: Path = SHARED, **context: Any) -> str:
    """The text of one report; raises jinja2.UndefinedError for a value that is not in `context`."""
    return _environment(folder).get_template(name).render(context)


def render_plot(macro: str, *values: Any) -> str:
    """One plot of `plots.html.j2` as HTML; its styles are in `plots.css`."""
    return str(getattr(_environment(SHARED).get_template("plots.html.j2").module, macro)(*values))


def format_number(value: float | None, *, share: bool = False) -> str:
    """A number as text; `not run` for None."""
    if value is None:
        return "not run"
    return f"{value:.1%}" if share else f"{value:,.3f}".rstrip("0").rstrip(".")


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        undefined=StrictUndefined,
        autoescape=select_autoescape(("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(chart_axes=chart_axes, chart_size=SIZE)
    environment.filters.update(
        code=as_code,
        cell=_fit_cell,
        cells=_join_cells,
        number=format_number,
        percent=lambda share: format_number(share, share=True),
        thousands="{:,}".format,
        by_count=_sort_by_count,
        language=lambda code: {"zxx": "code or formulas, without prose"}.get(code, code),
    )
    return environment


def _fit_cell(text: object) -> str:
    """A text from data in one cell of a Markdown table: one line, without a bar that ends the cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _join_cells(cells: Sequence[object]) -> str:
    """One row of a Markdown table; names from data go through `code` or `cell` first."""
    return f"| {' | '.join(map(str, cells))} |"


def _sort_by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
