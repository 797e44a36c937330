"""Cleaners: what is left of an answer, by kind, one line per case."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_distill.collection.answers.extraction import CLEANERS, Cleaner, extract_answer
from nexa_distill.settings.pipeline import AnswerKind as Kind
from tests.support.workspace import workspace
from tests.teacher.faults import answers, ask, prompts
from tests.teacher.ledger_teacher import ledger_teacher

SELECT = "SELECT name FROM state"
CASES: list[tuple[Kind, str, str | None]] = [
    ("sql", f"```sql\n{SELECT}\n```", SELECT),
    ("sql", f"Here is the query:\n\n```sql\n{SELECT};\n```\nIt selects all names.", f"{SELECT};"),
    ("sql", f"```\n{SELECT}\n```", SELECT),
    ("sql", f"```text\nstate\n```\nthen\n```SQL\n{SELECT}\n```", SELECT),
    ("sql", f"```sql\nSQL: {SELECT}\n```", SELECT),
    ("sql", f"```sql\n{SELECT}", SELECT),  # cut off
    ("sql", f"SQL: {SELECT}", SELECT),
    ("sql", f"**SQL Query:** {SELECT}", SELECT),
    ("sql", f"Answer:\n{SELECT}", SELECT),
    ("sql", f"{SELECT};\n\nThis query returns each name.", SELECT),
    ("sql", f"{SELECT}\n\nThis query returns each name.", SELECT),
    ("sql", f"{SELECT}\nExplanation: each name.", SELECT),
    ("sql", "SELECT ';' FROM state; It has a semicolon.", "SELECT ';' FROM state"),
    ("sql", "SELECT 1 -- a; b\n; the end", "SELECT 1 -- a; b"),
    ("sql", "with big as (select 1) select * from big", "with big as (select 1) select * from big"),
    ("sql", f"With regard to your question:\n{SELECT}", SELECT),
    ("sql", "SELECT 1; DROP TABLE state", "SELECT 1; DROP TABLE state"),
    ("sql", "SELECT 1;\nDROP TABLE state; done", "SELECT 1;\nDROP TABLE state"),
    ("sql", "DROP TABLE state", "DROP TABLE state"),
    ("sql", "I cannot answer this.", None),
    ("sql", "```sql\n```", None),
    ("sql", "", None),
    ("sql", f"~~~sql\n{SELECT}\n~~~", SELECT),
    ("sql", f"````\n{SELECT}\n````", SELECT),
    ("sql", f"Here it is: ```sql\n{SELECT}\n```\nDone.", SELECT),
    ("sql", f"The table:\n```\n| a | b |\n```\nThe query:\n```\n{SELECT}\n```", SELECT),
    ("sql", f"```postgresql\n{SELECT}\n```", SELECT),
    ("python", "```python\nprint(1)\n```", "print(1)"),
    ("python", "1. Do this:\n   ```python\n   a = 1\n   b = 2\n   ```", "a = 1\nb = 2"),
    ("python", "Output:\n```\n42\n```\nCode:\n```\nprint(6 * 7)\nx = 1\n```", "print(6 * 7)\nx = 1"),
    ("python", "~~~py\nprint(1)\n~~~", "print(1)"),
    ("python", "Write `def f(x): return x` and call it.", "def f(x): return x"),
    ("json", 'The list [1, 2] becomes:\n```json\n{"a": 1}\n```', '{"a": 1}'),
    ("json", 'With [1] in mind: `{"a": 1}`.', '{"a": 1}'),
    ("json", '~~~json\n{"a": "```"}\n~~~', '{"a": "```"}'),
    ("fenced", "````markdown\n```\na\n```\n````", "```\na\n```"),
    ("fenced", "~~~\ntext\n~~~", "text"),
    ("python", "One:\n```py\na = 1\n```\ntwo:\n```py\nb = 2\n```", "a = 1\n\nb = 2"),
    ("python", "Sure:\ndef f():\n    return 1", "def f():\n    return 1"),
    ("python", "I do not write code.", None),
    ("json", 'The answer is {"a": [1, 2]}. Good luck!', '{"a": [1, 2]}'),
    ("json", "```json\n[1, 2]\n```", "[1, 2]"),
    ("json", "a {set} of [things] and {}", "{}"),
    ("json", "none here", None),
    ("json", "[" * 5000, None),
    ("fenced", "```\ntext\n```", "text"),
    ("fenced", "See:\n```\ntext\n```", "See:\n```\ntext\n```"),
    ("fenced", "as it is", "as it is"),
]


@pytest.mark.parametrize(("kind", "said", "answer"), CASES)
def test_what_is_left_of_an_answer(kind: Kind, said: str, answer: str | None) -> None:
    assert extract_answer(said, kind) == answer


@pytest.mark.parametrize(
    "said",
    [
        f"The answer is `{SELECT}`.",
        f"`{SELECT}`",
        f"Die Antwort lautet ``{SELECT}``.",
        f"Do not use `SELECT *`; `{SELECT}` is what you need.",
        f"```sql {SELECT}```",
        f"The query is: {SELECT}",
        f"答案是 `{SELECT}`。",
        f"查询\uff1a{SELECT}",
        f"Sure.\n\n**{SELECT}**",
        f"> {SELECT}",
        f"1. {SELECT};",
        f'The query:\n"{SELECT}"',
        f"<sql>{SELECT}</sql>",
    ],
)
def test_d30_a_query_in_inline_code_or_behind_a_colon_is_the_answer(said: str) -> None:
    assert extract_answer(said, "sql") == SELECT


def test_d30_a_sentence_about_selecting_is_no_query() -> None:
    assert extract_answer("Note: select the best one with care.", "sql") is None
    assert extract_answer("Use `name` and `state` there.", "sql") is None


@given(st.text(st.sampled_from("`\n;'\"-/* sqlSELECT{}[]with()as:="), max_size=60))
def test_a_cleaner_leaves_a_part_of_what_was_said_and_does_it_once(said: str) -> None:
    for kind in CLEANERS:
        left = extract_answer(said, kind)
        if left is not None:
            assert left
            assert kind == "python" or left in said


def test_what_was_said_stands_beside_what_is_left_of_it() -> None:
    cleaner = Cleaner({"text2sql": "sql"}, ["email"])
    assert cleaner("text2sql", f"SQL: {SELECT}") == (SELECT, f"SQL: {SELECT}")
    assert cleaner("text2sql", SELECT) == (SELECT, None)
    assert cleaner("text2sql", "no query") == (None, "no query")
    assert cleaner("math", "Ask a@b.org: 3") == ("Ask [email]: 3", "Ask a@b.org: 3")
    assert cleaner("math", None) == (None, None)


def test_a_run_keeps_the_query_and_what_was_said_and_a_new_cleaner_costs_nothing(tmp_path: Path) -> None:
    rows = prompts(3)
    for row in rows:
        row["template_name"] = "text2sql"
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, cleaners={"text2sql": "sql"})
        ask(made, rows)
        for row in answers(made):
            assert row["teacher_output"] is None  # this teacher writes prose
            assert row["raw_output"]
        made.change(cleaners={"text2sql": "fenced"})
        ask(made, rows)
        assert all(row["teacher_output"] and not row["raw_output"] for row in answers(made))
        assert sum(teacher.billed().values()) == 3
