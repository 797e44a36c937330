"""Which columns hold prompts: nothing that looks like a prompt is passed over in silence."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_distill import canonicalize
from nexa_distill.collection.answer_file import load_answers
from nexa_distill.errors import InputError, InputMissing
from tests.support.databases import make_shops
from tests.support.workspace import Workspace, workspace


def project(folder: Path, *rows: dict[str, Any], **defaults: Any) -> Workspace:
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return workspace(folder, input={"path": str(raw)}, defaults=defaults)


def prompts(made: Workspace, capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The canonical rows, and what was said about the columns."""
    canonicalize.run(made.load())
    said = [line.removeprefix("canonicalize: ") for line in capsys.readouterr().out.splitlines()]
    return pq.read_table(made.path("canonical")).to_pylist(), said[:-1]


def test_da02_a_question_is_asked_about_its_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"context": f"Town {n} has a mill.", "question": f"What has town {n}?", "answer": "?"}
            for n in range(3)]  # fmt: skip
    found, said = prompts(project(tmp_path, *rows), capsys)
    assert [row["user_prompt"] for row in found] == [f"Town {n} has a mill.\n\nWhat has town {n}?" for n in range(3)]
    assert [row["context"] for row in found] == [f"Town {n} has a mill." for n in range(3)]
    assert said == [
        "the prompt is column question, behind the text of column context (defaults.prompt_column "
        "and prompt_template choose otherwise); not read: answer (defaults.reference_column: "
        "answer makes it the known answer)"
    ]


def test_da02_a_blank_context_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"What is {n}?", "context": blank} for n, blank in enumerate(["", " \n"])]
    found, _ = prompts(project(tmp_path, *rows), capsys)
    assert [row["user_prompt"] for row in found] == ["What is 0?", "What is 1?"]
    assert len({row["document_id"] for row in found}) == 2


@pytest.mark.parametrize(
    "name",
    ["question", "Question", "prompt_text", "userQuestion", "user-query", "Original Question",
     "instruction", "problem", "q", "input", "Frage", "问题", "вопрос", "سؤال"],
)  # fmt: skip
def test_da02_a_column_that_looks_like_prompts_is_used_and_named(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = project(tmp_path, {name: "Why?", "context": "Because."}, {name: "How?"})
    found, said = prompts(made, capsys)
    assert [row["user_prompt"] for row in found] == ["Because.\n\nWhy?", "How?"]
    assert said[0].startswith(f"the prompt is column {name}, behind the text of column context")


@pytest.mark.parametrize(
    "name", ["question_id", "prompt_tokens", "system_prompt", "question type", "queries_url", "title"]
)
def test_da02_a_column_about_prompts_is_none(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, said = prompts(project(tmp_path, {name: "x", "text": "Ice floats."}), capsys)
    assert {row["context"] for row in found} == {"Ice floats."}
    assert said == []


def test_da02_numbers_of_questions_are_no_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = prompts(project(tmp_path, {"question": 3, "text": "Ice floats."}), capsys)
    assert {row["context"] for row in found} == {"Ice floats."}


def test_da02_i08_old_prompts_that_hold_their_context_are_asked_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt_text": f"Read: Text {n}. Summarise.", "context": f"Text {n}."} for n in (1, 2)]
    found, said = prompts(project(tmp_path, *rows), capsys)
    assert [row["user_prompt"] for row in found] == [row["prompt_text"] for row in rows]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Why?", "text": "Ice."},
         ["column question looks like prompts and column text holds texts",
          "{prompt_column: question} asks column question alone",
          "{prompt_column: question, context_column: text, prompt_template: ",
          r'"{context}\n\n{prompt}"} asks question about the text in text',
          "{prompt_column: null} makes new prompts from the text in text"]),
        ({"query": "Why?", "passage": "Ice."}, ["context_column: passage"]),
        ({"question": "Why?", "query": "SELECT 1"},
         ["columns question, query all look like prompts", "{prompt_column: query}"]),
        ({"messages": [{"role": "user", "content": "Why?"}]},
         ["column messages is list", "a conversation is not read"]),
    ],
)  # fmt: skip
def test_da02_two_readings_are_refused_with_the_settings_to_write(
    tmp_path: Path, row: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        canonicalize.run(project(tmp_path, row).load())
    for part in ["row 0", *expected]:
        assert part in str(error.value)


def test_da02_the_settings_of_the_refusal_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = project(tmp_path, {"question": "Why?", "text": "Ice."}, prompt_column="question")
    assert [row["user_prompt"] for row in prompts(made, capsys)[0]] == ["Why?"]
    made.change(defaults={"context_column": "text", "prompt_template": "{context}\n\n{prompt}"})
    assert [row["user_prompt"] for row in prompts(made, capsys)[0]] == ["Ice.\n\nWhy?"]
    made.change(defaults={"prompt_column": None, "context_column": "context"})
    assert {row["context"] for row in prompts(made, capsys)[0]} == {"Ice."}


def test_da02_what_a_configured_prompt_leaves_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"user_prompt": "Why?", "question": "How?", "context": "Ice floats."}
    (found,), said = prompts(project(tmp_path, row), capsys)
    assert found["user_prompt"] == "Why?"
    assert said == [
        "column question looks like prompts too and is not read: defaults.prompt_column is user_prompt",
        "column context is carried along and not shown to the teacher: defaults.prompt_template has no {context}",
    ]
    made = project(tmp_path, row | {"user_prompt": "Ice floats. Why?"})
    assert "carried along" not in " ".join(prompts(made, capsys)[1])


