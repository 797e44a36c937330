"""Where a browser tab stands, and that a decision is written once, about what its person saw.

Streamlit may end a script, callbacks included, at any access to its session state when the next
key press arrives, and runs that press in another thread. What belongs together is therefore kept
in a plain object: a decision and the step to the next row happen both or not at all. While the
browser takes a row away, a press can still reach its buttons: only what was drawn last can be
decided on, and only once.
"""

import threading
from collections.abc import Callable
from typing import cast

import streamlit as st


class Desk:
    """`at`: the row's number; `editing`: what an editor is open for; both by the page."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.editing: str | None = None
        self._drawn: str | None = None
        self._lock = threading.Lock()

    def go(self, number: int) -> None:
        """Stand on another row."""
        self.at, self.editing = number, None

    def draw(self, name: str) -> None:
        """What is being drawn, by a name of its own."""
        with self._lock:
            self._drawn = name

    def once(self, name: str, write: Callable[[], None], to: int | None) -> None:
        """Write, if this is what was drawn last and it was not written yet; then go on to `to`.

        Where writing fails the tab stays where it is, and the press may be repeated.
        """
        with self._lock:
            if self._drawn != name:
                return
            write()
            self._drawn = None
            if to is not None:
                self.go(to)


def desk(page: str) -> Desk:
    """The page's, of this tab."""
    key = f"desk-{page}"
    if key not in st.session_state:
        st.session_state[key] = Desk()
    return cast("Desk", st.session_state[key])
