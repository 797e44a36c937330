"""A raw file with prompts and answers gives both; what is a reference, or another column, is no answer."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill import canonicalize
from nexa_distill.errors import InputError
from nexa_distill.orchestration.planning import Request, make_plan
from nexa_distill.pipeline import describe_plan
from nexa_distill.raw_data.columns import looks_like_answers
from nexa_distill.raw_data.input_reading import describe_answers, settle_input
from nexa_distill.settings.pipeline import with_flags
from tests import warm
from tests.support.workspace import ROOT, Workspace, workspace

GEN = "scripts/python/data_processing/run_full_data_gen.py"
FILTER = "scripts/python/data_processing/run_filtering.py"
REPAIR = "scripts/python/data_processing/run_regeneration.py"
CITIES = [
    "Paris",
    "Berlin",
    "Rome",
    "Oslo",
    "Madrid",
    "Lisbon",
    "Vienna",
    "Prague",
    "Warsaw",
    "Athens",
    "Dublin",
    "Bern",
]


def rows(question: str = "question", answer: str = "answer", **others: Any) -> list[dict[str, Any]]:
    """Questions whose answers are known; the fourth is empty."""
    return [
        {
            question: f"Which city is number {n} of the list of {n * 7} capitals?",
            answer: None if n == 3 else city,
            **others,
        }
        for n, city in enumerate(CITIES)
    ]


def put(path: Path, values: list[dict[str, Any]]) -> str:
    """Write the rows in the format of the ending."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(values), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in values))
    elif path.suffix == ".json":
        path.write_text(json.dumps({"version": 1, "data": values}))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(values[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(values)
    return str(path)


def project(folder: Path, values: list[dict[str, Any]], name: str = "qa.csv", **changes: Any) -> Workspace:
    folder.mkdir(exist_ok=True)
    return workspace(folder, input={"path": put(folder / name, values)}, **changes)


def outputs(made: Workspace) -> dict[str, str]:
    """Prompt -> answer."""
    table = pq.read_table(made.path("collected_dataset")).to_pylist()
    return {row["user_prompt"]: row["teacher_output"] for row in table}


@pytest.mark.parametrize("name", ["qa.csv", "qa.tsv", "qa.jsonl", "qa.json", "qa.parquet"])
def test_prompts_and_answers_of_one_file_belong_together_by_row(tmp_path: Path, name: str) -> None:
    values = rows()
    made = project(tmp_path, values, name)  # there is no server at its address
    done = made.run(GEN)
    assert f"answers: column answer of {name}, 12 rows (1 empty: not answered); no teacher is asked" in done.stdout
    assert outputs(made) == {row["question"]: row["answer"] for row in values if row["answer"]}
    (missing,) = pq.read_table(made.path("unanswered")).to_pylist()
    assert (missing["rejection_reason"], missing["detail"]) == (
        "no_answer_in_file",
        f"{name}, row 3 (0-based): has no answer",
    )
    assert not made.path("journal").exists()


@pytest.mark.parametrize(
    ("question", "answer"),
    [("instruction", "output"), ("prompt", "response"), ("Question", "Gold Answer"), ("Frage", "Antwort"),
     ("pregunta", "respuesta"), ("question", "Re\u0301ponse"), ("प्रश्न", "उत्तर"), ("问题", "答案"), ("input", "output"),
     ("problem", "solution"), ("query", "model_answer"), ("prompt", "completion")],
)  # fmt: skip
def test_the_columns_have_other_names(tmp_path: Path, question: str, answer: str) -> None:
    made = project(tmp_path, rows(question, answer))
    assert settle_input(made.load()).answers.column == answer
    assert settle_input(made.load()).has_answers_in_input


@pytest.mark.parametrize(
    "name", ["answer_id", "num_answers", "answer_type", "has_answer", "answerKey", "output_tokens", "category", "text"]
)
def test_a_column_about_answers_is_none(name: str) -> None:
    assert not looks_like_answers(name)


def test_an_alpaca_row_has_an_input_perhaps_a_nested_one_and_an_output(tmp_path: Path) -> None:
    inputs: list[Any] = ["", "a text", {"city": "Rome"}, "", [], 7, ["x"], None, "", "", "", ""]
    values = [row | {"input": value} for row, value in zip(rows("instruction", "output"), inputs, strict=True)]
    made = project(tmp_path, values, "alpaca.jsonl")
    made.run(GEN)
    ends = [text.partition("capitals?")[2] for text in outputs(made)]  # without the fourth
    assert ends[:6] == ["", "\n\na text", '\n\n{"city": "Rome"}', "", "\n\n7", '\n\n["x"]']


def test_a_named_teacher_is_asked_and_the_answers_are_the_references(tmp_path: Path) -> None:
    made = project(tmp_path, rows())
    for request in (Request(made.config, provider="vllm"), Request(made.config, base_url="http://127.0.0.1:9/v1")):
        config = request.load_settings()
        assert (config.answers.path, config.defaults.reference_column) == (None, "answer")
    canonicalize.run(config)
    assert [row["reference"] for row in pq.read_table(made.path("canonical")).to_pylist()][:2] == CITIES[:2]
    made.change(answers={"path": str(tmp_path / "qa.csv")})  # as in a configuration of ready answers
    assert Request(made.config, provider="vllm").load_settings().answers.path is None
    made.change(answers={"from_input": False, "path": None})
    assert settle_input(made.load()).defaults.reference_column == "answer"
    made.run(GEN, "--provider", "vllm", code=69)  # asked, and not there


@pytest.mark.parametrize(
    "changes",
    [
        {"defaults": {"reference_column": "answer"}},
        {"defaults": {"prompt_template": "{prompt} ({answer})"}},
        {"answers": {"column": "other"}},
    ],
)
def test_a_column_with_another_purpose_is_no_answer(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = project(tmp_path, rows(), **changes)
    assert settle_input(made.load()) == made.load()


@pytest.mark.parametrize("name", ["math", "text2sql"])
def test_the_gold_columns_of_the_recipes_are_references(tmp_path: Path, name: str) -> None:
    values = [{"instruction": "How many?", "answer": "3", "schema": "CREATE TABLE t (a)", "gold_sql": "SELECT 1"}]
    made = workspace(tmp_path, extends=str(ROOT / f"configs/{name}.yaml"))
    config = with_flags(made.load(), {"input": {"path": str(put(tmp_path / "r.jsonl", values))}})
    assert (config.answers.path, settle_input(config)) == (None, config)


def test_two_columns_of_answers_are_refused_with_the_settings_to_write(tmp_path: Path) -> None:
    made = project(tmp_path, rows(solution="x"))
    with pytest.raises(
        InputError, match=r"columns answer, solution .*answers: \{column: solution\}.*from_input: false"
    ):
        settle_input(made.load())
    made.change(answers={"column": "solution"})
    assert settle_input(made.load()).answers.column == "solution"


def test_the_plan_has_no_teacher_and_the_plan_of_a_named_one_has(tmp_path: Path) -> None:
    made = project(tmp_path, rows(), provider="embedded")
    request = Request(made.config)
    assert "teacher" not in [step.session for step in make_plan(request, tmp_path / "run")]
    lines = list(describe_plan(request))
    assert [line for line in lines if line.startswith("answers: column answer of qa.csv, 12 rows")]
    assert not [line for line in lines if line.startswith(("teacher:", "regeneration:"))]
    named = make_plan(Request(made.config, provider="embedded"), tmp_path / "run")
    assert named[0].session == "teacher"


def test_no_model_replaces_the_answers_of_people(tmp_path: Path) -> None:
    made = project(tmp_path, rows(), filters="rules.yaml")
    rules = tmp_path / "rules.yaml"
    rules.write_text("min_char_length: 300")
    made.change(filters=str(rules))
    made.run(GEN)
    made.run(FILTER)
    done = made.run(REPAIR)  # by hand, and the configuration names a teacher
    assert f"answers come from {tmp_path / 'qa.csv'}; no request is sent" in done.stdout
    made.change(input={"path": "data/raw/passages.jsonl"})  # as when --input named the file
    made.run(REPAIR, "--provider", "vllm")  # a request would end it with 69
    assert pq.read_metadata(made.path("regen_dataset")).num_rows == 0


def test_answers_of_the_input_file_itself_need_no_ids(tmp_path: Path) -> None:
    made = project(tmp_path, rows())
    made.run(GEN, "--answers", str(tmp_path / "qa.csv"), "--provider", "vllm")
    assert len(outputs(made)) == 11
    other = tmp_path / "other.csv"
    other.write_bytes((tmp_path / "qa.csv").read_bytes())
    said = made.run(GEN, "--answers", str(other), code=65).stderr
    assert "none of the columns sample_id, task_id, id is there" in said
    assert "pass it as --input" in said


def test_the_first_of_two_answers_to_one_prompt_is_used_and_the_other_is_told(tmp_path: Path) -> None:
    values = rows()
    made = project(tmp_path, [*values, values[0] | {"answer": "Lyon"}])
    done = made.run(GEN)
    assert outputs(made)[values[0]["question"]] == "Paris"
    assert "1 more belong to rows that dedup left out" in done.stdout


def test_a_limit_and_a_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for number, part in enumerate([rows()[:6], rows()[6:]]):
        put(tmp_path / f"parts/part-{number}.jsonl", part)
    made = workspace(tmp_path, input={"path": str(tmp_path / "parts")})
    made.run(GEN)
    assert list(outputs(made).values()) == [city for city in CITIES if city != "Oslo"]
    made.change(input={"limit": 8})
    assert "8 rows (1 empty" in str(describe_answers(settle_input(made.load())))


def plan_of(made: Workspace, **flags: Any) -> list[str]:
    return list(describe_plan(Request(made.config, **flags)))


def test_a_plan_says_which_columns_are_read_and_shows_the_first_prompt(tmp_path: Path) -> None:
    made = project(tmp_path, rows("Frage", "Antwort", Thema="x", domain="cities"))
    lines = plan_of(made)
    assert "input: qa.csv, 12 rows: Frage (prompt), Antwort (answer), domain; not read: Thema" in lines
    place = lines.index("first prompt, of task type chat:")
    assert lines[place + 1].startswith("  system: ")
    assert lines[place + 2 : place + 4] == [
        "  user: Which city is number 0 of the list of 0 capitals?",
        "  answer: Paris",
    ]


def test_a_plan_of_texts_shows_the_end_of_a_long_prompt_too(tmp_path: Path) -> None:
    text = "The harbour was built in stone. " * 60
    made = project(tmp_path, [{"text": text, "name": "a"}], "texts.jsonl")
    page = "\n".join(plan_of(made))
    assert "input: texts.jsonl, 1 row: text (source text); not read: name" in page
    assert "more characters ...]" in page
    assert "Use five sentences." in page
    assert len(page) < 3000


def test_a_plan_reads_only_the_first_rows_of_a_large_file(tmp_path: Path) -> None:
    made = project(tmp_path, rows() * 20, "qa.jsonl")
    with (tmp_path / "qa.jsonl").open("a") as file:
        file.write("not JSON\n")
    assert [line for line in plan_of(made) if line.startswith("input: qa.jsonl, the first 100 rows: question (prompt)")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "titel,inhalt\na,b\n", "none of the columns user_prompt, context, text exists"),
        ("a.csv", "question,answer\n,Paris\n", "row 0 (0-based): column question is null"),
        ("a.jsonl", '{"text": "Ice."}\n{"text": \n', "line 2 is not valid JSON"),
        ("a.jsonl", "", "holds no rows"),
        ("a.parquet", "no Parquet", "not a complete Parquet file"),
        ("a.docx", "x", "cannot tell the format from the ending"),
        ("a.jsonl", '{"question": "Why?", "template_name": "text2sql"}', "names no database"),
    ],
)
def test_unsuitable_data_is_refused_by_the_plan_and_by_the_launch(
    tmp_path: Path, name: str, content: str, problem: str
) -> None:
    (tmp_path / name).write_text(content)
    made = workspace(tmp_path, input={"path": str(tmp_path / name)})
    for command in ("plan", "prepare"):
        program = [warm.python(), "-m", "nexa_distill.pipeline", command, "--config", str(made.config)]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, problem in done.stderr) == (65, True), done.stderr
    assert not list((tmp_path / "logs").glob("*"))


