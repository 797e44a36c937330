"""Answers of a file in the place of a teacher's: nobody is asked, and nothing is guessed."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_distill.orchestration.freshness import Freshness
from nexa_distill.orchestration.planning import Request, make_plan
from nexa_distill.orchestration.stages import STAGES
from tests.support.workspace import Workspace, workspace
from tests.teacher.faults import answers, collect, prompts, put, reasons

GEN = "scripts/python/data_processing/run_full_data_gen.py"


def file_of(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def put_prompts(made: Workspace, count: int) -> list[str]:
    """Flags that name the prompts."""
    return ["--src", str(put(made, prompts(count)))]


def test_answers_are_found_by_either_id_and_what_is_missing_is_said(tmp_path: Path) -> None:
    made = workspace(tmp_path, answers={"model_id": "gold"})  # there is no server at its address
    rows, src = prompts(4), put_prompts(made, 4)
    file = file_of(
        tmp_path,
        {"sample_id": rows[0]["sample_id"], "teacher_output": "zero"},
        {"task_id": rows[1]["task_id"], "teacher_output": "one"},
        {"id": rows[2]["task_id"], "teacher_output": ""},
        {"id": "another prompt", "teacher_output": "nobody asked"},
    )
    said = collect(made, *src, "--answers", file)
    assert "3 of 4 prompts have an answer" in said
    found = answers(made)
    assert [row["teacher_output"] for row in found] == ["zero", "one", ""]
    assert {(row["model_id"], row["finish_reason"]) for row in found} == {("gold", "stop")}
    assert {row[name] for row in found for name in ("cost_usd", "latency_ms", "created_at")} == {None}
    assert reasons(made) == {rows[3]["sample_id"]: "no_answer_in_file"}
    assert "up to date" in collect(made, *src, "--answers", file)
    assert not made.path("journal").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task_id": "x", "teacher_outputs": "a"}], 'did you mean "teacher_outputs"'),
        ([{"task_id": "x", "teacher_output": None}], "expected text"),
        ([{"name": "x", "teacher_output": "a"}], "none of the columns sample_id, task_id, id"),
        (
            [{"id": "x", "teacher_output": "a"}, {"id": "x", "teacher_output": "b"}],
            "x has another answer in an earlier row",
        ),
        ([{"id": "x", "teacher_output": "a"}], "no answer to any of the 2 prompts"),
        ([], "contains no answers"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    made = workspace(tmp_path)
    flags = [*put_prompts(made, 2), "--answers", file_of(tmp_path, *rows)]
    assert message in collect(made, *flags, code=65)


def test_a_launch_starts_no_teacher_and_other_answers_make_it_stale(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps({"id": f"q{n}", "q": f"Count {n}."}) + "\n" for n in range(40)))
    made = workspace(
        tmp_path, provider="embedded", input={"path": str(raw)},
        defaults={"prompt_column": "q", "task_type": "math"},
    )  # fmt: skip
    file = file_of(tmp_path, *({"id": f"q{n}", "teacher_output": str(n)} for n in range(40)))
    request = Request(made.config, answers=Path(file))
    steps = make_plan(request, tmp_path / "run")
    assert "teacher" not in [step.session for step in steps]
    assert steps[0].command[-2:] == ["--answers", file]
    made.run(GEN, "--answers", file)
    table = pq.read_table(made.path("collected_dataset")).to_pylist()
    assert {row["template_name"] for row in table} == {"math"}
    (teacher,) = [stage for stage in STAGES if stage.name == "teacher"]
    assert Freshness(request.load_settings()).stale_reason(teacher) is None
    assert Freshness(made.load()).stale_reason(teacher) == "teacher: settings changed"
    file_of(tmp_path, *({"id": f"q{n}", "teacher_output": f"= {n}"} for n in range(40)))
    assert Freshness(request.load_settings()).stale_reason(teacher) == f"input changed or gone: {file}"
