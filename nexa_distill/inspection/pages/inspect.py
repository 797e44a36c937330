"""Page *Inspect*: one answer with all that is known of it, and a decision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import streamlit as st

from nexa_distill.annotation.annotations import ACTIONS, Annotation, Key
from nexa_distill.contracts import NOT_APPLIED, REASONS
from nexa_distill.inspection import components, row_filters
from nexa_distill.inspection.row_filters import CONFLICT, UNDECIDED, Filters, after, before
from nexa_distill.inspection.session import Room
from nexa_distill.inspection.tab_state import Desk, desk
from nexa_distill.inspection.table_view import Answers, Checks, Mask, Row, Rows
from nexa_distill.inspection.word_diff import differences

# What is told to the teacher when it is asked again ("An earlier answer was rejected: ...").
FAULTS = (
    "it states something false",
    "it does not answer the question",
    "it is too vague",
    "it leaves out something important",
    "it is badly written",
    "it is unsafe",
)
TITLES = {"split": "Split", "domain": "Domain", "template_name": "Task type"}
ICONS = {
    "accept": "✓",
    "reject": "✗",
    "regenerate": "↻",
    "edit": "✎",
    CONFLICT: "⚡",
    UNDECIDED: "·",
}
CODE_TASKS = ("text2sql", "python", "json")
AT = "row"  # in the address: the row's number in the file


def page(room: Room) -> None:
    """Draw the row that the session stands on."""
    answers, checks, decided = room.answers(), room.checks(), room.decided()
    rows = row_filters.matching(answers, checks, decided, _choose_filters(answers, checks, room))
    if not len(answers):
        st.info("This file holds no answers.")
        return
    here = desk("inspect")
    number = _position(here, answers, room)
    if not len(rows):
        st.info("No answer passes these filters.")
        return
    if number not in rows:
        following = after(rows, number)
        number = int(rows[-1]) if following is None else following
        here.go(number)
    if st.query_params.get(AT) != str(number):
        st.query_params[AT] = str(number)
    row, key = answers.row(number), answers.key(number)
    people, done = decided.get(key, []), row_filters.decided_rows(answers, decided)[rows]
    onward = _next_undecided(rows, done, number)
    _progress(here, answers, rows, number, int(done.sum()), onward)
    _buttons(here, room, answers, number, onward if onward is not None else after(rows, number))
    left, right = st.columns([5, 4], gap="large")
    with left:
        _answer(row, key)
    with right:
        _decisions(people)
        _checks(checks, key, row)
        _attempts(room, row, key)


def _choose_filters(answers: Answers, checks: Sequence[Checks], room: Room) -> Filters:
    with st.sidebar:
        st.caption(
            f"{components.plain(room.src.name)} · decisions by {components.plain(room.annotator)}"
        )
        decisions = st.multiselect("Decision", [UNDECIDED, *ACTIONS, CONFLICT])
        values = {
            column: st.multiselect(title, _options(answers, column))
            for column, title in TITLES.items()
        }
        reasons = st.multiselect(
            "Rejected for",
            _options(answers, "rejection_reasons"),
            help="Reasons of the gates.",
            disabled="rejection_reasons" not in answers.small.column_names,
        )
        names = sorted({name for one in checks for name in one.names})
        failed = st.multiselect("Check not passed", names)
        text = st.text_input("Text in prompt, context or answer")
    return Filters(values, reasons, failed, decisions, text)


def _options(answers: Answers, column: str) -> list[str]:
    return answers.values(column)


def _position(here: Desk, answers: Answers, room: Room) -> int:
    """The row that the tab stands on; a new one starts where its address says."""
    if here.at is None:
        asked = str(st.query_params.get(AT, room.start))
        here.at = int(asked) if asked.isdecimal() else room.start
    here.at = min(max(0, here.at), len(answers) - 1)
    return here.at


def _progress(
    here: Desk, answers: Answers, rows: Rows, number: int, done: int, onward: int | None
) -> None:
    place = int(np.searchsorted(rows, number)) + 1
    filtered = "" if len(rows) == len(answers) else f" (of {len(answers):,} in the file)"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Answer **{place:,}** of {len(rows):,}{filtered} · **{done:,}** decided")
        st.space("stretch")
        _move(here, "Previous", "k", before(rows, number))
        _move(here, "Next", "j", after(rows, number))
        _move(here, "Next undecided", "u", onward)
    st.progress(done / len(rows))


def _next_undecided(rows: Rows, done: Mask, number: int) -> int | None:
    """The next of `rows` that is not `done`; behind the last one, the first of all."""
    left = rows[~done]
    left = left[left != number]
    following = after(left, number)
    return following if following is not None else (int(left[0]) if len(left) else None)


def _buttons(here: Desk, room: Room, answers: Answers, number: int, onward: int | None) -> None:
    """The decisions on the row that is seen."""
    key = answers.key(number)
    name = f"{key[0]}-{key[1]}"
    here.draw(name)

    def decide(action: str) -> None:
        reason, note = _said(name)
        said = {"reason": None if action == "accept" else reason, "note": note}
        here.once(name, lambda: room.decide(key, action, **said), onward)

    def edit() -> None:
        here.editing = name

    with st.container(horizontal=True, vertical_alignment="bottom"):
        for action, letter in (("accept", "a"), ("reject", "x"), ("regenerate", "g")):
            st.button(
                action.capitalize(),
                key=f"{action}-{name}",
                shortcut=letter,
                type="primary" if action == "accept" else "secondary",
                on_click=decide,
                args=(action,),
            )
        st.button("Edit", key=f"edit-{name}", shortcut="e", on_click=edit)
        st.selectbox(
            "Reason",
            FAULTS,
            index=None,
            key=f"reason-{name}",
            width=240,
            accept_new_options=True,
            placeholder="reason (optional)",
            label_visibility="collapsed",
        )
        st.text_input(
            "Note",
            key=f"note-{name}",
            placeholder="note (optional)",
            width=220,
            label_visibility="collapsed",
        )
    if here.editing == name:
        _editor(here, room, answers.row(number), key, name, onward)


def _said(name: str) -> tuple[str | None, str | None]:
    """Reason and note beside the buttons."""
    return st.session_state.get(f"reason-{name}"), st.session_state.get(f"note-{name}") or None


def _move(here: Desk, label: str, letter: str, to: int | None) -> None:
    st.button(
        label,
        key=f"move-{letter}",
        shortcut=letter,
        disabled=to is None,
        on_click=here.go,
        args=(to or 0,),
    )


def _editor(here: Desk, room: Room, row: Row, key: Key, name: str, onward: int | None) -> None:
    whole = row["teacher_output"] or ""
    if components.hidden_characters(whole):
        st.warning("This answer is too long to be edited here.")
        return
    with st.form(f"editor-{name}"):
        edited = st.text_area("The answer as it should be", whole, height=260)
        if st.form_submit_button("Save the edit", type="primary"):
            reason, note = _said(name)
            said = {"reason": reason, "note": note, "edited_output": edited}
            here.once(name, lambda: room.decide(key, "edit", **said), onward)
            here.editing = None
            st.rerun()


def _answer(row: Row, key: Key) -> None:
    look = "mono" if row["template_name"] in CODE_TASKS else ""
    facts = [
        row["template_name"],
        row["domain"],
        row["split"],
        row["model_id"],
        f"attempt {key[1]}",
        row["finish_reason"],
        row["answer_flag"],
    ]
    st.markdown("##### Prompt")
    st.caption(" · ".join(components.plain(fact) for fact in facts if fact))
    components.text(row["user_prompt"], "prompt", "quiet")
    if row["context"] and row["context"] not in row["user_prompt"]:
        st.markdown("##### Context")
        components.text(row["context"], "context", "quiet")
    st.markdown("##### Answer")
    components.text(row["teacher_output"], "answer", look)
    for title, column in (
        ("Reasoning", "reasoning_output"),
        ("Known answer", "reference"),
        ("Known query", "gold_sql"),
    ):
        if row[column]:
            with st.expander(title, expanded=column == "gold_sql"):
                components.text(row[column], column, f"{look} quiet")
    if row["raw_output"]:
        with st.expander("As the model wrote it, before cleaning"):
            components.text(row["raw_output"], "raw", "quiet")
    st.caption(f"sample\\_id {row['sample_id']}")


def _decisions(people: Sequence[Annotation]) -> None:
    st.markdown("##### Decision")
    word = row_filters.said(people)
    if word == CONFLICT:
        st.warning("The annotators disagree. Until they agree this counts as a rejection.")
    if not people:
        st.caption("Nobody has decided yet.")
    for one in people:
        said = " · ".join(components.plain(text) for text in (one.reason, one.note) if text)
        st.markdown(
            f"{ICONS[one.action]} **{one.action}** by {components.plain(one.annotator)}"
            + (f": {said}" if said else "")
        )
        if one.edited_output is not None:
            with st.expander("The edited answer"):
                components.text(one.edited_output, f"edited-{one.annotator}")


def _checks(checks: Sequence[Checks], key: Key, row: Row) -> None:
    found = [line for one in checks for line in one.of(key)]
    failed = [line for line in found if not line["ok"] and line["reason"] != NOT_APPLIED]
    st.markdown("##### Checks")
    for reason in row.get("rejection_reasons") or []:
        st.markdown(
            f":red[✗] **{components.plain(reason)}**: {components.plain(REASONS.get(reason, ''))}"
        )
    if not found:
        st.caption("No check was made of this answer.")
        return
    st.caption(f"{len(found) - len(failed)} of {len(found)} passed")
    order = sorted(found, key=lambda line: (line not in failed, line["check"]))
    words = {True: "passed", False: "failed", None: "not known"}
    rows = [
        (
            "bad" if line in failed else "",
            [
                line["check"],
                words[line["ok"]],
                _number(line["value"]),
                components.cut(" ".join(filter(None, (line["reason"], line["detail"]))))[:300],
            ],
        )
        for line in order
    ]
    components.table(("check", "result", "value", "why"), rows, "checks")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def _attempts(room: Room, row: Row, key: Key) -> None:
    others = room.other_attempts(key)
    if not others:
        return
    st.markdown("##### Other attempts")
    for path, number in others:
        _attempt(room, row, path, number)


def _attempt(room: Room, row: Row, path: Path, number: int) -> None:
    other = room.answers(path).row(number)
    with st.expander(f"Attempt {other['attempt']} by {components.plain(other['model_id'])}"):
        st.caption("Words only in this attempt are green, words only in the shown answer are red.")
        texts = [components.cut(one["teacher_output"] or "") for one in (row, other)]
        components.spans(differences(*texts), f"attempt-{other['attempt']}")
