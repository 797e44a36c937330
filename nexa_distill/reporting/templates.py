"""Render the reports from the templates beside their code: Markdown and HTML.

A template `NAME.md.j2` is plain text, a template `NAME.html.j2` escapes every value. Macros of
`nexa_distill/reporting/templates/` can be imported by the templates of every package.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from nexa_distill.reporting.markdown import as_code

SHARED = Path(__file__).parent / "templates"


def render_template(name: str, folder: Path = SHARED, **context: Any) -> str:
    """The text of one report; raises jinja2.UndefinedError for a value that is not in `context`."""
    return _environment(folder).get_template(name).render(context)


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
    environment.filters.update(code=as_code, cells=_join_cells)
    return environment


def _join_cells(cells: Sequence[object]) -> str:
    """One row of a Markdown table; names from data go through `code` first."""
    return f"| {' | '.join(map(str, cells))} |"
