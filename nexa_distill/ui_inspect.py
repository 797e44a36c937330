"""The inspection app: annotate answers, watch a run, compare students.

Reads   --src (any table of answers; default: the answers kept by SampleGate, or else the newest
        table of answers), the checks, reports and logs of the run
Writes  `storage.annotations` (or --label-path): one line per decision, on disk before the next row
        is shown; `storage.rejected_labels`; `storage.preferences` on the Compare page
Keeps   every decision: a reload, a second tab and a kill lose none
Raises  nothing: errors are shown on the page, with the next command

It listens on 127.0.0.1 only, sends no statistics and shows model output as text, never as HTML.
Keys: a accept, x reject (r is taken by Streamlit), g regenerate, e edit, j next, k previous, u next
undecided.

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
from nexa_distill.inspection.session import PageContext, require_inside
from nexa_distill.settings.pipeline import DistillConfig, load_config

SOURCES = ("filtered_dataset", "rule_filtered", "collected_dataset")


class _Parser(cli.Parser):
    def error(self, message: str) -> NoReturn:
        # argparse would exit, and the page would stay empty.
        raise UsageError(f"{message}; flags follow `--`:\n{self.format_usage()}")


def parse_flags(words: Sequence[str]) -> argparse.Namespace:
    """Parse the flags after `--`. Raises UsageError (2)."""
    parser = _Parser("ui_inspect.py", add_help=False)
    add = parser.add_argument
    add("--config", type=Path, default=cli.DEFAULT_CONFIG, metavar="FILE")
    add("--src", type=Path, metavar="PARQUET")
    add("--label-path", type=Path, metavar="JSONL")
    add("--start-index", type=int, default=0, metavar="N")
    add("--annotator", metavar="NAME")
    add("--allow-outside", action="store_true")
    return parser.parse_args(words)


def load_context(words: Sequence[str]) -> PageContext:
    args = parse_flags(words)
    config = load_config(args.config)
    src = args.src or default_source(config)
    return PageContext(
        config,
        args.config,
        require_inside(src, config, outside=args.allow_outside),
        args.label_path or config.storage.path_of("annotations"),
        args.start_index,
        args.annotator or getpass.getuser(),
    )


def default_source(config: DistillConfig) -> Path:
    paths = [config.storage.path_of(key) for key in SOURCES]
    return next((path for path in paths if path.exists()), paths[-1])


def is_reachable_from_outside() -> bool:
    address = st.get_option("server.address")
    try:
        # Without an address, Streamlit listens on all of them.
        return not ipaddress.ip_address(address or "0.0.0.0").is_loopback  # noqa: S104 - asked, not bound
    except ValueError:
        return str(address) != "localhost"


def main() -> None:
    """Draw the requested page."""
    st.set_page_config("Nexa Distill", layout="wide")
    st.html("<style>.stMainBlockContainer {padding: 4rem 2.5rem 3rem}</style>")
    if is_reachable_from_outside():
        st.warning(
            "This server can be reached from other machines, without a password. "
            "Start it with `--server.address 127.0.0.1`, and from elsewhere use `ssh -L`."
        )
    pages = [
        st.Page(lambda: draw_page("inspect"), title="Inspect", url_path="inspect", default=True),
        st.Page(lambda: draw_page("run"), title="Run", url_path="run"),
        st.Page(lambda: draw_page("compare"), title="Compare", url_path="compare"),
        st.Page(lambda: draw_page("training"), title="Training view", url_path="training"),
    ]
    st.navigation(pages, position="top").run()


def draw_page(name: str) -> None:
    # Imported on demand, so that a page waits for its own libraries only.
    page = import_module(f"nexa_distill.inspection.pages.{name}")
    try:
        page.draw_page(load_context(sys.argv[1:]))
    except NexaError as error:
        st.error("This cannot be shown.")
        st.code(str(error), language=None, wrap_lines=True)


if __name__ == "__main__":
    main()
