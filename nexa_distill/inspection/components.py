"""Components that show model output as text, never as markup.

Spans are inserted by `textContent`, so scripts do not run, links cannot be followed and images are
not fetched. Long texts are cut, with the number of hidden characters below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from nexa_distill.inspection.word_diff import Span
from nexa_distill.reporting.templates import render_plot, render_template

ASSETS = Path(__file__).parent / "assets"
MAX_CHARACTERS = 20_000


@st.cache_resource
def _component(name: str) -> Any:
    """A box of the class `name`, styled by `assets/NAME.css` and filled by `assets/NAME.js`."""
    css, js = (render_template(f"{name}.{kind}", ASSETS) for kind in ("css", "js"))
    return st.components.v2.component(f"nexa_{name}", html=f'<div class="{name}"></div>', css=css, js=js)


def _sendable_text(text: str) -> str:
    # A lone surrogate cannot be sent to the browser.
    return text.encode("utf-8", "replace").decode()


def show_table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], key: str) -> None:
    """A table of (class of `table.css`, texts). Streamlit's own needs pandas and a canvas."""
    clean = [(look, [_sendable_text(text) for text in texts]) for look, texts in rows]
    _component("table")(key=key, data={"head": list(head), "rows": clean})


def show_spans(parts: Sequence[Span], key: str, look: str = "") -> None:
    """Text in parts with a class of `text.css` each. `key`: unique on the page."""
    clean = [(_sendable_text(text), kind) for text, kind in parts]
    _component("text")(key=key, data={"spans": clean, "look": look})


def show_plot(macro: str, *values: Any, key: str) -> None:
    """A plot of the reports, which escapes every text in it."""
    _component("chart")(key=key, data=render_plot(macro, *values))


def show_text(value: str | None, key: str, look: str = "") -> None:
    show_spans([(cut_text(value or ""), "")] if value else [], key, look)
    if hidden := hidden_characters(value):
        st.caption(f"{hidden:,} more characters are not shown; the file has them all.")


def cut_text(value: str) -> str:
    return value[:MAX_CHARACTERS]


def hidden_characters(value: str | None) -> int:
    return max(0, len(value or "") - MAX_CHARACTERS)


def escape_markdown(value: object) -> str:
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!|<>$:~&" else c for c in str(value))
