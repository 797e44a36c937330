"""Page *Compare*: answers of teacher and student to a held-out prompt, with names or blind.

Beside another run: the trained students of both, on the prompts that both answered.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import streamlit as st

from nexa_distill.annotation import preferences
from nexa_distill.annotation.preferences import Preference
from nexa_distill.inspection import components, held_out_answers
from nexa_distill.inspection.held_out_answers import TITLES, HeldOutPrompt
from nexa_distill.inspection.session import PageContext
from nexa_distill.inspection.tab_state import draw_navigation, get_tab_state
from nexa_distill.orchestration import run_list
from nexa_distill.orchestration.run_folder import read_record
from nexa_distill.reporting.run_comparison import comparison_lines
from nexa_distill.storage.atomic import read_json_object

PAIRS = {"before and after training": ("before", "after"), "trained student and teacher": ("after", "teacher")}


def draw_page(room: PageContext) -> None:
    prompts = held_out_answers.load_prompts(room.config.storage)
    if not prompts:
        st.info("The student has not answered held-out prompts yet: the evaluation was not run.")
        return
    others = _other_runs(room)
    with st.sidebar:
        other = st.selectbox("Beside run", others, index=None, placeholder="none", disabled=not others)
        blind = st.toggle("Blind", help="Names and scores are hidden; your preference is kept.", disabled=bool(other))
        pair = PAIRS[st.radio("Compare", list(PAIRS), disabled=not blind)]
    if other:
        _draw_two_runs(room, prompts, other, others[other])
    elif blind:
        _draw_blind(room, prompts, pair)
    else:
        _draw_open(prompts)


def _draw_open(prompts: Sequence[HeldOutPrompt]) -> None:
    prompt = prompts[draw_navigation("Prompt", "compared", len(prompts))]
    components.show_text(prompt.user_prompt, "prompt", "quiet")
    for column, source in zip(st.columns(len(TITLES)), TITLES, strict=True):
        with column:
            st.markdown(f"##### {TITLES[source]}")
            st.markdown(_gate_verdict(prompt, source))
            if source in prompt.answers:
                components.show_text(prompt.answers[source], f"answer-{source}")
            else:
                st.caption("not run")


def _other_runs(room: PageContext) -> dict[str, Path]:
    runs = run_list.find_runs(run_list.main_logs(room.config))
    own = Path(room.config.storage.root).resolve()
    roots = {name: Path(record.root) for name, folder in runs.items() if (record := read_record(folder))}
    return {name: runs[name] for name, root in roots.items() if root.resolve() != own}


def _draw_two_runs(room: PageContext, prompts: Sequence[HeldOutPrompt], name: str, run_dir: Path) -> None:
    other = run_list.load_run_config(run_dir).storage
    second = {prompt.sample_id: prompt for prompt in held_out_answers.load_prompts(other)}
    names = (Path(room.config.storage.root).name, name)
    reports = [read_json_object(storage.path_of("evaluation_report")) for storage in (room.config.storage, other)]
    if reports[0] and reports[1]:
        st.code("\n".join(comparison_lines(names, (reports[0], reports[1]))), language=None)
    both = [prompt for prompt in prompts if prompt.sample_id in second]
    if not both:
        st.info("No held-out prompt was answered in both runs.")
        return
    prompt = both[draw_navigation("Prompt", "two-runs", len(both))]
    components.show_text(prompt.user_prompt, "prompt", "quiet")
    for column, title, run in zip(st.columns(2), names, (prompt, second[prompt.sample_id]), strict=True):
        with column:
            st.markdown(f"##### {components.escape_markdown(title)}")
            st.markdown(_gate_verdict(run, "after"))
            components.show_text(run.answers.get("after") or "", f"run-{title}")


def _gate_verdict(prompt: HeldOutPrompt, source: str) -> str:
    against = prompt.reasons.get(source)
    words = ":gray[gates: not run]" if against is None else ":green[passes the gates]"
    if against:
        words = f":red[{', '.join(map(components.escape_markdown, against))}]"
    scores = prompt.scores.get(source, {})
    return " · ".join([words, *(f"{name.split('.')[1]} {value:.2f}" for name, value in scores.items())])


def _draw_blind(room: PageContext, prompts: Sequence[HeldOutPrompt], pair: tuple[str, str]) -> None:
    path = room.config.storage.path_of("preferences")
    own = [
        event
        for event in preferences.latest_preferences(preferences.read(path))
        if {event.first, event.second} == set(pair) and event.annotator == room.annotator
    ]
    answered = [p for p in prompts if all(p.answers.get(source) for source in pair)]
    compared = {frozenset((event.first_output, event.second_output)) for event in own}
    # By the texts: after another training they differ, and are compared again.
    remaining = [p for p in answered if _text_pair(p, pair) not in compared]
    if not answered:
        st.info("No prompt was answered by both.")
        return
    done = len(answered) - len(remaining)
    st.progress(done / len(answered), f"{done} of {len(answered)} compared")
    if not remaining:
        _draw_result(own, pair)
        return
    prompt = remaining[0]
    order = held_out_answers.blind_order(prompt.sample_id, room.annotator, pair)
    _draw_choice(room, prompt, order)
    components.show_text(prompt.user_prompt, "prompt", "quiet")
    for column, source, title in zip(st.columns(2), order, ("Left", "Right"), strict=True):
        with column:
            st.markdown(f"##### {title}")
            components.show_text(prompt.answers[source], f"blind-{title}")


def _text_pair(prompt: HeldOutPrompt, pair: tuple[str, str]) -> frozenset[str]:
    return frozenset(str(prompt.answers[source]) for source in pair)


def _draw_choice(room: PageContext, prompt: HeldOutPrompt, order: tuple[str, str]) -> None:
    name = f"{prompt.sample_id}-{'-'.join(order)}"
    here = get_tab_state("compare")
    here.mark_drawn(name)

    def save_preference(choice: str) -> None:
        event = {
            "sample_id": prompt.sample_id,
            "first": order[0],
            "second": order[1],
            "first_output": prompt.answers[order[0]],
            "second_output": prompt.answers[order[1]],
            "preferred": choice,
            "annotator": room.annotator,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        path = room.config.storage.path_of("preferences")
        preference = Preference.model_validate(event)
        # Once, however often the key is pressed.
        here.commit_once(name, lambda: preferences.append(path, preference), None)

    with st.container(horizontal=True):
        for label, letter, choice in (
            ("Left is better", "1", "first"),
            ("Right is better", "2", "second"),
            ("No difference", "0", "tie"),
        ):
            st.button(
                label, key=f"{choice}-{prompt.sample_id}", shortcut=letter, on_click=save_preference, args=(choice,)
            )


def _draw_result(own: Sequence[Preference], pair: tuple[str, str]) -> None:
    st.success("You have compared all of them. Your preferences:")
    counts = preferences.count_preferences(own)
    for column, source in zip(st.columns(3), (*pair, "tie"), strict=True):
        column.metric(TITLES.get(source, "No difference"), counts[source])
