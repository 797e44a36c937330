"""Page *Training view*: which tokens of a sample the loss sees, with the template's own tokens.

The tokens come from `python -m nexa_train.token_view`, a process of its own that uses the masks of
the training; this package imports neither torch nor a tokenizer.
"""

import json
import subprocess
import sys
from typing import Any

import pyarrow.parquet as pq
import streamlit as st

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_distill.inspection import components
from nexa_distill.inspection.session import File, Room, look, sealed_once
from nexa_distill.storage.tables import open_table

SAMPLES = 25  # of one call of the tokenizer
SECONDS = 120


def page(room: Room) -> None:
    """Draw the sample that the session stands on."""
    path = room.config.storage.path("sft_parquet")
    if not path.exists():
        st.info("There is no training set yet: packaging was not run.")
        return
    file = look(path)
    sealed_once(file, room.config)
    count = _open(file).metadata.num_rows
    if not count:
        st.info("The training set is empty.")
        return
    place = min(st.session_state.get("sample", 0), count - 1)
    _moves(place, count)
    block = place // SAMPLES * SAMPLES
    samples = _samples(file, block)
    with st.spinner("The student's tokenizer is loading ..."):
        views = _views(file, block, room)
    sample, view = samples[place - block], views[place - block]
    st.caption(
        f"{sample['split']} · {components.plain(sample['template_name'])} · sample\\_id "
        f"{sample['sample_id']}"
    )
    if "skipped" in view:
        st.warning(f"This sample is not trained on: {components.plain(view['why'])}.")
        return
    _tokens(view["tokens"])


def _step(change: int, last: int) -> None:
    st.session_state["sample"] = min(max(0, st.session_state.get("sample", 0) + change), last)


def _moves(place: int, count: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Sample **{place + 1:,}** of {count:,}")
        st.space("stretch")
        for label, letter, change in (("Previous", "k", -1), ("Next", "j", 1)):
            st.button(
                label,
                shortcut=letter,
                on_click=_step,
                args=(change, count - 1),
                disabled=not 0 <= place + change < count,
            )


def _tokens(tokens: list[Any]) -> None:
    # The first token has no predecessor that could predict it.
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
    components.spans(
        [
            (text, ("trained" if counts else "masked") + " special" * special)
            for text, counts, special in tokens
        ],
        "tokens",
        "tall",
    )


@st.cache_resource(max_entries=2, show_spinner=False)
def _open(file: File) -> pq.ParquetFile:
    return open_table(file.path, TABLES["sft_parquet"], complete=True)


@st.cache_data(max_entries=8, show_spinner=False)
def _samples(file: File, start: int) -> list[dict[str, Any]]:
    """Rows `start` to `start + SAMPLES`."""
    found: list[dict[str, Any]] = []
    seen = 0
    for batch in _open(file).iter_batches(4096):
        if seen + batch.num_rows > start:
            found += batch.slice(max(0, start - seen), SAMPLES - len(found)).to_pylist()
        seen += batch.num_rows
        if len(found) >= SAMPLES:
            break
    return found


@st.cache_data(max_entries=8, show_spinner=False)
def _views(file: File, start: int, _room: Room) -> list[dict[str, Any]]:
    """What `nexa_train.token_view` says of these rows. Raises InputError with its last word."""
    samples = _samples(file, start)
    names = ("sample_id", "messages")
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
