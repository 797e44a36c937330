"""Raw files of other formats: separators of CSV, compressed files, shapes of JSON, lost columns."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill.errors import InputError
from nexa_distill.raw_data.files import read_raw

ROWS: list[dict[str, str | None]] = [
    {"user_prompt": 'Why, oh why; is "the sky"\tblue | red?\nSay it.', "price": "1,5"},
    {"user_prompt": "Pourquoi 3,14 ? Überall 天空", "price": "2;5"},
    {"user_prompt": "Short", "price": None},
]


def values(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [row.values for row in read_raw(path, **options)]


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(("name", "delimiter"), [*(("rows.csv", mark) for mark in ",;\t|"), ("rows.tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_d28_the_separator_of_a_csv_is_found(tmp_path: Path, delimiter: str, name: str, end: str) -> None:
    path = tmp_path / name
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter, lineterminator=end)
        writer.writeheader()
        writer.writerows(ROWS)
    assert values(path) == ROWS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sep=;\r\nq;n\r\na,b;1\r\n", [{"q": "a,b", "n": "1"}]),  # as Excel writes it
        ("q;n;why, though\na,b;1;x\n", [{"q": "a,b", "n": "1", "why, though": "x"}]),
        ('"q, or so";n\n"a;b";1\n', [{"q, or so": "a;b", "n": "1"}]),
        ("q\nWhy, oh why?\nHow;so?\n", [{"q": "Why, oh why?"}, {"q": "How;so?"}]),
        ("q;n;;\na;1;;\n;;;\n", [{"q": "a", "n": "1"}]),  # empty columns and lines of a spreadsheet
        (" q , n \na,1\n", [{"q": "a", "n": "1"}]),
        ("q;n", []),
        ("\n\nq;n\n\na;1\n", [{"q": "a", "n": "1"}]),
    ],
)  # fmt: skip
def test_d28_the_header_decides_and_not_the_text(tmp_path: Path, text: str, expected: list[dict[str, Any]]) -> None:
    assert values(written(tmp_path / "rows.csv", text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('q\tn\n"Stop! he said.\t1\nNo "end"\t2\n', ['"Stop! he said.', 'No "end"']),
        ('q\tn\n"Stop!" he said.\t1\n"x\t2\n', ['"Stop!" he said.', '"x']),
        ('q\tn\n"Stop!"\t1\n"two\nlines\tof ""it"""\t2\n', ["Stop!", 'two\nlines\tof "it"']),
        ('q\n"two\nlines"\none\n', ["two\nlines", "one"]),
    ],
)
def test_d28_quotes_in_a_tsv_are_text_where_they_close_nothing(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert [row["q"] for row in values(written(tmp_path / "rows.tsv", text))] == expected


def test_d28_a_separator_is_found_where_the_sample_ends_in_a_quoted_text(tmp_path: Path) -> None:
    rows = [f'"{"long; and longer, " * 3000}\n{n}";{n}' for n in range(12)]
    path = written(tmp_path / "rows.csv", "\n".join(["user_prompt;n", *rows]))
    found = values(path)
    assert [row["n"] for row in found] == [str(n) for n in range(12)]
    assert {len(row["user_prompt"]) for row in found} == {54_002, 54_003}


def test_d28_another_separator_is_a_setting(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", "a^b\n1,5^2\n")
    assert values(path, delimiter="^") == [{"a": "1,5", "b": "2"}]
    with pytest.raises(InputError, match=r"row 0 .*\(3, not 2; a comma between them\).*delimiter"):
        values(written(path, "a,b\n1,2,3\n"))


def _parquet(path: Path) -> None:
    table = pa.table({"text": ["one"], "other": ["two"]}).rename_columns(["text", "text"])
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "text,text\nfirst,second\n"),
        ("rows.csv", "id;text; text\n1;first;second\n"),
        ("rows.tsv", "text\ttext\nfirst\tsecond\n"),
        ("rows.jsonl", '{"text": "first", "text": "second"}\n'),
        ("rows.json", '[{"text": "first", "text": "second"}]'),
        ("rows.parquet", _parquet),
    ],
)
def test_d28_two_columns_of_one_name_are_refused(
    tmp_path: Path, name: str, content: str | Callable[[Path], None]
) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        written(path, content)
    else:
        content(path)
    with pytest.raises(InputError, match=r"text.*rename one of them"):
        values(path)


