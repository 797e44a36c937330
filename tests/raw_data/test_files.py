"""Raw input in every format, and what is refused before anything is spent."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill.errors import InputError, InputMissing
from nexa_distill.raw_data.files import read_raw

ROWS = [{"id": "a", "text": "Überall\u2028eins"}, {"id": "b", "text": 'zwei, "drei"\nvier'}]


def write(path: Path) -> Path:
    match path.suffix:
        case ".jsonl":
            lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
            path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(ROWS), encoding="utf-8-sig")
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["id", "text"])
                writer.writeheader()
                writer.writerows(ROWS)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    rows = list(read_raw(write(tmp_path / f"raw.{ending}")))
    assert [row.values for row in rows] == ROWS
    assert [row.row for row in rows] == [0, 1]


def test_a_folder_gives_one_row_per_text_file_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("zwei")
    (tmp_path / "sub" / "a.txt").write_text("eins")
    (tmp_path / "skipped.pdf").write_text("no")
    found = [(row.file, row.values["id"], row.values["text"]) for row in read_raw(tmp_path)]
    assert found == [("b.md", "b", "zwei"), ("sub/a.txt", "sub/a", "eins")]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("raw.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not valid JSON"),
        ("raw.jsonl", b'"text"\n', "line 1 is str, expected an object"),
        ("raw.json", b'{"text": "x"}', "expected a list of objects, found dict"),
        ("raw.csv", b"id,text\n1,a,b\n", "row 0 has another number of cells"),
        ("raw.csv", b"id,text\n1,\xff\n", "not UTF-8"),
        ("raw.parquet", b"PAR1 torn", "not a complete Parquet file"),
        ("raw.docx", b"", "cannot tell the format"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_place(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        list(read_raw(tmp_path / name))
    assert name in str(error.value)


def test_a_cell_of_any_length_is_read(tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text("text\n" + "x" * 300_000 + "\n")
    (row,) = read_raw(tmp_path / "raw.csv")
    assert len(row.values["text"]) == 300_000


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such file or folder"):
        list(read_raw(tmp_path / "nowhere.jsonl"))
    with pytest.raises(InputError, match="holds no"):
        list(read_raw(tmp_path))


def test_f28_parquet_torn_at_any_byte_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "raw.parquet").read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "torn.parquet").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"torn\.parquet"):
            list(read_raw(tmp_path / "torn.parquet"))
