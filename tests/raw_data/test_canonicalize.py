"""Raw rows to canonical prompts: identity, chunks, prompts, and rows that are refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_distill import canonicalize
from nexa_distill.canonicalize import canonical_rows, split_chunks
from nexa_distill.errors import InputError
from nexa_distill.raw_data.files import RawRow
from nexa_distill.settings.pipeline import Chunking
from nexa_distill.text.ngrams import normalize_document
from tests.support.workspace import Workspace, workspace

CHUNKING = Chunking(max_tokens=400, overlap_tokens=40)
TEMPLATES = {"hypothesis": "Guess: {context}", "methodology": "Plan: {context}"}


def canonical(*values: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    raw = [RawRow("raw.jsonl", number, row) for number, row in enumerate(values)]
    columns = workspace(folder).load().defaults
    return list(canonical_rows(raw, columns, CHUNKING, TEMPLATES))


def test_a_text_becomes_one_prompt_per_task_type(tmp_path: Path) -> None:
    rows = canonical({"id": "x", "text": "Ice floats.", "domain": "physics"}, folder=tmp_path)
    assert [(r["task_id"], r["template_name"], r["user_prompt"]) for r in rows] == [
        ("x:hypothesis", "hypothesis", "Guess: Ice floats."),
        ("x:methodology", "methodology", "Plan: Ice floats."),
    ]
    assert {r["domain"] for r in rows} == {"physics"}
    assert len({r["document_id"] for r in rows}) == 1
    assert len({r["sample_id"] for r in rows}) == 2


def test_prompts_that_exist_are_taken_as_they_are(tmp_path: Path) -> None:
    raw = {"user_prompt": "Count.", "template_name": "math", "reference": "3", "context": "c"}
    (row,) = canonical(raw, folder=tmp_path)
    assert (row["user_prompt"], row["template_name"], row["reference"]) == ("Count.", "math", "3")
    assert row["context"] == "c"


def test_f29_the_key_of_a_row_does_not_depend_on_its_place(tmp_path: Path) -> None:
    a, b = {"id": "a", "text": "Eins."}, {"id": "b", "text": "Zwei."}
    forward = {r["sample_id"]: r["task_id"] for r in canonical(a, b, folder=tmp_path)}
    backward = {r["sample_id"]: r["task_id"] for r in canonical(b, a, folder=tmp_path)}
    edited = {r["sample_id"] for r in canonical(a, b | {"text": "Drei."}, folder=tmp_path)}
    assert forward == backward
    assert len(edited & forward.keys()) == 2


def test_f26_the_same_id_with_other_content_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="id 'a' is also the id of an earlier row"):
        canonical({"id": "a", "text": "Eins."}, {"id": "a", "text": "Zwei."}, folder=tmp_path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"txt": "x"}, 'did you mean "txt"'),
        ({"title": "x"}, "none of the columns user_prompt, context, text exists"),
        ({"text": None}, "column text is null"),
        ({"text": "  "}, "column text is empty"),
        ({"text": 7}, "column text is int"),
        ({"text": "x", "domain": ["y"]}, "column domain is list"),
        ({"text": "half \ud800"}, "half of a surrogate pair at character 5"),
    ],
)
def test_f28_a_bad_row_is_named_with_its_column(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match="row 0") as error:
        canonical(row, folder=tmp_path)
    assert expected in str(error.value)


@given(st.lists(st.text("ab\u00a0é", min_size=1, max_size=3), min_size=1, max_size=60))
def test_chunks_cover_every_word_in_order_and_overlap_as_asked(words: list[str]) -> None:
    text = " ".join(words)
    pieces = split_chunks(text, Chunking(max_tokens=7, overlap_tokens=2))
    cut = [piece.split() for piece in pieces]
    assert all(len(piece) <= 7 for piece in cut) or len(pieces) == 1
    joined = cut[0] + [word for piece in cut[1:] for word in piece[2:]]
    assert joined == text.split()


def test_folding_hides_case_spacing_and_unicode_form() -> None:
    assert normalize_document("\uff26ine\n  Straße") == normalize_document("fine strasse ")


def written(made: Workspace) -> list[dict[str, Any]]:
    canonicalize.run(made.load())
    rows: list[dict[str, Any]] = pq.read_table(made.path("canonical")).to_pylist()
    return rows


def test_limit_counts_raw_rows_and_a_rerun_changes_no_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = workspace(tmp_path, input={"limit": 3})
    assert len(written(made)) == 6
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files(tmp_path)}
    written(made)
    assert "up to date" in capsys.readouterr().out
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files(tmp_path)} == before


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_changed_prompt_or_chunk_size_is_noticed(tmp_path: Path) -> None:
    made = workspace(tmp_path, input={"limit": 1})
    short = written(made)
    made.change(chunking={"max_tokens": 50, "overlap_tokens": 5})
    assert len(written(made)) > len(short)


def test_an_unknown_task_type_names_the_nearest_prompt(tmp_path: Path) -> None:
    made = workspace(tmp_path, defaults={"tasks": ["hypothesys"]})
    with pytest.raises(InputError, match='did you mean "hypothesis"'):
        canonicalize.run(made.load())


def test_no_rows_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text("\n")
    made = workspace(tmp_path, input={"path": str(tmp_path / "raw.jsonl")})
    with pytest.raises(InputError, match="holds no rows"):
        canonicalize.run(made.load())
    assert not list((tmp_path / "processed").rglob("*.parquet*"))


def test_the_shipped_sample_is_sixty_four_passages_over_eight_domains() -> None:
    lines = Path("data/raw/passages.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["text"] for row in rows}) == len(rows) == 64
    assert len({row["domain"] for row in rows}) == 8


def test_a_template_is_laid_around_a_prompt_that_exists(tmp_path: Path) -> None:
    columns = workspace(
        tmp_path,
        defaults={
            "prompt_column": "instruction", "task_type": "text2sql", "reference_column": "answer",
            "prompt_template": "{schema}\n\n{prompt}",
        },
    ).load().defaults  # fmt: skip
    values = {"instruction": "How many {schema}s?", "schema": "CREATE TABLE s (a)", "answer": "3"}
    (row,) = canonical_rows([RawRow("r.jsonl", 0, values)], columns, CHUNKING, TEMPLATES)
    assert row["user_prompt"] == "CREATE TABLE s (a)\n\nHow many {schema}s?"
    assert (row["template_name"], row["reference"]) == ("text2sql", "3")
    del values["schema"]
    with pytest.raises(InputError, match=r"row 0 .*contains \{schema\}, and the row has none"):
        list(canonical_rows([RawRow("r.jsonl", 0, values)], columns, CHUNKING, TEMPLATES))
