"""What is asked is one folder per task: prompt, system prompt, preset of the filters."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_distill import canonicalize, collect_teacher
from nexa_distill.errors import InputError, NexaError
from nexa_distill.orchestration.planning import Request, make_plan
from nexa_distill.pipeline import describe_plan
from nexa_distill.settings.filters import PRESETS, FilterConfig, load_filter_config
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.tasks import TaskFilters, list_tasks, load_repair_prompts, load_system_prompts, load_task
from tests.support.workspace import ROOT, Workspace, workspace

GEN = "scripts/python/data_processing/run_full_data_gen.py"
SCIENTIST = "You are a careful scientist. Answer in plain prose."


def project(folder: Path, *rows: dict[str, Any], **changes: Any) -> Workspace:
    folder.mkdir(exist_ok=True)
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workspace(folder, input={"path": str(raw)}, **changes)


def canonical(made: Workspace, task: str | None = None) -> list[dict[str, Any]]:
    """The rows that a launch with `--task` makes."""
    canonicalize.run(Request(made.config, task=task).load_settings())
    rows: list[dict[str, Any]] = pq.read_table(made.path("canonical")).to_pylist()
    return rows


def messages(config: DistillConfig, row: dict[str, Any]) -> list[str]:
    (request,) = collect_teacher.request_maker(config)(row | {"system_prompt": row.get("system_prompt")})
    return [message["content"] for message in request.body["messages"]]


def own_folder(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        ending = "yaml" if name == "task" else "txt"
        (folder / f"{name}.{ending}").write_text(text)
    return folder


def test_six_tasks_ship_and_each_says_what_it_is_about() -> None:
    names = ["chat", "extract_json", "hypothesis", "methodology", "question_answer", "summarize"]
    assert list_tasks() == names
    assert all(load_task(name).about and load_task(name).system_prompt for name in names)


def test_the_default_run_asks_what_it_asked_before_there_were_tasks(tmp_path: Path) -> None:
    made = project(tmp_path, {"id": "x", "text": "Ice floats."}, provider="embedded")
    rows, make = canonical(made), collect_teacher.request_maker(made.load())
    # As they were before: other keys would be paid again.
    assert [row["sample_id"][:12] for row in rows] == ["90f8901c5adf", "b47e7497f9eb"]
    assert [make(row)[0].key[:12] for row in rows] == ["de5fe20643ee", "617825fa4522"]
    assert messages(made.load(), rows[0]) == [
        SCIENTIST,
        "Passage:\nIce floats.\n\nWrite a testable research hypothesis based on this passage. Begin with "
        '"We hypothesize that". Then explain the reason for it and how it could be tested: what to measure, what to '
        "compare, and what result to expect. Use five sentences.",
    ]
    assert {row["system_prompt"] for row in rows} == {None}
    repair = load_repair_prompts(made.load()).find_prompt("hypothesis")
    assert repair is not None
    assert repair.startswith("You are a careful scientist. Answer in one paragraph of about 120 words")


def test_a_task_is_chosen_by_name(tmp_path: Path) -> None:
    made = project(tmp_path, {"text": "Ice floats."})
    rows = canonical(made, "summarize, extract_json")
    assert [row["template_name"] for row in rows] == ["summarize", "extract_json"]
    system, prompt = messages(made.load(), rows[1])
    assert system.startswith("You extract data from texts.")
    assert prompt.startswith("Text:\nIce floats.")


@pytest.mark.parametrize("task", list_tasks())
def test_each_task_that_ships_can_be_asked_of_texts(tmp_path: Path, task: str) -> None:
    (row,) = canonical(project(tmp_path, {"text": "Ice floats."}), task)
    assert "Ice floats." in row["user_prompt"]
    assert "{" not in row["user_prompt"]


def test_a_file_is_a_task(tmp_path: Path) -> None:
    file = tmp_path / "limerick.txt"
    file.write_text('Write a limerick, not {"json": 1}, about:\n{context}\n')
    made = project(tmp_path, {"text": "Ice."})
    (row,) = canonical(made, str(file))
    assert (row["template_name"], row["user_prompt"]) == ("limerick", 'Write a limerick, not {"json": 1}, about:\nIce.')
    assert messages(made.load(), row)[0] == load_task("chat").system_prompt
    file.write_text("Rhyme: {prompt}")
    assert canonical(made, str(file))[0]["user_prompt"] == "Rhyme: Ice."


def test_a_file_is_laid_around_prompts_that_exist(tmp_path: Path) -> None:
    file = tmp_path / "brief.txt"
    file.write_text("{context}\n\n{prompt}\nBe brief.")
    made = project(tmp_path, {"question": "Why?", "context": "Ice floats."})
    (row,) = canonical(made, str(file))
    assert (row["template_name"], row["user_prompt"]) == ("brief", "Ice floats.\n\nWhy?\nBe brief.")


def test_a_column_in_a_file_is_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "check.md"
    file.write_text("{prompt}\nIs this right: {answer}?")
    made = project(tmp_path, {"question": "Why?", "answer": "Physics."})
    assert canonical(made, str(file))[0]["user_prompt"] == "Why?\nIs this right: Physics.?"
    assert Request(made.config, task=str(file)).load_settings().answers.path is None


def test_a_folder_is_a_task_with_a_system_prompt_and_a_preset(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine/terse", prompt="Q: {prompt}", system_prompt="One word.", task="preset: short")
    made = project(tmp_path, {"question": "Why?"})
    (row,) = canonical(made, str(folder))
    assert (row["template_name"], row["user_prompt"], row["system_prompt"]) == ("terse", "Q: Why?", None)
    # The commands that follow are not told of --task.
    assert messages(made.load(), row) == ["One word.", "Q: Why?"]
    assert TaskFilters(made.load()).preset_of("terse") == "short"
    assert load_repair_prompts(made.load()).find_prompt("terse") is None
    canonical(made, "chat")
    assert TaskFilters(made.load()).preset_of("terse") == "prose"


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("sumarize", r'no task sumarize \(did you mean "summarize"\?\); known: chat, extract_json'),
        ("hypothesis,sumarize", "no task sumarize"),
        ("./nowhere/task.txt", r"no task \./nowhere/task\.txt"),
        ("FOLDER/no_place.txt", r"no_place\.txt: has no \{context\} placeholder"),
        ("FOLDER", r"prompt\.txt: no such file"),
        ("FOLDER/typo", r'unknown key presett \(did you mean "preset"\?\)'),
        ("FOLDER/preset", r"preset is 'brief'"),
        ("FOLDER/both.txt", r"has \{prompt\} and \{context\}, and the data holds texts"),
        ("chat,chat", "chat is there twice"),
    ],
)
def test_a_task_that_cannot_be_asked_is_named_by_the_plan(tmp_path: Path, task: str, problem: str) -> None:
    folder = tmp_path / "tasks"
    own_folder(folder / "typo", prompt="{context}", task="presett: short")
    own_folder(folder / "preset", prompt="{context}", task="preset: brief")
    (folder / "no_place.txt").write_text("Summarize!")
    (folder / "both.txt").write_text("{context} {prompt}")
    made = project(tmp_path / "p", {"text": "Ice."})
    with pytest.raises(InputError, match=problem):
        list(describe_plan(Request(made.config, task=task.replace("FOLDER", str(folder)))))


def test_prompts_that_exist_have_one_task_which_must_place_them(tmp_path: Path) -> None:
    made = project(tmp_path, {"question": "Why?"})
    with pytest.raises(InputError, match="column question holds prompts, which are asked once; name one task"):
        canonical(made, "chat,question_answer")
    (tmp_path / "own.txt").write_text("Explain {context}")
    with pytest.raises(InputError, match=r"own: its prompt has no \{prompt\}, and column question holds prompts"):
        canonical(made, str(tmp_path / "own.txt"))
    (row,) = canonical(made, "question_answer")
    assert (row["template_name"], row["user_prompt"]) == ("question_answer", "Why?")
    lines = list(describe_plan(Request(made.config, task="question_answer")))
    assert "task question_answer: the prompts in column question are asked as they are" in lines


def test_a_folder_of_prompts_of_ones_own_still_counts(tmp_path: Path) -> None:
    prompts = own_folder(tmp_path / "prompts", hypothesis="Guess: {context}", review="Review: {context}")
    made = project(
        tmp_path, {"text": "Ice."}, defaults={"prompts": str(prompts), "tasks": ["hypothesis", "review", "chat"]}
    )
    rows = canonical(made)
    assert [row["user_prompt"] for row in rows] == ["Guess: Ice.", "Review: Ice.", "Ice."]
    assert messages(made.load(), rows[0])[0] == SCIENTIST


def test_a_configured_system_prompt_holds_for_every_task(tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text("Be kind.")
    made = project(tmp_path, {"text": "Ice."}, collection={"system_prompt_path": str(file)})
    assert {messages(made.load(), row)[0] for row in canonical(made, "summarize,hypothesis")} == {"Be kind."}
    assert load_system_prompts(made.load()).relevant_settings == "Be kind."


def test_a_type_without_a_folder_is_asked_and_filtered_as_before(tmp_path: Path) -> None:
    config = project(tmp_path, {"text": "Ice."}).load()
    assert load_system_prompts(config).find_prompt("review") == SCIENTIST
    assert str(load_repair_prompts(config).find_prompt("review")).startswith(
        "You are a careful scientist. Answer in one"
    )
    assert [TaskFilters(config).preset_of(name) for name in ("review", "chat")] == ["prose", "chat"]


def test_a_repair_of_another_task_is_asked_as_its_first_request(tmp_path: Path) -> None:
    config = project(tmp_path, {"text": "Ice."}).load()
    assert {load_repair_prompts(config).find_prompt(name) for name in ("chat", "summarize", "question_answer")} == {
        None
    }


def test_the_session_that_asks_gets_the_tasks(tmp_path: Path) -> None:
    made = project(tmp_path, {"text": "Ice."})
    steps = make_plan(Request(made.config, task="chat"), tmp_path / "run")
    assert [step.session for step in steps if step.command[-2:] == ["--task", "chat"]] == ["data_gen"]


@pytest.mark.parametrize("name", ["prose", "short", "chat", "code"])
def test_a_preset_changes_rules_and_nothing_of_the_gates(name: Any) -> None:
    shipped, changed = (
        load_filter_config(ROOT / "configs/filters.yaml"),
        load_filter_config(ROOT / "configs/filters.yaml", name),
    )
    assert (PRESETS / f"{name}.yaml").is_file()
    assert (changed == shipped) == (name == "prose")
    parts = ("sample_gate", "quality_gates", "regression_gate", "pii", "reject_flags", "safety_patterns")
    assert all(getattr(changed, part) == getattr(shipped, part) for part in parts)


def test_the_thresholds_that_ship_are_those_of_prose(tmp_path: Path) -> None:
    filters: FilterConfig = TaskFilters(workspace(tmp_path).load()).by_preset["prose"]
    assert (filters.min_char_length, filters.min_token_length, filters.require_action_verb) == (120, 80, True)


@pytest.mark.parametrize("extends", [True, False])
def test_what_a_file_of_ones_own_sets_wins_over_the_preset(tmp_path: Path, extends: bool) -> None:
    file, first = tmp_path / "rules.yaml", "extends: filters.yaml\n" if extends else ""
    file.write_text(f"{first}min_char_length: 120\n")
    filters = load_filter_config(file, "short")
    assert (filters.min_char_length, filters.min_token_length, filters.max_token_length) == (120, None, 500)
    file.write_text(f"{first}preset: code\nban_citations: true\n")
    filters = load_filter_config(file, "short")
    assert (filters.ban_citations, filters.max_repetition, filters.max_token_length) == (True, None, 2000)
    file.write_text("preset: brief\n")
    with pytest.raises(NexaError, match="preset is 'brief'"):
        load_filter_config(file)


def test_a_short_answer_passes_where_a_paragraph_is_not_asked_for(tmp_path: Path) -> None:
    made = project(tmp_path, *({"question": f"Which city is number {n}?", "answer": "Rome"} for n in range(12)))
    plan = "\n".join(describe_plan(Request(made.config)))
    assert "filters: preset chat for chat" in plan
    made.run(GEN)
    assert "12 of 12 answers pass" in made.run("nexa_distill.filter_pairs").stdout
