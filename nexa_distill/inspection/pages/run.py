"""Page *Run*: where a run stands and what it made of its rows; follows it while it goes on."""

import altair as alt
import pandas as pd
import streamlit as st

from nexa_distill.console.progress import clock
from nexa_distill.contracts import REASONS
from nexa_distill.inspection import components, run_data
from nexa_distill.inspection.session import Room
from nexa_distill.reporting.stage_reports import shown as number

EVERY_SECONDS = 2.0
GREEN, GREY, RED = "#2f6f4f", "#9aa197", "#b4533c"
LABELS = {"done": ":green[done]", "running": ":blue[running]", "waiting": ":gray[waiting]"}


def page(room: Room) -> None:
    """Draw the page; the fragment draws itself again."""
    st.fragment(run_every=EVERY_SECONDS)(_live)(room)


def _live(room: Room) -> None:
    _sessions(room)
    _headline(room)
    left, right = st.columns(2, gap="large")
    with left:
        _funnel(room)
    with right:
        _reasons(room)
    with left:
        _curve(room)
    with right:
        _timing(room)


def _sessions(room: Room) -> None:
    name, states = run_data.sessions(room.config)
    if name is None:
        st.info("No run was launched here. `bash launch_pipeline.sh` starts one.")
        return
    st.caption(f"Run {components.plain(name)}")
    for column, state in zip(st.columns(len(states)), states, strict=True):
        with column, st.container(border=True):
            word = LABELS.get(state.state, f":red[{state.state}]")
            st.markdown(f"**{components.plain(state.name)}**  \n{word} · {clock(state.elapsed)}")
            if state.code is None and state.total:
                left = f" · {clock(state.left)} left" if state.left is not None else ""
                st.progress(
                    min(1.0, state.done / state.total), f"{state.done:,}/{state.total:,}{left}"
                )


def _headline(room: Room) -> None:
    gate, costs = run_data.gate_facts(room.config.storage), run_data.costs(room.config.storage)
    total = costs["total"] if costs else {}
    each = costs["per_kept_sample"] if costs else {}
    share = gate["kept"] / gate["total"] if gate and gate["total"] else None
    facts = (
        ("Answers kept", f"{gate['kept']:,} of {gate['total']:,}" if gate else "not run"),
        ("Share kept", number(share, share=True)),
        (
            "Judge score, mean",
            number(gate["judge_score"]["mean"] if gate and gate["judge_score"] else None),
        ),
        ("Spent", _usd(total.get("usd"))),
        ("Per kept sample", _usd(each.get("usd"))),
        ("Seconds per kept sample", number(each.get("seconds"))),
    )
    for column, (label, value) in zip(st.columns(len(facts)), facts, strict=True):
        column.metric(label, value)


def _usd(value: float | None) -> str:
    if value is None:
        return "not known"
    return "$0" if value == 0 else f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def _bars(rows: list[dict[str, object]], value: str, name: str, color: str) -> None:
    frame = pd.DataFrame(rows)
    axis = alt.Axis(title=None, labelLimit=180)
    base = alt.Chart(frame).encode(
        x=alt.X(f"{value}:Q", axis=None), y=alt.Y(f"{name}:N", sort=None, axis=axis)
    )
    bars = base.mark_bar(color=color, cornerRadiusEnd=3, height=18)
    words = base.mark_text(align="left", dx=5).encode(text=alt.Text(f"{value}:Q", format=","))
    st.altair_chart((bars + words).properties(height=34 * len(rows)).configure_view(stroke=None))


def _funnel(room: Room) -> None:
    st.markdown("##### From prompts to training")
    if rows := run_data.funnel(room.config.storage):
        _bars(rows, "rows", "step", GREEN)
    else:
        st.caption("not run")


def _reasons(room: Room) -> None:
    st.markdown("##### Why answers were rejected")
    rows = run_data.reasons(room.config.storage)
    if not rows:
        st.caption("not run, or nothing was rejected")
        return
    _bars(rows[:8], "answers", "reason", RED)
    with st.expander("What the reasons mean"):
        for row in rows:
            text = (
                f"**{components.plain(row['reason'])}**: {components.plain(REASONS[row['reason']])}"
            )
            st.markdown(text)


def _curve(room: Room) -> None:
    st.markdown("##### Loss per trained token, nats")
    rows = run_data.curve(run_data.metrics_path(room.config))
    if not rows:
        st.caption("not run")
        return
    color = alt.Color(
        "kind:N",
        title=None,
        legend=alt.Legend(orient="top"),
        scale=alt.Scale(domain=["training", "validation"], range=[GREY, GREEN]),
    )
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("loss:Q", title=None, scale=alt.Scale(zero=False)),
        color=color,
    )
    dots = base.transform_filter("datum.kind == 'validation'").mark_point(filled=True, size=50)
    st.altair_chart((base.mark_line() + dots).properties(height=260).configure_view(stroke=None))


def _timing(room: Room) -> None:
    st.markdown("##### Stages")
    rows = run_data.timing(room.config)
    if not rows:
        st.caption("not run")
        return
    st.dataframe(
        rows,
        hide_index=True,
        height=38 + 35 * len(rows),
        column_config={
            "stage": st.column_config.TextColumn(width="medium"),
            "seconds": st.column_config.NumberColumn(format="%.1f"),
            "US$": st.column_config.NumberColumn(format="%.4f"),
        },
    )
