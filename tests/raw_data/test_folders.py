"""Folders as raw input: texts with front matter, hidden files, shards, and what is left out."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill import canonicalize
from nexa_distill.errors import InputError
from nexa_distill.raw_data.files import RawRow, read_raw
from nexa_distill.storage.manifests import sha256_path
from tests.support.workspace import workspace


def fill(folder: Path, **files: str) -> Path:
    """`a__b_md="text"` is the file a/b.md."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        stem, _, ending = path.name.rpartition("_")
        path = path.with_name(f"{stem}.{ending}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def read(path: Path) -> tuple[list[RawRow], list[str]]:
    told: list[str] = []
    return list(read_raw(path, tell=told.append)), told


FRONT = "---\ntitle: Tides\ndomain: oceanography\ntags: [sea, moon]\nid: 7\n---\n\n# Tides\n"


def test_da05_hidden_files_are_skipped_and_the_others_left_out_are_named(tmp_path: Path) -> None:
    fill(
        tmp_path, tides_md=FRONT, sub__bees_md="Bees.", notes_markdown="Notes.", page_html="<b>",
        x_pdf="%PDF", y_pdf="%PDF",
    )  # fmt: skip
    for hidden in (".ipynb_checkpoints", ".git", "__MACOSX", "sub/.obsidian"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "draft.md").write_text("Old draft.")
    (tmp_path / "._tides.md").write_text("resource fork")
    (tmp_path / "zero.md").touch()
    rows, told = read(tmp_path)
    assert [row.file for row in rows] == ["notes.markdown", "sub/bees.md", "tides.md"]
    (line,) = told
    assert "9 of its files left out: 5 hidden (" in line
    for part in ("1 .html (page.html)", "2 .pdf (x.pdf, y.pdf)", "1 empty (zero.md)"):
        assert part in line


@pytest.mark.parametrize(
    ("text", "metadata", "body"),
    [
        (FRONT, {"title": "Tides", "domain": "oceanography"}, "# Tides\n"),
        (FRONT.replace("\n", "\r\n"), {"title": "Tides", "domain": "oceanography"}, "# Tides\n"),
        ("---\ntitle: Tides: an overview\n---\nText", {"title": "Tides: an overview"}, "Text"),
        ('+++\ntitle = "Tides"\ndate = 2024-01-02\n+++\nText', {"title": "Tides"}, "Text"),
        ("---\ntitle: [1, 2]\nyear: 2024-13-45\n...\nText", {"title": "[1, 2]"}, "Text"),
        ("---\ntags: [a]\n---\nText", {}, "Text"),
        ("---\n---\nText", {}, "Text"),
        ("---\nA rule, a sentence.\n\n---\nText", {}, "---\nA rule, a sentence.\n\n---\nText"),
        ("---\nnever: closed\n", {}, "---\nnever: closed\n"),
        ("Text\n---\ntitle: no\n---\n", {}, "Text\n---\ntitle: no\n---\n"),
    ],
)
def test_da05_front_matter_is_metadata_and_a_rule_is_text(
    tmp_path: Path, text: str, metadata: dict[str, str], body: str
) -> None:
    (tmp_path / "a.md").write_bytes(("\ufeff" + text).encode())
    for path in (tmp_path, tmp_path / "a.md"):
        (row,), _ = read(path)
        assert row.values == {"id": "a", "text": body, **metadata}


def test_da05_front_matter_goes_into_the_prompts_as_a_domain(tmp_path: Path) -> None:
    folder = fill(tmp_path / "notes", tides_md=FRONT)
    made = workspace(tmp_path, input={"path": str(folder)}, defaults={"tasks": ["hypothesis"]})
    canonicalize.run(made.load())
    (row,) = pq.read_table(made.path("canonical")).to_pylist()
    assert (row["domain"], row["context"], row["task_id"]) == (
        "oceanography", "# Tides\n", "tides:hypothesis",
    )  # fmt: skip
    assert "tags" not in row["user_prompt"]


def test_da05_files_of_one_stem_keep_their_ending(tmp_path: Path) -> None:
    fill(tmp_path, river_md="Silt.", river_txt="Sand.", lake_md="Water.")
    rows, told = read(tmp_path)
    assert [row.values["id"] for row in rows] == ["lake", "river.md", "river.txt"]
    assert told == []


def test_da05_texts_without_a_word_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "notes", a_md="Glaciers.", b_md="", c_md="---\ntitle: x\n---\n\n")
    made = workspace(tmp_path, input={"path": str(folder)}, defaults={"tasks": ["hypothesis"]})
    canonicalize.run(made.load())
    said = capsys.readouterr().out
    assert "1 empty (b.md)" in said
    assert "c.md: left out, it holds no text" in said
    assert "1 prompts" in said
    fill(folder, a_md="", c_md="\n")
    with pytest.raises(InputError, match="every text in it is empty"):
        read(folder)


def shard(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"user_prompt": text} for text in texts]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "jsonl.gz"])
def test_da05_a_folder_of_shards_is_one_table_in_order(tmp_path: Path, ending: str) -> None:
    for number in (10, 9, 1):
        shard(tmp_path / "data" / f"part-{number}.{ending}", f"{number} a", f"{number} b")
    (tmp_path / "README.md").write_text("# A dataset card is no data")
    (tmp_path / "dataset_infos.json").write_text("{}")
    rows, told = read(tmp_path)
    assert [(row.row, row.values["user_prompt"]) for row in rows] == [
        (0, "1 a"), (1, "1 b"), (0, "9 a"), (1, "9 b"), (0, "10 a"), (1, "10 b"),
    ]  # fmt: skip
    assert rows[-1].file == f"data/part-10.{ending}"
    assert "2 of its files left out: 1 .md (README.md); 1 .json (dataset_infos.json)" in told[0]


def test_da05_the_same_table_in_two_formats_is_not_read_twice(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", "one")
    shard(tmp_path / "a.jsonl", "one")
    with pytest.raises(InputError, match=r"different formats \(1 \.jsonl, 1 \.parquet\)"):
        read(tmp_path)


def test_da05_tables_beside_texts_are_named(tmp_path: Path) -> None:
    fill(tmp_path, a_md="Text.", package_json="{}")
    shard(tmp_path / "rows.jsonl", "one")
    rows, (line,) = read(tmp_path)
    assert [row.file for row in rows] == ["a.md"]
    assert "1 .json (package.json); 1 .jsonl (rows.jsonl)" in line


def test_da05_what_is_hidden_does_not_make_the_input_stale(tmp_path: Path) -> None:
    fill(tmp_path, a_md="Text.")
    before = sha256_path(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.md").write_text("Old.")
    assert sha256_path(tmp_path) == before


@pytest.mark.parametrize("files", [{}, {"a_pdf": "%PDF"}])
def test_da05_a_folder_without_data_says_what_is_in_it(tmp_path: Path, files: dict[str, Any]) -> None:
    fill(tmp_path, **files)
    with pytest.raises(InputError, match=r"holds no \.txt.*found: (nothing|.*a\.pdf)"):
        read(tmp_path)
