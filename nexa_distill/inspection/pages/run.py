"""Page *Run*: progress and results of the newest run, updated while it runs."""

import streamlit as st

from nexa_distill.console.progress import format_duration
from nexa_distill.contracts import REASONS
from nexa_distill.inspection import components, run_data
from nexa_distill.inspection.session import PageContext
from nexa_distill.reporting import training_curve
from nexa_distill.reporting.templates import format_number as number

EVERY_SECONDS = 2.0
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


def _draw_funnel(room: PageContext) -> None:
    st.markdown("##### From prompts to training")
    if rows := run_data.count_funnel(room.config.storage):
        bars = [(row["step"], row["rows"], f"{row['rows']:,}", "after") for row in rows]
        components.show_plot("bars", bars, key="funnel")
    else:
        st.caption("not run")


def _draw_reasons(room: PageContext) -> None:
    st.markdown("##### Why answers were rejected")
    rows = run_data.count_reasons(room.config.storage)
    if not rows:
        st.caption("not run, or nothing was rejected")
        return
    bars = [(row["reason"], row["answers"], f"{row['answers']:,}", "before") for row in rows[:8]]
    components.show_plot("bars", bars, key="reasons")
    with st.expander("What the reasons mean"):
        for row in rows:
            reason, meaning = row["reason"], REASONS[row["reason"]].meaning
            st.markdown(f"**{components.escape_markdown(reason)}**: {components.escape_markdown(meaning)}")


def _draw_loss_curve(room: PageContext) -> None:
    st.markdown("##### Loss per trained token, nats")
    if rows := training_curve.read_metrics(run_data.metrics_path(room.config)):
        lines = training_curve.loss_lines(rows, "training", "validation")
        components.show_plot("lines", lines, "step", "loss per trained token, nats", key="loss")
    else:
        st.caption("not run")


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
