"""Page *Run*: progress and results of the newest run, updated while it runs."""

import altair as alt
import pandas as pd
import streamlit as st

from nexa_distill.console.progress import format_duration
from nexa_distill.contracts import REASONS
from nexa_distill.inspection import components, run_data
from nexa_distill.inspection.session import PageContext
from nexa_distill.reporting.templates import format_number as number

EVERY_SECONDS = 2.0
GREEN, GREY, RED = "#2f6f4f", "#9aa197", "#b4533c"
LABELS = {"done": ":green[done]", "running": ":blue[running]", "waiting": ":gray[waiting]"}


def draw_page(room: PageContext) -> None:
    """The fragment redraws itself, without the rest of the page."""
    st.fragment(run_every=EVERY_SECONDS)(_draw_live)(room)


def _draw_live(room: PageContext) -> None:
    _draw_sessions(room)
    _draw_headline(room)
    left, right = st.columns(2, gap="large")
    with left:
        _draw_funnel(room)
    with right:
        _draw_reasons(room)
    with left:
        _draw_loss_curve(room)
    with right:
        _draw_timings(room)


def _draw_sessions(room: PageContext) -> None:
    name, states = run_data.latest_sessions(room.config)
    if name is None:
        st.info("No run was launched here. `bash launch_pipeline.sh` starts one.")
        return
    st.caption(f"Run {components.escape_markdown(name)}")
    for column, state in zip(st.columns(len(states)), states, strict=True):
        with column, st.container(border=True):
            word = LABELS.get(state.state, f":red[{state.state}]")
            st.markdown(f"**{components.escape_markdown(state.name)}**  \n{word} · {format_duration(state.elapsed)}")
            if state.code is None and state.total:
                left = f" · {format_duration(state.seconds_left)} left" if state.seconds_left is not None else ""
                st.progress(min(1.0, state.done / state.total), f"{state.done:,}/{state.total:,}{left}")


def _draw_headline(room: PageContext) -> None:
    gate, costs = (run_data.load_gate_report(room.config.storage), run_data.load_cost_report(room.config.storage))
    total = costs["total"] if costs else {}
    each = costs["per_kept_sample"] if costs else {}
    share = gate["kept"] / gate["total"] if gate and gate["total"] else None
    facts = (
        ("Answers kept", f"{gate['kept']:,} of {gate['total']:,}" if gate else "not run"),
        ("Share kept", number(share, share=True)),
        ("Judge score, mean", number(gate["judge_score"]["mean"] if gate and gate["judge_score"] else None)),
        ("Spent", _format_usd(total.get("usd"))),
        ("Per kept sample", _format_usd(each.get("usd"))),
        ("Seconds per kept sample", number(each.get("seconds"))),
    )
    for column, (label, value) in zip(st.columns(len(facts)), facts, strict=True):
        column.metric(label, value)


def _format_usd(value: float | None) -> str:
    if value is None:
        return "not known"
    return "$0" if value == 0 else f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def _draw_bars(rows: list[dict[str, object]], value: str, name: str, color: str) -> None:
    frame = pd.DataFrame(rows)
    axis = alt.Axis(title=None, labelLimit=180)
    # sort=None: in the order of the rows, which is that of the pipeline or of the counts.
    base = alt.Chart(frame).encode(x=alt.X(f"{value}:Q", axis=None), y=alt.Y(f"{name}:N", sort=None, axis=axis))
    bars = base.mark_bar(color=color, cornerRadiusEnd=3, height=18)
    words = base.mark_text(align="left", dx=5).encode(text=alt.Text(f"{value}:Q", format=","))
    st.altair_chart((bars + words).properties(height=34 * len(rows)).configure_view(stroke=None))


def _draw_funnel(room: PageContext) -> None:
    st.markdown("##### From prompts to training")
    if rows := run_data.count_funnel(room.config.storage):
        _draw_bars(rows, "rows", "step", GREEN)
    else:
        st.caption("not run")


def _draw_reasons(room: PageContext) -> None:
    st.markdown("##### Why answers were rejected")
    rows = run_data.count_reasons(room.config.storage)
    if not rows:
        st.caption("not run, or nothing was rejected")
        return
    _draw_bars(rows[:8], "answers", "reason", RED)
    with st.expander("What the reasons mean"):
        for row in rows:
            reason, meaning = row["reason"], REASONS[row["reason"]].meaning
            st.markdown(f"**{components.escape_markdown(reason)}**: {components.escape_markdown(meaning)}")


def _draw_loss_curve(room: PageContext) -> None:
    st.markdown("##### Loss per trained token, nats")
    rows = run_data.load_loss_curve(run_data.metrics_path(room.config))
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


def _draw_timings(room: PageContext) -> None:
    st.markdown("##### Stages")
    rows = run_data.stage_timings(room.config)
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
