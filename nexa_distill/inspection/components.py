"""Components that show model output as text, never as markup.

Spans are inserted by `textContent`, so scripts do not run, links cannot be followed and images are
not fetched. Long texts are cut, with the number of hidden characters below.
"""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from nexa_distill.inspection.word_diff import Span

MAX_CHARACTERS = 20_000
STYLE = """
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; font-size: 0.94rem;
  font-family: var(--st-font); color: var(--st-text-color); border: 1px solid #dfe3dc;
  border-radius: 6px; padding: 0.7rem 0.9rem; max-height: 30rem; overflow-y: auto; }
.text.mono { font-family: ui-monospace, monospace; font-size: 0.85rem; }
.text.quiet { background: #f7f8f5; color: #4c554a; max-height: 15rem; }
.text:empty::before { content: "nothing"; color: #9aa197; font-style: italic; }
.gone { background: #fbe3e0; color: #8f2a1d; text-decoration: line-through; }
.new { background: #dcf1e3; color: #14532d; }
.trained { background: #cfe9d9; color: #14432a; }
.masked { color: #7d857a; }
.special { border: 1px solid #c9a227; border-radius: 3px; padding: 0 2px; font-weight: 600; }
.trained, .masked { box-shadow: inset -1px 0 0 #e4e8e1; }
"""
SCRIPT = """
export default function ({ data, parentElement }) {
  const box = parentElement.querySelector(".text");
  box.className = "text " + data.look;
  box.dir = "auto";
  box.replaceChildren(...data.spans.map(([text, kind]) => {
    const span = document.createElement("span");
    span.textContent = text;
    span.className = kind;
    return span;
  }));
}
"""

TABLE_STYLE = """
.table { max-height: 20rem; overflow: auto; border: 1px solid #dfe3dc; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-family: var(--st-font); font-size: 0.84rem;
  color: var(--st-text-color); }
th { position: sticky; top: 0; background: #f4f5f2; text-align: left; font-weight: 600; }
th, td { padding: 0.32rem 0.6rem; border-bottom: 1px solid #eceee9; vertical-align: top; }
td:nth-child(2), td:nth-child(3) { white-space: nowrap; }
td:nth-child(1), td:nth-child(4) { overflow-wrap: anywhere; min-width: 7rem; }
tr.bad td { background: #fdf3f1; }
tr.bad td:nth-child(2) { color: #8f2a1d; font-weight: 600; }
"""
TABLE_SCRIPT = """
export default function ({ data, parentElement }) {
  const made = (kind, texts, look) => {
    const row = document.createElement("tr");
    row.className = look;
    row.replaceChildren(...texts.map((text) => {
      const cell = document.createElement(kind);
      cell.textContent = text;
      return cell;
    }));
    return row;
  };
  const table = document.createElement("table");
  table.replaceChildren(made("th", data.head, ""),
    ...data.rows.map(([look, texts]) => made("td", texts, look)));
  parentElement.querySelector(".table").replaceChildren(table);
}
"""


@st.cache_resource
def _table_component() -> Any:
    return st.components.v2.component("nexa_table", html='<div class="table"></div>', css=TABLE_STYLE, js=TABLE_SCRIPT)


def show_table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], key: str) -> None:
    """A table of (class of TABLE_STYLE, texts). Streamlit's own needs pandas and a canvas."""
    clean = [(look, [text.encode("utf-8", "replace").decode() for text in texts]) for look, texts in rows]
    _table_component()(key=key, data={"head": list(head), "rows": clean})


@st.cache_resource
def _text_component() -> Any:
    return st.components.v2.component("nexa_text", html='<div class="text"></div>', css=STYLE, js=SCRIPT)


def show_spans(parts: Sequence[Span], key: str, look: str = "") -> None:
    """Text in parts with a class of STYLE each. `key`: unique on the page."""
    # A lone surrogate cannot be sent to the browser.
    clean = [(text.encode("utf-8", "replace").decode(), kind) for text, kind in parts]
    _text_component()(key=key, data={"spans": clean, "look": look})


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
