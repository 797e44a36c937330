"""Pieces of the HTML reports on a student; every text is escaped here."""

from collections.abc import Iterable
from html import escape


def render_section(title: str, note: str, *body: str) -> str:
    """A section with its heading and a note; `body` is HTML."""
    head = f'<h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
    return f"<section>{head}{''.join(body)}</section>"


def render_tiles(tiles: Iterable[tuple[str, str, str]]) -> str:
    """A row of tiles: name, figure, and a small text below it."""
    html = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(big)}</b><small>{escape(small)}</small></div>'
        for name, big, small in tiles
    )
    return f'<div class="tiles">{html}</div>'


def definition_list(facts: Iterable[tuple[str, str]]) -> str:
    """Names and values, one pair per line."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<dl>{rows}</dl>"