ALPACA = [
    {"instruction": "Shorten the text.", "input": "A long text about ferries."},
    {"instruction": "Name three rivers in Asia.", "input": ""},
    {"instruction": "Translate to French.", "input": "Good evening", "output": "Bonsoir",
     "text": "Below is an instruction ..."},
]  # fmt: skip


@pytest.mark.parametrize("defaults", [{}, {"prompt_column": "instruction"}])
def test_da12_both_parts_of_an_alpaca_row_are_the_prompt(
    tmp_path: Path, defaults: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = prompts(project(tmp_path, *ALPACA, **defaults), capsys)
    assert [row["user_prompt"] for row in found] == [
        "Shorten the text.\n\nA long text about ferries.", "Name three rivers in Asia.",
        "Translate to French.\n\nGood evening",
    ]  # fmt: skip
    assert "the prompt is column instruction" in said[0]
    assert "with column input behind it" in said[0]


def test_da12_a_template_can_place_any_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = project(tmp_path, ALPACA[0], prompt_column="instruction",
                   prompt_template="<{input}> {prompt}")  # fmt: skip
    found, said = prompts(made, capsys)
    assert found[0]["user_prompt"] == "<A long text about ferries.> Shorten the text."
    assert said == []


def test_da12_a_number_is_a_known_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [5, 5.0, 0.1, -3, 2**60, 1e300, float("nan"), None]
    rows = [{"instruction": f"Add {n}.", "answer": value, "domain": n}
            for n, value in enumerate(numbers)]  # fmt: skip
    made = project(tmp_path, *rows, prompt_column="instruction", reference_column="answer")
    found, _ = prompts(made, capsys)
    expected = ["5", "5", "0.1", "-3", str(2**60), "1e+300", None, None]
    assert [row["reference"] for row in found] == expected
    assert [row["domain"] for row in found] == [str(n) for n in range(8)]
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": "a", "answer": 5}\n{"id": "b", "answer": 2.5}\n')
    assert load_answers(answers, "answer") == {"a": "5", "b": "2.5"}
    answers.write_text('{"id": "a", "answer": true}\n')
    with pytest.raises(InputError, match="expected text"):
        load_answers(answers, "answer")


def test_da12_an_id_of_a_document_is_refused_with_the_setting_that_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": "doc-7", "user_prompt": f"Question {n} about doc 7?"} for n in range(3)]
    made = project(tmp_path, *rows)
    with pytest.raises(InputError, match=r"row 1 .*id 'doc-7'.*row 0.*id_columns: \[\]"):
        canonicalize.run(made.load())
    made.change(defaults={"id_columns": []})
    found, _ = prompts(made, capsys)
    assert len({row["task_id"] for row in found}) == 3
    made.change(defaults={"id_columns": ["number"]})
    assert len(prompts(made, capsys)[0]) == 3


@pytest.mark.parametrize("column", ["text", "user_prompt"])
def test_an_id_that_nobody_gave_is_never_named(tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{column: "Ice floats.", "domain": domain, "url": url} for domain, url in
            [("physics", "a"), ("chemistry", "a"), ("physics", "b")]]  # fmt: skip
    found, _ = prompts(project(tmp_path, *rows), capsys)
    tasks = 2 if column == "text" else 1
    assert len(found) == 3 * tasks
    assert len({row["sample_id"] for row in found}) == 2 * tasks  # the address is no content


def test_an_id_is_needed_once_for_the_same_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": 7, "text": "Ice.", "url": url} for url in "ab"]
    assert len({row["sample_id"] for row in prompts(project(tmp_path, *rows), capsys)[0]}) == 2


@pytest.mark.parametrize(
    "place", ["shops", "shops.sqlite", "shops.db", "shops.sqlite3", "shops/shops.sqlite", "shops/shops.db"]
)
def test_d29_a_database_is_found_before_any_answer_is_bought(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"user_prompt": "How many?", "template_name": "text2sql", "database": "shops"}
    made = project(tmp_path, row)
    with pytest.raises(InputMissing, match=r"holds no database shops \(looked for"):
        canonicalize.run(made.load())
    assert not made.path("canonical").exists()
    (tmp_path / place).parent.mkdir(exist_ok=True)
    make_shops(tmp_path / place)
    assert len(prompts(made, capsys)[0]) == 1


def test_d29_an_sql_task_without_a_database_is_refused_before_any_answer_is_bought(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = project(tmp_path, {"user_prompt": "How many?", "template_name": "text2sql"})
    with pytest.raises(InputError, match=r"row 0 .*names no database.*execution\.tasks\.text2sql"):
        canonicalize.run(made.load())
    made.change(execution={"tasks": {"text2sql": None}})
    assert len(prompts(made, capsys)[0]) == 1


@pytest.mark.parametrize(
    "turns",
    [
        {"messages": [{"role": "user", "content": "Why?"}]},
        {"conversations": [{"from": "human", "value": "Why?"}]},
        {"user_prompt": [{"role": "user", "content": "Why?"}]},
        {"messages": '[{"role": "user", "content": "Why?"}]'},
        {"prompt": '[\n {"from": "human", "value": "Why?"}]'},
    ],
)
def test_d13_a_conversation_is_refused_with_the_columns_to_write(tmp_path: Path, turns: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"a conversation is not read; .* user_prompt"):
        canonicalize.run(project(tmp_path, turns).load())