@pytest.mark.parametrize(("value", "kind"), [(["a"], "list"), ({"text": ["a"]}, "dict"), (True, "bool")])
def test_answers_that_are_no_texts_are_told(tmp_path: Path, value: Any, kind: str) -> None:
    made = project(tmp_path, [{"question": "Why?", "answers": value}], "qa.jsonl")
    assert f"input: column answers looks like answers and holds {kind} values: " in "\n".join(plan_of(made))


@pytest.mark.parametrize("name", ["Text", "passage", "Document", "article"])
def test_texts_under_another_name_are_used_and_told(tmp_path: Path, name: str) -> None:
    made = project(tmp_path, [{name: "Ice floats.", "author": "x"}])
    lines = plan_of(made)
    assert f"input: qa.csv, 1 row: {name} (source text); not read: author" in lines
    assert f"input: the text is column {name} (defaults.text_column chooses another)" in lines


def test_a_context_in_another_spelling_is_before_the_question(tmp_path: Path) -> None:
    made = project(tmp_path, [{"Context": "Ice floats.", "Question": "Why?", "Answer": "It is light."}])
    canonicalize.run(settle_input(made.load()))
    (row,) = pq.read_table(made.path("canonical")).to_pylist()
    assert (row["user_prompt"], row["context"]) == ("Ice floats.\n\nWhy?", "Ice floats.")
