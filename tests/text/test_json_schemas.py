"""Structured output: a JSON schema per task type, sent with the request and checked afterwards."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_distill import filter_pairs, regenerate_bad, sample_gate
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.text.json_schemas import load_schemas
from tests.support.workspace import Workspace, workspace
from tests.teacher.faults import again_is_free, answers, ask, collect, prompts, provide, put
from tests.teacher.ledger_teacher import ledger_teacher

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "steps": {"type": "array"},
                   "score": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["title", "steps", "score"],
    "additionalProperties": False,
}  # fmt: skip


def with_schema(made: Workspace, schema: object = SCHEMA) -> Path:
    path = made.folder / "method.json"
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    made.change(collection={"response_schemas": {"method/ology": str(path)}})
    return path


def mixed(count: int) -> list[dict[str, Any]]:
    """Every second prompt is of the task type that has a schema."""
    rows = prompts(count)
    for row in rows[::2]:
        row["template_name"] = "method/ology"
    return rows


def flags(made: Workspace) -> list[str | None]:
    """Of the answers to prompts of the task type that has a schema."""
    return [r["answer_flag"] for r in answers(made) if r["template_name"] == "method/ology"]


def bodies(made: Workspace, stage: str = "teacher") -> list[dict[str, Any]]:
    with closing(sqlite3.connect(made.path("journal") / f"{stage}.sqlite")) as db:
        return [json.loads(body) for (body,) in db.execute("SELECT body FROM requests")]


def test_only_the_rows_of_a_task_with_a_schema_are_asked_anew_and_their_answers_keep_to_it(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, mixed(12))
        before = {r["sample_id"]: r["teacher_output"] for r in answers(made)}
        with_schema(made)
        assert "6 requests to send" in collect(made, "--estimate")
        collect(made)
        assert sum(teacher.billed().values()) == 12 + 6
        again_is_free(made, teacher)
        for row in answers(made):
            assert row["answer_flag"] is None
            if row["template_name"] == "method/ology":
                assert set(json.loads(row["teacher_output"])) == {"title", "steps", "score"}
            else:
                assert row["teacher_output"] == before[row["sample_id"]]
        (form,) = {json.dumps(b["response_format"]) for b in bodies(made) if "response_format" in b}
        asked = {"name": "method_ology", "schema": SCHEMA, "strict": True}
        assert json.loads(form) == {"type": "json_schema", "json_schema": asked}
        with_schema(made, SCHEMA | {"required": ["title", "score"]})
        collect(made)
        assert sum(teacher.billed().values()) == 12 + 6 + 6, "a changed schema asks anew"


def test_an_answer_that_does_not_keep_to_its_schema_is_flagged_rejected_and_not_asked_again(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault=["odd_text", "length"], share=0.6, always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        with_schema(made)
        said = ask(made, mixed(40))
        again_is_free(made, teacher)
        assert set(teacher.billed().values()) == {1}
        found = flags(made)
        assert set(found) == {"schema_mismatch", None}
        assert f"{found.count('schema_mismatch')} schema_mismatch" in said
        plain = [r for r in answers(made) if r["template_name"] == "instruction"]
        assert {row["answer_flag"] for row in plain} == {"truncated", None}
        filter_pairs.run(made.load())
        sample_gate.run(made.load())
        rejected = pq.read_table(made.path("rejections")).to_pylist()
        against = {row["sample_id"]: row["rejection_reasons"] for row in rejected}
        for row in answers(made):
            if row["answer_flag"] == "schema_mismatch":
                assert against[row["sample_id"]][0] == "schema_mismatch"
                cut = row["finish_reason"] == "length"
                assert ("truncated" in against[row["sample_id"]]) == cut
        regenerate_bad.run(made.load())
    forms = ["response_format" in body for body in bodies(made, "regenerate")]
    tasks = [row["template_name"] for row in rejected]
    assert forms.count(True) == tasks.count("method/ology"), "a repair keeps to the schema too"
    assert forms.count(False) == tasks.count("instruction")


def test_a_model_without_schemas_refuses_those_requests_alone(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, capabilities=["usage"]) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        with_schema(made)
        ask(made, mixed(12))
        again_is_free(made, teacher)
        assert len(teacher.billed()) == 6
    lost = pq.read_table(made.path("unanswered")).to_pylist()
    assert {row["rejection_reason"] for row in lost} == {"request_refused"}
    assert {row["template_name"] for row in lost} == {"method/ology"}
    assert "json_schema is not supported" in lost[0]["detail"]


def test_a_schema_can_be_left_out_of_the_requests_and_checked_all_the_same(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, capabilities=["usage"]) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        provide(made, extra_body={"response_format": None})
        with_schema(made)
        ask(made, mixed(6))
    assert not any("response_format" in body for body in bodies(made))
    assert flags(made) == ["schema_mismatch"] * 3


def test_a_schema_for_a_task_that_no_prompt_has_is_said(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        with_schema(made)
        said = ask(made, [row | {"template_name": "methodology"} for row in prompts(3)])
    assert 'of task type method/ology (did you mean "methodology"?); its schema is not' in said


@pytest.mark.parametrize(
    ("schema", "code", "expected"),
    [
        (None, 66, "no such file; expected a JSON schema"),
        ('{"type": "object",\n}', 65, "not JSON: Expecting property name enclosed in double quotes"
         ": line 2 column 1"),
        ("[]", 65, "expected a JSON object, found list"),
        ('{"a": NaN}', 65, "not JSON: NaN is not JSON"),
        ({"properties": {"a": {"type": "strin"}}}, 65, "$.properties.a.type: 'strin' is not valid"),
        ({"required": "a"}, 65, "$.required: 'a' is not of type 'array'"),
        ({"pattern": "("}, 65, "$.pattern: '(' is not a 'regex'"),
        ({"$schema": "http://nowhere"}, 65, "$.$schema is 'http://nowhere', which is not known"),
        ({"$schema": 4}, 65, "$.$schema is 4"),
        ({"items": {"$ref": "#/$defs/x"}}, 65, "$ref '#/$defs/x' points to nothing in this file"),
        ({"items": {"$ref": "http://127.0.0.1:9/x"}}, 65, "points to nothing in this file"),
        ({"not": {"$dynamicRef": "http://127.0.0.1:9/x"}}, 65, "points to nothing in this file"),
        ({"$ref": "#"}, 65, "a $ref leads back to itself"),
    ],
)  # fmt: skip
def test_a_bad_schema_file_is_named_with_the_place(tmp_path: Path, schema: object, code: int, expected: str) -> None:
    path = tmp_path / "s.json"
    if schema is not None:
        path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    with pytest.raises((InputError, InputMissing)) as found:
        load_schemas({"task": str(path)})
    assert found.value.exit_code == code
    assert f"{path} (collection.response_schemas.task): " in str(found.value)
    assert expected in str(found.value)


@pytest.mark.parametrize(("schema", "code"), [("{", 65), (None, 66)])
def test_a_bad_schema_stops_the_stage_before_any_request(tmp_path: Path, schema: str | None, code: int) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        path = with_schema(made, "{}")
        path.unlink() if schema is None else path.write_text(schema)
        put(made, mixed(4))
        assert str(path) in collect(made, code=code)
        assert not teacher.sends()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"title": "a", "steps": [], "score": 9}', True),
        (' {"title": "a", "steps": [], "score": 9}\n', True),
        ('{"title": "a", "steps": [], "score": 10}', False),
        ('```json\n{"title": "a", "steps": [], "score": 9}\n```', False),
        ('{"title": "a", "steps": [], "score": NaN}', False),
        ("[" * 100_000, False),
        ("9" * 5000, False),
        ("", False),
    ],
)
def test_an_answer_keeps_to_its_schema_or_does_not_whatever_it_is(tmp_path: Path, text: str, expected: bool) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(SCHEMA))
    schemas = load_schemas({"task": str(path)})
    assert schemas.is_satisfied("task", text) is expected
    assert schemas.is_satisfied("another", text)


def test_a_schema_may_use_itself_and_an_older_dialect(tmp_path: Path) -> None:
    tree = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
            "items": {"$ref": "#"}}  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps(tree))
    schemas = load_schemas({"task": str(tmp_path / "s.json")})
    assert schemas.is_satisfied("task", "[[], [[]]]")
    assert not schemas.is_satisfied("task", "[[], [1]]")
