"""With `split.column` the raw data names the split of each row, and near-duplicates still are on one side."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_distill import canonicalize, dedup
from nexa_distill.deduplication.warnings import require_both_sides
from nexa_distill.errors import InputError
from tests.support.near_texts import deduped, kept, leaks, rejected, sides, text
from tests.support.workspace import Workspace

COLUMN = {"column": "part"}
Place = tuple[int, int, str]  # family, variant, split


def rows(*places: Place) -> list[dict[str, Any]]:
    return [{"id": f"f{f}v{v}{part}", "text": text(f, v), "part": part} for f, v, part in places]


def splits(workspace: Workspace) -> dict[str, str]:
    return {row["task_id"].split(":")[0]: row["split"] for row in kept(workspace).values()}


def test_each_row_has_the_split_that_its_column_names(tmp_path: Path) -> None:
    workspace, _ = deduped(tmp_path, rows((1, 0, "test"), (2, 0, "train"), (3, 0, "val")), split=COLUMN)
    assert splits(workspace) == {"f1v0test": "test", "f2v0train": "train", "f3v0val": "val"}
    require_both_sides(workspace.load())


# Near-duplicates are neighbours: of three in a row the first and the last only share the second.
@pytest.mark.parametrize("held_out", ["val", "test"])
@pytest.mark.parametrize("places", [[0, 1], [1, 0], [0, 1, 2]])
def test_of_near_duplicates_on_two_sides_only_the_held_out_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], held_out: str, places: list[int]
) -> None:
    train = [(1, variant, "train") for variant in places[:-1]]
    workspace, after = deduped(tmp_path, rows(*train, (1, places[-1], held_out), (2, 0, "train")), split=COLUMN)
    assert splits(workspace) == {f"f1v{places[-1]}{held_out}": held_out, "f2v0train": "train"}
    assert not leaks(after.values())
    for _, variant, _ in train:
        row = rejected(workspace)[f"f1v{variant}train"]
        assert row["rejection_reason"] == "joins_splits"
        assert row["detail"] == f"the raw data names train, and near-duplicates {held_out}"
        assert row["raw_split"] == "train"
    assert (
        f"{len(train)} of {len(train) + 2} rows are near-duplicates of rows that column part" in capsys.readouterr().out
    )


def test_of_equal_rows_the_held_out_one_stays(tmp_path: Path) -> None:
    workspace, _ = deduped(tmp_path, rows((1, 0, "train"), (1, 0, "test"), (2, 0, "train")), split=COLUMN)
    assert splits(workspace) == {"f1v0test": "test", "f2v0train": "train"}
    assert rejected(workspace)["f1v0train"]["rejection_reason"] == "duplicate"


def test_two_questions_about_one_document_are_on_one_side(tmp_path: Path) -> None:
    asked = [
        {"id": f"q{n}", "user_prompt": f"Question {n}?", "context": text(1), "part": part}
        for n, part in enumerate(("train", "test", "train"))
    ]
    other = {"id": "q3", "user_prompt": "Another?", "context": text(2), "part": "train"}
    workspace, _ = deduped(tmp_path, [*asked, other], split=COLUMN)
    assert splits(workspace) == {"q1": "test", "q3": "train"}


def test_a_new_held_out_row_takes_its_near_duplicate_out_of_training_and_moves_no_other(tmp_path: Path) -> None:
    old = rows((1, 0, "train"), (2, 0, "train"), (3, 0, "test"))
    _, before = deduped(tmp_path, old, split=COLUMN)
    workspace, after = deduped(tmp_path, [*old, *rows((1, 1, "test"))])
    assert splits(workspace) == {"f1v1test": "test", "f2v0train": "train", "f3v0test": "test"}
    assert {key: after[key] for key in before.keys() & after.keys()}.items() <= before.items()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"part": "dev"}, "raw.jsonl, row 1 .*column part is 'dev', expected train, val or test"),
        ({"part": None}, "column part is None"),
        ({"parts": "test"}, "column part is missing.*parts"),
        ({}, "column part is missing, expected"),
    ],
)
def test_a_row_without_a_split_is_refused_by_name(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        deduped(tmp_path, [*rows((1, 0, "train")), {"id": "x", "text": text(2), **row}], split=COLUMN)


def test_a_misspelt_column_is_not_taken_for_an_absent_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 0 .*column part is missing \(did you mean \"parts\"\?\)"):
        deduped(tmp_path, [{"id": "x", "text": text(2), "parts": "test"}], split=COLUMN)


def test_a_split_from_the_second_row_on_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 1 .*column part is 'test', expected train, val or test in every row"):
        deduped(tmp_path, [{"id": "x", "text": text(2)}, *rows((1, 0, "test"))], split=COLUMN)


def test_raw_data_without_the_column_is_split_by_its_shares_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [{"id": f"f{family}", "text": text(family)} for family in range(20)]
    _, with_setting = deduped(tmp_path / "a", plain, split=COLUMN)
    assert "no column part (split.column): the split is a hash" in capsys.readouterr().out
    _, without = deduped(tmp_path / "b", plain)
    assert sides(with_setting) == sides(without)


def test_a_table_that_is_handed_in_with_some_splits_is_refused(tmp_path: Path) -> None:
    workspace, _ = deduped(tmp_path, rows((1, 0, "train"), (2, 0, "test")), split=COLUMN)
    table = pq.read_table(workspace.path("canonical"))
    place = table.column_names.index("raw_split")
    pq.write_table(table.set_column(place, table.schema.field(place), [["train", None]]), tmp_path / "some.parquet")
    with pytest.raises(InputError, match=r"1 of 2 rows have no raw_split .*nexa_distill\.canonicalize"):
        dedup.run(workspace.load(), tmp_path / "some.parquet", tmp_path / "out.parquet")


def test_a_split_without_any_row_is_named_before_anything_is_paid(tmp_path: Path) -> None:
    workspace, _ = deduped(tmp_path, rows((1, 0, "train"), (2, 0, "train")), split=COLUMN)
    with pytest.raises(InputError, match="column part of the raw data puts no row into test"):
        require_both_sides(workspace.load())


def test_without_the_setting_the_column_decides_nothing_and_old_settings_hold(tmp_path: Path) -> None:
    workspace, after = deduped(tmp_path, rows(*((family, 0, "test") for family in range(20))))
    assert {row["split"] for row in after.values()} > {"train"}
    assert set(pq.read_table(workspace.path("canonical"))["raw_split"].to_pylist()) == {None}
    assert "split_column" not in canonicalize.settings(workspace.load())
    stored = json.loads(pq.read_schema(workspace.path("clusters")).metadata[b"decided_with.split"])
    assert stored == {"val": 0.1, "test": 0.2, "seed": 7}  # as before the setting existed: nothing is assigned again
