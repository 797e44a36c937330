"""Tables that a user hands in: nullable columns may be absent, and prompts need no keys."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill import canonicalize, collect_teacher, filter_pairs, to_sft
from nexa_distill.contracts import OUTPUTS, TABLES
from nexa_distill.errors import InputError
from nexa_distill.storage.tables import ESSENTIAL, open_table, read_batches, read_table
from tests.support.answers import answer, project
from tests.support.workspace import workspace
from tests.teacher.faults import answers, collect
from tests.teacher.ledger_teacher import ledger_teacher

LEAN = [field.name for field in OUTPUTS if not field.nullable]


def lean(path: Path, *rows: dict[str, Any], extra: tuple[str, ...] = ()) -> Path:
    """Answers with the columns that are never null, and `extra`."""
    table = pa.Table.from_pylist(list(rows), schema=OUTPUTS)
    pq.write_table(table.select([*LEAN, "teacher_output", *extra]), path)
    return path


@pytest.mark.parametrize("key", TABLES)
def test_every_nullable_column_of_every_table_may_be_absent(tmp_path: Path, key: str) -> None:
    table = TABLES[key]
    kept = [f.name for f in table.schema if not f.nullable or f.name in ESSENTIAL]
    path = tmp_path / "t.parquet"
    pq.write_table(table.schema.empty_table().select(kept), path)
    assert open_table(path, table).schema_arrow.names == kept
    assert read_table(path, table).schema.names == table.schema.names
    if len(kept) < len(table.schema.names):
        with pytest.raises(InputError, match="is missing"):
            open_table(path, table, complete=True)


def test_an_absent_column_is_null_in_every_batch(tmp_path: Path) -> None:
    path = lean(tmp_path / "a.parquet", *(answer(n) for n in range(25)))
    table = TABLES["collected_dataset"]
    rows = pa.concat_tables(list(read_batches(path, table, batch_rows=10)))
    assert rows.num_rows == 25
    assert rows.schema.names == OUTPUTS.names
    assert rows["domain"].null_count == rows["created_at"].null_count == 25
    only = list(read_batches(path, table, batch_rows=10, columns=["domain", "latency_ms"]))
    assert [batch.num_rows for batch in only] == [10, 10, 5]
    assert only[0].schema.names == ["domain", "latency_ms"]
    absent = list(read_batches(path, table, batch_rows=10, columns=["domain"]))
    assert [batch.num_rows for batch in absent] == [10, 10, 5]


@pytest.mark.parametrize("column", ["teacher_output", "user_prompt"])
def test_what_the_table_is_about_is_never_absent(tmp_path: Path, column: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([answer(0)], schema=OUTPUTS).drop_columns(column), path)
    with pytest.raises(InputError, match=f"column {column} is missing"):
        read_table(path, TABLES["collected_dataset"])


@pytest.mark.parametrize("name", ["domains", "Domain", "refrence", "data_base", "test"])
def test_a_misspelt_column_is_not_taken_for_an_absent_one(tmp_path: Path, name: str) -> None:
    path = lean(tmp_path / "a.parquet", answer(0))
    table = pq.read_table(path)
    pq.write_table(table.append_column(name, pa.array(["x"])), path)
    with pytest.raises(InputError, match=f'is missing .did you mean "{name}"'):
        read_table(path, TABLES["collected_dataset"])


def test_a_column_that_a_flag_names_must_be_there(tmp_path: Path) -> None:
    path = lean(tmp_path / "a.parquet", answer(0))
    with pytest.raises(InputError, match="column passage is missing"):
        list(read_batches(path, TABLES["collected_dataset"], renamed={"context": "passage"}))


def test_stages_take_a_table_without_nullable_columns(tmp_path: Path) -> None:
    config = project(tmp_path)
    rows = [answer(n, domain=None) for n in range(3)]
    src = lean(tmp_path / "a.parquet", *rows, extra=("finish_reason",))
    out: dict[str, Any] = {"dst": tmp_path / "kept.parquet", "checks": tmp_path / "checks.parquet"}
    summary = filter_pairs.run(config, src=[src], **out)
    assert summary is not None
    assert summary.kept == 3
    counts = to_sft.run(config, src=src, dst_jsonl=tmp_path / "s.jsonl", dst_parquet=tmp_path / "s.parquet")
    assert counts is not None
    assert counts["train"] == 3


QUESTIONS = [f"What is {n} plus {n}?" for n in range(4)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        names = list(rows[0])
        lines = [";".join(names), *(";".join(row[name] for name in names) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "column"), [("a.parquet", "user_prompt"), ("a.parquet", "question"), ("a.csv", "user_prompt")]
)
def test_a_file_of_prompts_alone_is_asked_with_the_ids_of_canonicalize(tmp_path: Path, name: str, column: str) -> None:
    src = write(tmp_path / name, [{column: text} for text in QUESTIONS])
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, input={"path": str(src)})
        said = collect(made, "--src", str(src))
        assert "has no sample_id: computed" in said
        found = answers(made)
        assert [row["user_prompt"] for row in found] == QUESTIONS
        assert {row["split"] for row in found} == {"train"}
        assert sum(teacher.billed().values()) == 4
        assert "up to date" in collect(made, "--src", str(src))
    canonicalize.run(made.load())
    expected = pq.read_table(made.path("canonical"))["sample_id"].to_pylist()
    assert [row["sample_id"] for row in found] == expected


def test_flags_name_the_columns_of_a_file_without_keys(tmp_path: Path) -> None:
    rows = [{"ask": text, "about": "Numbers.", "kind": "math"} for text in QUESTIONS]
    src = write(tmp_path / "mine.parquet", rows)
    flags = ["--prompt-column", "ask", "--context-column", "about", "--task-type-column", "kind"]
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        collect(made, "--src", str(src), *flags)
    found = answers(made)
    assert [row["user_prompt"] for row in found] == QUESTIONS
    assert {(row["context"], row["template_name"]) for row in found} == {("Numbers.", "math")}


def test_texts_in_place_of_prompts_name_the_commands_to_run_first(tmp_path: Path) -> None:
    made = workspace(tmp_path)
    src = write(tmp_path / "texts.parquet", [{"text": "Ice floats."}])
    with pytest.raises(InputError, match=r"no prompt; run `python -m nexa_distill\.canonicalize"):
        collect_teacher.run(made.load(), src)
    with pytest.raises(InputError, match=r"none\.jsonl: holds no rows"):
        collect_teacher.run(made.load(), write(tmp_path / "none.jsonl", []))
