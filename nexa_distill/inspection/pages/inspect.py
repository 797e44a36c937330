"""Page *Inspect*: one answer with its checks and other attempts, and the buttons to decide."""

from collections.abc import Sequence

import numpy as np
import streamlit as st

from nexa_distill.annotation.annotations import ACTIONS, Annotation, Key
from nexa_distill.contracts import NOT_APPLIED, REASONS, Row
from nexa_distill.inspection import components, row_filters
from nexa_distill.inspection.row_filters import CONFLICT, UNDECIDED, RowFilters, next_row, previous_row
from nexa_distill.inspection.session import PageContext
from nexa_distill.inspection.tab_state import TabState, get_tab_state
from nexa_distill.inspection.table_view import AnswerTable, ChecksFile, Mask, Rows
from nexa_distill.inspection.word_diff import diff_words

# Suggested reasons. The repair prompt contains the chosen one.
FAULTS = (
    "it states something false",
    "it does not answer the question",
    "it is too vague",
    "it leaves out something important",
    "it is badly written",
    "it is unsafe",
)
TITLES = {"split": "Split", "domain": "Domain", "template_name": "Task type"}
ICONS = {"accept": "✓", "reject": "✗", "regenerate": "↻", "edit": "✎", CONFLICT: "⚡", UNDECIDED: "·"}
CODE_TASKS = ("text2sql", "python", "json")
ROW_PARAMETER = "row"  # URL parameter: the row number in the file


def draw_page(room: PageContext) -> None:
    answers, checks, decided = room.load_answers(), room.load_checks(), room.load_decisions()
    rows = row_filters.matching_rows(answers, checks, decided, _choose_filters(answers, checks, room))
    if not len(answers):
        st.info("This file contains no answers.")
        return
    here = get_tab_state("inspect")
    number = _current_row(here, answers, room)
    if not len(rows):
        st.info("No answer passes these filters.")
        return
    # A decision may take its row out of the filter: then the next one is shown.
    if number not in rows:
        following = next_row(rows, number)
        number = int(rows[-1]) if following is None else following
        here.move_to(number)
    if st.query_params.get(ROW_PARAMETER) != str(number):
        st.query_params[ROW_PARAMETER] = str(number)
    row, key = answers.read_row(number), answers.key_at(number)
    people, done = decided.get(key, []), row_filters.decided_rows(answers, decided)[rows]
    onward = _next_undecided(rows, done, number)
    _draw_progress(here, answers, rows, number, int(done.sum()), onward)
    _draw_buttons(here, room, answers, number, onward if onward is not None else next_row(rows, number))
    left, right = st.columns([5, 4], gap="large")
    with left:
        _draw_answer(row, key)
    with right:
        _draw_decisions(people)
        _draw_checks(checks, key, row)
        _draw_attempts(room, row, key)


def _choose_filters(answers: AnswerTable, checks: Sequence[ChecksFile], room: PageContext) -> RowFilters:
    with st.sidebar:
        st.caption(
            f"{components.escape_markdown(room.src.name)} · decisions by {components.escape_markdown(room.annotator)}"
        )
        decisions = st.multiselect("Decision", [UNDECIDED, *ACTIONS, CONFLICT])
        values = {column: st.multiselect(title, answers.values(column)) for column, title in TITLES.items()}
        reasons = st.multiselect(
            "Rejected for",
            answers.values("rejection_reasons"),
            help="Reasons of the gates.",
            disabled="rejection_reasons" not in answers.small.column_names,
        )
        names = sorted({name for file in checks for name in file.check_names})
        failed = st.multiselect("Check not passed", names)
        text = st.text_input("Text in prompt, context or answer")
    return RowFilters(values, reasons, failed, decisions, text)


def _current_row(here: TabState, answers: AnswerTable, room: PageContext) -> int:
    if here.at is None:
        # A new tab starts at the row in its URL.
        value = str(st.query_params.get(ROW_PARAMETER, room.start))
        here.at = int(value) if value.isdecimal() else room.start
    here.at = min(max(0, here.at), len(answers) - 1)
    return here.at


def _draw_progress(
    here: TabState, answers: AnswerTable, rows: Rows, number: int, done: int, onward: int | None
) -> None:
    place = int(np.searchsorted(rows, number)) + 1
    filtered = "" if len(rows) == len(answers) else f" (of {len(answers):,} in the file)"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Answer **{place:,}** of {len(rows):,}{filtered} · **{done:,}** decided")
        st.space("stretch")
        _draw_move_button(here, "Previous", "k", previous_row(rows, number))
        _draw_move_button(here, "Next", "j", next_row(rows, number))
        _draw_move_button(here, "Next undecided", "u", onward)
    st.progress(done / len(rows))


def _next_undecided(rows: Rows, done: Mask, number: int) -> int | None:
    undecided = rows[~done]
    undecided = undecided[undecided != number]
    following = next_row(undecided, number)
    # After the last one, the first of those that were passed over.
    if following is None and len(undecided):
        return int(undecided[0])
    return following


