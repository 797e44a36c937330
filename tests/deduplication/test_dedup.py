"""Duplicates and splits: rows conserved, no document on two sides, no row ever moves."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_distill import canonicalize, dedup
from nexa_distill.contracts import CANONICAL
from nexa_distill.deduplication.splits import split_of_cluster
from nexa_distill.deduplication.warnings import require_both_sides
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.settings.pipeline import Split
from tests.support.workspace import Workspace, workspace

SPLIT = Split(val=0.1, test=0.2, seed=7)


def inputs(folder: Path, rows: list[dict[str, Any]]) -> tuple[Workspace, list[dict[str, Any]]]:
    made = workspace(folder, input={"path": str(folder / "raw.jsonl")})
    (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    canonicalize.run(made.load())
    dedup.run(made.load())
    kept: list[dict[str, Any]] = pq.read_table(made.path("raw_dataset")).to_pylist()
    return made, kept


def test_f27_the_same_content_under_two_ids_is_kept_once(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"Text {n % 3}."} for n in range(5)]
    made, kept = inputs(tmp_path, rows)
    rejected = pq.read_table(made.path("rejected_inputs")).to_pylist()
    assert (len(kept), len(rejected)) == (6, 4)
    assert {row["rejection_reason"] for row in rejected} == {"duplicate"}
    assert {row["task_id"].split(":")[0] for row in kept} == {"0", "1", "2"}


def test_all_chunks_and_task_types_of_a_document_share_a_split(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": " ".join(f"w{n}-{k}" for k in range(900))} for n in range(12)]
    _, kept = inputs(tmp_path, rows)
    sides: dict[str, set[str]] = {}
    for row in kept:
        sides.setdefault(row["task_id"].split(":")[0], set()).add(row["split"])
    assert len(kept) == 12 * 3 * 2
    assert all(len(side) == 1 for side in sides.values())
    assert len({row["split"] for row in kept}) > 1


def test_f34_no_row_moves_when_rows_are_added_or_shuffled(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"Text {n}."} for n in range(40)]
    _, few = inputs(tmp_path / "few", rows[:20])
    _, many = inputs(tmp_path / "many", rows[::-1])
    sides = {row["sample_id"]: row["split"] for row in many}
    assert all(sides[row["sample_id"]] == row["split"] for row in few)


@given(st.text(min_size=1), st.integers())
def test_split_is_a_function_of_the_cluster_and_the_seed(cluster: str, seed: int) -> None:
    split = Split(val=0.1, test=0.2, seed=seed)
    assert split_of_cluster(cluster, split) == split_of_cluster(cluster, split) in {"train", "val", "test"}


def test_shares_are_as_asked() -> None:
    found = [split_of_cluster(f"cluster {n}", SPLIT) for n in range(20_000)]
    assert found.count("test") / 20_000 == pytest.approx(0.2, abs=0.01)
    assert found.count("val") / 20_000 == pytest.approx(0.1, abs=0.01)


def test_input_without_a_held_out_document_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    made, kept = inputs(tmp_path, [{"text": "Eins."}])
    side = kept[0]["split"]
    missing = "test" if side == "train" else "train"
    with pytest.raises(InputError, match=f"no document falls into .*{missing}"):
        require_both_sides(made.load())


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    made, _ = inputs(tmp_path, [{"text": "Eins."}])
    pq.write_table(CANONICAL.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="holds no rows"):
        dedup.run(made.load(), src=tmp_path / "empty.parquet", dst=tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_f34_an_unsealed_or_edited_input_is_refused(tmp_path: Path) -> None:
    made, _ = inputs(tmp_path, [{"text": "Eins."}])
    with made.path("canonical").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputMissing, match=r"nexa_distill\.canonicalize"):
        dedup.run(made.load())