TWO = [{"user_prompt": "Why?", "n": 1}, {"user_prompt": "日本語 How?", "n": 2}]
LINES = "".join(json.dumps(row) + "\n" for row in TWO)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.json", LINES),
        ("lines.json", "\n" + LINES.replace("\n", "\r\n\r\n")),
        ("concatenated.json", "".join(json.dumps(row, indent=2) for row in TWO)),
        ("wrapped.json", json.dumps({"data": TWO})),
        ("wrapped.json", json.dumps({"version": "1.1", "tags": ["a"], "rows": TWO}, indent=1)),
        ("list.jsonl", json.dumps(TWO, indent=1)),
        ("lines.ndjson", LINES),
    ],
)
def test_d28_json_of_another_shape_gives_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    assert values(written(tmp_path / name, text)) == TWO


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"train": TWO, "test": TWO}), "with the lists train, test; write one of them"),
        ('{"a": 1}\n{"a": \n', "not valid JSON"),
        ('{"a": 1}\n7\n', "item 1 is int, expected an object"),
        (json.dumps({"columns": ["a"], "data": [["x"]]}), "without a list of objects"),
        ("7", "expected a list of objects, found int"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_d28_json_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        values(written(tmp_path / "rows.json", text))


def _zstd(data: bytes) -> bytes:
    codec, half = pa.Codec("zstd"), len(data) // 2
    parts = (codec.compress(part, asbytes=True) for part in (data[:half], data[half:]))
    return b"".join(parts)  # two frames: what is appended to a file, or written by several threads


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data[:30]) + gzip.compress(data[30:]),
    ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd,
}  # fmt: skip
PLAIN = {
    ".jsonl": LINES, ".json": json.dumps(TWO), ".csv": 'user_prompt;n\nWhy?;1\n"日本語 How?";2\n',
    ".tsv": "user_prompt\tn\nWhy?\t1\n日本語 How?\t2\n",
}  # fmt: skip


@pytest.mark.parametrize("packed", list(PACKED))
@pytest.mark.parametrize("ending", list(PLAIN))
def test_d28_a_compressed_file_is_read_like_the_plain_one(tmp_path: Path, ending: str, packed: str) -> None:
    path = tmp_path / f"rows{ending}{packed.upper()}"
    path.write_bytes(PACKED[packed](PLAIN[ending].encode("utf-8-sig")))
    found = [{**row, "n": int(row["n"])} for row in values(path)]
    assert found == TWO


@pytest.mark.parametrize("packed", list(PACKED))
def test_d28_a_compressed_file_that_is_torn_is_refused(tmp_path: Path, packed: str) -> None:
    lines = "".join(json.dumps({"text": str(n) * 50}) + "\n" for n in range(3000)).encode()
    path = tmp_path / f"rows.jsonl{packed}"
    path.write_bytes(PACKED[packed](lines)[:-20])
    with pytest.raises(InputError, match=rf"rows\.jsonl\{packed}: not a complete \{packed} file"):
        values(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        values(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.parquet.gz", "Parquet is compressed inside; unpack it"),
        ("rows.gz", "cannot tell the format from the ending"),
        ("rows.tar.gz", "cannot tell the format from the ending"),
        ("rows.xlsx", "cannot tell the format from the ending"),
    ],
)
def test_d28_a_file_of_another_format_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        values(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "cp1252", "koi8-r", "gb18030", "shift_jis"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.txt"])
def test_d28_another_encoding_is_refused_by_name(tmp_path: Path, name: str, encoding: str) -> None:
    text = {"cp1252": "Überfällig", "koi8-r": "Привет"}.get(encoding, "日本語")
    text = "text" if encoding.startswith("utf") else text
    (tmp_path / name).write_bytes(f'{{"text": "{text}"}}\n'.encode(encoding))
    with pytest.raises(InputError, match=r"not UTF-8.*convert it first"):
        values(tmp_path / name)