def _draw_buttons(here: TabState, room: PageContext, answers: AnswerTable, number: int, onward: int | None) -> None:
    key = answers.key_at(number)
    name = f"{key[0]}-{key[1]}"
    here.mark_drawn(name)

    def save_decision(action: str) -> None:
        reason, note = _reason_and_note(name)
        comments = {"reason": None if action == "accept" else reason, "note": note}
        here.commit_once(name, lambda: room.write_decision(key, action, **comments), onward)

    def open_editor() -> None:
        here.editing = name

    with st.container(horizontal=True, vertical_alignment="bottom"):
        for action, letter in (("accept", "a"), ("reject", "x"), ("regenerate", "g")):
            st.button(
                action.capitalize(),
                key=f"{action}-{name}",
                shortcut=letter,
                type="primary" if action == "accept" else "secondary",
                on_click=save_decision,
                args=(action,),
            )
        st.button("Edit", key=f"edit-{name}", shortcut="e", on_click=open_editor)
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
            "Note", key=f"note-{name}", placeholder="note (optional)", width=220, label_visibility="collapsed"
        )
    if here.editing == name:
        _draw_editor(here, room, answers.read_row(number), key, name, onward)


def _reason_and_note(name: str) -> tuple[str | None, str | None]:
    return st.session_state.get(f"reason-{name}"), st.session_state.get(f"note-{name}") or None


def _draw_move_button(here: TabState, label: str, letter: str, to: int | None) -> None:
    st.button(label, key=f"move-{letter}", shortcut=letter, disabled=to is None, on_click=here.move_to, args=(to or 0,))


def _draw_editor(here: TabState, room: PageContext, row: Row, key: Key, name: str, onward: int | None) -> None:
    whole = row["teacher_output"] or ""
    if components.hidden_characters(whole):
        st.warning("This answer is too long to be edited here.")
        return
    with st.form(f"editor-{name}"):
        edited = st.text_area("The answer as it should be", whole, height=260)
        if st.form_submit_button("Save the edit", type="primary"):
            reason, note = _reason_and_note(name)
            comments = {"reason": reason, "note": note, "edited_output": edited}
            here.commit_once(name, lambda: room.write_decision(key, "edit", **comments), onward)
            here.editing = None
            st.rerun()


def _draw_answer(row: Row, key: Key) -> None:
    look = "mono" if row["template_name"] in CODE_TASKS else ""
    facts = [row[name] for name in ("template_name", "domain", "split", "model_id")]
    facts += [f"attempt {key[1]}", row["finish_reason"], row["answer_flag"]]
    st.markdown("##### Prompt")
    st.caption(" · ".join(components.escape_markdown(fact) for fact in facts if fact))
    components.show_text(row["user_prompt"], "prompt", "quiet")
    # Most prompts contain their context: it is not shown twice.
    if row["context"] and row["context"] not in row["user_prompt"]:
        st.markdown("##### Context")
        components.show_text(row["context"], "context", "quiet")
    st.markdown("##### Answer")
    components.show_text(row["teacher_output"], "answer", look)
    for title, column in (
        ("Reasoning", "reasoning_output"),
        ("Known answer", "reference"),
        ("Known query", "gold_sql"),
    ):
        if row[column]:
            with st.expander(title, expanded=column == "gold_sql"):
                components.show_text(row[column], column, f"{look} quiet")
    if row["raw_output"]:
        with st.expander("Before cleaning"):
            components.show_text(row["raw_output"], "raw", "quiet")
    st.caption(f"sample\\_id {row['sample_id']}")


def _draw_decisions(people: Sequence[Annotation]) -> None:
    st.markdown("##### Decision")
    word = row_filters.decision_label(people)
    if word == CONFLICT:
        st.warning("The annotators disagree. Until they agree this counts as a rejection.")
    if not people:
        st.caption("No decision yet.")
    for event in people:
        comments = " · ".join(components.escape_markdown(t) for t in (event.reason, event.note) if t)
        st.markdown(
            f"{ICONS[event.action]} **{event.action}** by {components.escape_markdown(event.annotator)}"
            + (f": {comments}" if comments else "")
        )
        if event.edited_output is not None:
            with st.expander("The edited answer"):
                components.show_text(event.edited_output, f"edited-{event.annotator}")


def _draw_checks(checks: Sequence[ChecksFile], key: Key, row: Row) -> None:
    lines = [line for file in checks for line in file.rows_of_answer(key)]
    failed = [line for line in lines if not line["ok"] and line["reason"] != NOT_APPLIED]
    st.markdown("##### Checks")
    for reason in row.get("rejection_reasons") or []:
        meaning = REASONS[reason].meaning if reason in REASONS else ""
        st.markdown(f":red[✗] **{components.escape_markdown(reason)}**: {components.escape_markdown(meaning)}")
    if not lines:
        st.caption("This answer has no checks.")
        return
    st.caption(f"{len(lines) - len(failed)} of {len(lines)} passed")
    order = sorted(lines, key=lambda line: (line not in failed, line["check"]))
    words = {True: "passed", False: "failed", None: "not known"}
    rows = [
        (
            "bad" if line in failed else "",
            [
                line["check"],
                words[line["ok"]],
                _format_value(line["value"]),
                components.cut_text(" ".join(filter(None, (line["reason"], line["detail"]))))[:300],
            ],
        )
        for line in order
    ]
    components.show_table(("check", "result", "value", "why"), rows, "checks")


def _format_value(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def _draw_attempts(room: PageContext, row: Row, key: Key) -> None:
    others = room.other_attempts(key)
    if others:
        st.markdown("##### Other attempts")
    for path, number in others:
        other = room.load_answers(path).read_row(number)
        with st.expander(f"Attempt {other['attempt']} by {components.escape_markdown(other['model_id'])}"):
            st.caption("Words only in this attempt are green, words only in the shown answer are red.")
            texts = [components.cut_text(answer["teacher_output"] or "") for answer in (row, other)]
            components.show_spans(diff_words(*texts), f"attempt-{other['attempt']}")
