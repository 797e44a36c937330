"""The inspection room: a person looks at answers and decides, watches a run, compares students.

Reads   --src (any table of answers; default: what SampleGate kept, or else the newest table of
        answers that there is), the checks, reports and logs of the run
Writes  `storage.annotations` (or --label-path): one line per decision, on disk before the next row
        is shown; `storage.rejected_labels`; `storage.preferences` on the Compare page
Keeps   every decision: a reload, a second tab and a kill lose none
Raises  nothing: what is wrong with a file or a flag stands on the page, with the next command

It listens on 127.0.0.1 only, sends no statistics and shows what models wrote as text, never as
HTML. Keys: a accept, x reject (r is taken by Streamlit), g regenerate, e edit, j next, k previous,
u next undecided.

    streamlit run nexa_distill/ui_inspect.py -- --src PATH [--annotator NAME] [--start-index N]
"""

import argparse
import getpass
import ipaddress
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import streamlit as st

from nexa_distill.console import cli
from nexa_distill.errors import NexaError, UsageError
from nexa_distill.inspection.session import Room, allowed
from nexa_distill.settings.pipeline import DistillConfig, load_config

SOURCES = ("filtered_dataset", "rule_filtered", "collected_dataset")


class _Parser(cli.Parser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; flags stand behind `--`:\n{self.format_usage()}")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags behind `--`. Raises UsageError (2)."""
    parser = _Parser("ui_inspect.py", add_help=False)
    add = parser.add_argument
    add("--config", type=Path, default=cli.DEFAULT_CONFIG, metavar="FILE")
    add("--src", type=Path, metavar="PARQUET")
    add("--label-path", type=Path, metavar="JSONL")
    add("--start-index", type=int, default=0, metavar="N")
    add("--annotator", metavar="NAME")
    add("--allow-outside", action="store_true")
    return parser.parse_args(words)


def open_room(words: Sequence[str]) -> Room:
    """The room that the flags and the configuration describe."""
    given = parse(words)
    config = load_config(given.config)
    src = given.src or default_source(config)
    return Room(
        config,
        given.config,
        allowed(src, config, outside=given.allow_outside),
        given.label_path or config.storage.path("annotations"),
        given.start_index,
        given.annotator or getpass.getuser(),
    )


def default_source(config: DistillConfig) -> Path:
    """The last table of answers that the run has reached; the first one when there is none."""
    paths = [config.storage.path(key) for key in SOURCES]
    return next((path for path in paths if path.exists()), paths[-1])


def listens_elsewhere() -> bool:
    """Whether other machines can reach this server."""
    address = st.get_option("server.address")
    try:
        return not ipaddress.ip_address(address or "0.0.0.0").is_loopback  # noqa: S104 - asked, not bound
    except ValueError:
        return str(address) != "localhost"


def main() -> None:
    """Draw the page that is asked for."""
    st.set_page_config("Nexa Distill", layout="wide")
    st.html("<style>.stMainBlockContainer {padding: 4rem 2.5rem 3rem}</style>")
    if listens_elsewhere():
        st.warning(
            "This server can be reached from other machines, and it asks nobody for a password. "
            "Start it with `--server.address 127.0.0.1`, and from elsewhere use `ssh -L`."
        )
    pages = [
        st.Page(lambda: draw("inspect"), title="Inspect", url_path="inspect", default=True),
        st.Page(lambda: draw("run"), title="Run", url_path="run"),
        st.Page(lambda: draw("compare"), title="Compare", url_path="compare"),
        st.Page(lambda: draw("training"), title="Training view", url_path="training"),
    ]
    st.navigation(pages, position="top").run()


def draw(name: str) -> None:
    """One page; an error that a person can act on stands in its place.

    Its module is imported when it is asked for: the first page need not wait for plots.
    """
    page = import_module(f"nexa_distill.inspection.pages.{name}").page
    try:
        page(open_room(sys.argv[1:]))
    except NexaError as error:
        st.error("This cannot be shown.")
        st.code(str(error), language=None, wrap_lines=True)


if __name__ == "__main__":
    main()
