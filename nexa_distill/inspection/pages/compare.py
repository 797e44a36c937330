"""Page *Compare*: who answers a held-out prompt how; with names, or blind with a preference."""

from collections.abc import Sequence
from datetime import UTC, datetime

import streamlit as st

from nexa_distill.annotation import preferences
from nexa_distill.annotation.preferences import Preference
from nexa_distill.inspection import components, held_out_answers
from nexa_distill.inspection.held_out_answers import TITLES, HeldOut
from nexa_distill.inspection.session import Room
from nexa_distill.inspection.tab_state import desk

PAIRS = {
    "before and after training": ("before", "after"),
    "trained student and teacher": ("after", "teacher"),
}


def page(room: Room) -> None:
    """Draw the prompt that the session stands on."""
    prompts = held_out_answers.load(room.config.storage)
    if not prompts:
        st.info("The student has not answered held-out prompts yet: the evaluation was not run.")
        return
    with st.sidebar:
        blind = st.toggle("Blind", help="Names and scores are hidden; your preference is kept.")
        pair = PAIRS[st.radio("Compare", list(PAIRS), disabled=not blind)]
    if blind:
        _blind(room, prompts, pair)
    else:
        _open(prompts)


def _step(change: int, last: int) -> None:
    st.session_state["compared"] = min(max(0, st.session_state.get("compared", 0) + change), last)


def _moves(place: int, count: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Prompt **{place + 1}** of {count}")
        st.space("stretch")
        for label, letter, change in (("Previous", "k", -1), ("Next", "j", 1)):
            st.button(
                label,
                shortcut=letter,
                on_click=_step,
                args=(change, count - 1),
                disabled=not 0 <= place + change < count,
            )


def _open(prompts: Sequence[HeldOut]) -> None:
    place = min(st.session_state.get("compared", 0), len(prompts) - 1)
    one = prompts[place]
    _moves(place, len(prompts))
    components.text(one.user_prompt, "prompt", "quiet")
    for column, source in zip(st.columns(len(TITLES)), TITLES, strict=True):
        with column:
            st.markdown(f"##### {TITLES[source]}")
            st.markdown(_verdict(one, source))
            if source in one.answers:
                components.text(one.answers[source], f"answer-{source}")
            else:
                st.caption("not run")


def _verdict(one: HeldOut, source: str) -> str:
    """What the gates say, and the judges' scores."""
    against = one.reasons.get(source)
    words = ":gray[gates: not run]" if against is None else ":green[passes the gates]"
    if against:
        words = f":red[{', '.join(map(components.plain, against))}]"
    scores = one.scores.get(source, {})
    return " · ".join(
        [words, *(f"{name.split('.')[1]} {value:.2f}" for name, value in scores.items())]
    )


def _blind(room: Room, prompts: Sequence[HeldOut], pair: tuple[str, str]) -> None:
    path = room.config.storage.path("preferences")
    every = preferences.current(preferences.read(path))
    of_pair = [one for one in every if {one.first, one.second} == set(pair)]
    mine = [one for one in of_pair if one.annotator == room.annotator]
    both = [one for one in prompts if all(one.answers.get(source) for source in pair)]
    seen = {frozenset((one.first_output, one.second_output)) for one in mine}
    left = [one for one in both if _texts(one, pair) not in seen]
    if not both:
        st.info("These two have no prompt that both have answered.")
        return
    st.progress(1 - len(left) / len(both), f"{len(both) - len(left)} of {len(both)} compared")
    if not left:
        _result(mine, pair)
        return
    one = left[0]
    order = held_out_answers.blind_order(one.sample_id, room.annotator, pair)
    _choice(room, one, order)
    components.text(one.user_prompt, "prompt", "quiet")
    for column, source, title in zip(st.columns(2), order, ("Left", "Right"), strict=True):
        with column:
            st.markdown(f"##### {title}")
            components.text(one.answers[source], f"blind-{title}")


def _texts(one: HeldOut, pair: tuple[str, str]) -> frozenset[str]:
    return frozenset(str(one.answers[source]) for source in pair)


def _choice(room: Room, one: HeldOut, order: tuple[str, str]) -> None:
    name = f"{one.sample_id}-{'-'.join(order)}"
    here = desk("compare")
    here.draw(name)

    def prefer(choice: str) -> None:
        event = {
            "sample_id": one.sample_id,
            "first": order[0],
            "second": order[1],
            "first_output": one.answers[order[0]],
            "second_output": one.answers[order[1]],
            "preferred": choice,
            "annotator": room.annotator,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        path = room.config.storage.path("preferences")
        preference = Preference.model_validate(event)
        here.once(name, lambda: preferences.append(path, preference), None)

    with st.container(horizontal=True):
        for label, letter, choice in (
            ("Left is better", "1", "first"),
            ("Right is better", "2", "second"),
            ("No difference", "0", "tie"),
        ):
            st.button(
                label,
                key=f"{choice}-{one.sample_id}",
                shortcut=letter,
                on_click=prefer,
                args=(choice,),
            )


def _result(mine: Sequence[Preference], pair: tuple[str, str]) -> None:
    st.success("You have compared all of them. This is whom you preferred:")
    counts = preferences.tally(mine)
    for column, source in zip(st.columns(3), (*pair, "tie"), strict=True):
        column.metric(TITLES.get(source, "No difference"), counts[source])
