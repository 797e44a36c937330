"""Per-tab UI state. A decision is written at most once, and only for the row on screen."""

import threading
from collections.abc import Callable
from typing import cast

import streamlit as st


# Streamlit may stop a script, callbacks included, at any access to its session state when the next
# key press arrives, and runs that press in another thread. A plain object with a lock makes writing
# a decision and moving to the next row atomic.
class TabState:
    """`at`: the current row number; `editing`: the name of the answer in the editor."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.editing: str | None = None
        self._drawn: str | None = None
        self._lock = threading.Lock()

    def move_to(self, number: int) -> None:
        self.at, self.editing = number, None

    def mark_drawn(self, name: str) -> None:
        """Remember the unique name of the row that is drawn now."""
        with self._lock:
            self._drawn = name

    def commit_once(self, name: str, write: Callable[[], None], to: int | None) -> None:
        """Call `write` once if `name` was drawn last, then move to `to`.

        If `write` raises, the tab does not move, and the press may be repeated.
        """
        # While the browser removes a row, a press can still reach its buttons.
        with self._lock:
            if self._drawn != name:
                return
            write()
            self._drawn = None
            if to is not None:
                self.move_to(to)


def get_tab_state(page: str) -> TabState:
    key = f"desk-{page}"
    if key not in st.session_state:
        st.session_state[key] = TabState()
    return cast("TabState", st.session_state[key])


def draw_navigation(title: str, key: str, count: int) -> int:
    """Draw position and buttons of a page; returns the index in the session state's `key`."""
    place: int = min(st.session_state.get(key, 0), count - 1)

    def move(change: int) -> None:
        st.session_state[key] = min(max(0, place + change), count - 1)

    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{title} **{place + 1:,}** of {count:,}")
        st.space("stretch")
        for label, letter, change in (("Previous", "k", -1), ("Next", "j", 1)):
            is_end = not 0 <= place + change < count
            st.button(label, shortcut=letter, on_click=move, args=(change,), disabled=is_end)
    return place
