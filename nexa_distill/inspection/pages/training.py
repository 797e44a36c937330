"""Page *Training view*: the tokens of a sample, with the loss mask and the template's tokens.

`python -m nexa_train.token_view` computes them with the training's code in a process of its own:
this package imports neither torch nor a tokenizer.
"""

import json
import subprocess
import sys
from typing import Any

import streamlit as st

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_distill.inspection import components
from nexa_distill.inspection.session import FileState, PageContext, check_seal_once, file_state
from nexa_distill.inspection.tab_state import draw_navigation
from nexa_distill.inspection.table_view import ParquetRows
from nexa_distill.storage.tables import open_table

SAMPLES = 25  # per call of token_view
SECONDS = 120


def draw_page(room: PageContext) -> None:
    path = room.config.storage.path_of("sft_parquet")
    if not path.exists():
        st.info("There is no training set yet: packaging was not run.")
        return
    file = file_state(path)
    check_seal_once(file, room.config)
    stored = _open_samples(file)
    count = len(stored)
    if not count:
        st.info("The training set is empty.")
        return
    place = draw_navigation("Sample", "sample", count)
    # In blocks: starting the process takes seconds, a further sample nothing.
    block = place // SAMPLES * SAMPLES
    with st.spinner("The student's tokenizer is loading ..."):
        views = _load_token_views(file, block, room)
    sample, view = stored.read_row(place), views[place - block]
    st.caption(
        f"{sample['split']} · {components.escape_markdown(sample['template_name'])} · sample\\_id {sample['sample_id']}"
    )
    if "skipped" in view:
        st.warning(f"This sample is not trained on: {components.escape_markdown(view['why'])}.")
        return
    _draw_tokens(view["tokens"])


def _draw_tokens(tokens: list[Any]) -> None:
    # No token predicts the first one.
    trained = sum(counts for _text, counts, _special in tokens[1:])
    for column, (label, value) in zip(
        st.columns(3),
        (
            ("Tokens", f"{len(tokens):,}"),
            ("Trained", f"{trained:,}"),
            ("Share trained", f"{trained / len(tokens):.0%}"),
        ),
        strict=True,
    ):
        column.metric(label, value)
    st.markdown(
        ":green-background[Green] tokens are in the loss. Grey ones are only read. "
        "A frame marks a token of the chat template."
    )
    components.show_spans(
        [(text, ("trained" if counts else "masked") + " special" * special) for text, counts, special in tokens],
        "tokens",
        "tall",
    )


@st.cache_resource(max_entries=2, show_spinner=False)
def _open_samples(file: FileState) -> ParquetRows:
    return ParquetRows(open_table(file.path, TABLES["sft_parquet"], complete=True))


@st.cache_data(max_entries=8, show_spinner=False)
def _load_token_views(file: FileState, start: int, _room: PageContext) -> list[dict[str, Any]]:
    """The output of `nexa_train.token_view` for these rows. Raises InputError with its error."""
    # Streamlit leaves a parameter with an underscore out of the cache's key.
    stored, names = _open_samples(file), ("sample_id", "messages")
    samples = map(stored.read_row, range(start, min(start + SAMPLES, len(stored))))
    lines = "".join(json.dumps({n: sample[n] for n in names}) + "\n" for sample in samples)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nexa_train.token_view",
            "--config",
            _room.config.student,
            "--pipeline-config",
            str(_room.config_path),
        ],
        input=lines,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise InputError(f"python -m nexa_train.token_view ended with {done.returncode}: {last}")
    return [json.loads(line) for line in done.stdout.splitlines()]
