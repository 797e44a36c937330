"""Sides of the split are for good: nothing moves, and near-duplicates never stand on two."""

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nexa_distill import dedup
from nexa_distill.deduplication.splits import split_of_cluster
from nexa_distill.orchestration.freshness import Freshness
from nexa_distill.orchestration.stages import STAGES
from nexa_distill.storage.manifests import sha256_path
from nexa_distill.text.hashing import sha256_text
from nexa_distill.text.ngrams import normalize_document
from tests.support.near_texts import Doc, deduped, kept, leaks, rejected, rows_of, sides, text
from tests.support.workspace import Workspace
from tests.sweeps import some

SPLIT = {"val": 0.3, "test": 0.3, "seed": 7}
NO_SHRINKING = (Phase.explicit, Phase.generate)  # each example is several runs of the stage
DOCS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), unique=True, min_size=1, max_size=14)
FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=NO_SHRINKING)


def side_of(family: int, variant: int) -> str:
    """Where a document that is a cluster of its own stands."""
    from nexa_distill.settings.pipeline import Split

    split = Split(val=0.3, test=0.3, seed=7)
    return split_of_cluster(sha256_text(normalize_document(text(family, variant))), split)


def apart() -> tuple[int, int, int]:
    """A family and two of its variants that stand on different sides."""
    for family in range(20, 40):
        if side_of(family, 1) != side_of(family, 3):
            return family, 1, 3
    raise AssertionError("no such family")


def clusters(made: Workspace) -> dict[str, str]:
    rows = pq.read_table(made.path("clusters")).to_pylist()
    return {row["document_id"]: row["cluster_id"] for row in rows}


@FEW
@given(DOCS, st.randoms(use_true_random=False))
def test_f34_from_scratch_clusters_and_sides_do_not_depend_on_the_order(docs: list[Doc], draw: random.Random) -> None:
    shuffled = draw.sample(docs, len(docs))
    with tempfile.TemporaryDirectory() as name:
        first, _ = deduped(Path(name) / "a", rows_of(docs, 3), split=SPLIT)
        second, other = deduped(Path(name) / "b", rows_of(shuffled, 3), split=SPLIT)
        assert clusters(first) == clusters(second)
        assert not leaks(other.values())
        assert len(clusters(first)) == len(docs)


@FEW
@given(DOCS, DOCS, DOCS, st.randoms(use_true_random=False))
def test_f34_rows_that_are_added_or_taken_away_move_no_row(
    old: list[Doc], new: list[Doc], gone: list[Doc], draw: random.Random
) -> None:
    everything = list(dict.fromkeys([*old, *new]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, before = deduped(folder, rows_of(old, 3), split=SPLIT)
        _, after = deduped(folder, rows_of(draw.sample(everything, len(everything)), 3))
        assert {key: sides(after)[key] for key in before} == sides(before)
        assert not leaks(after.values())
        left = [doc for doc in everything if doc not in gone]
        if left:
            _, fewer = deduped(folder, rows_of(left, 3))
            assert not leaks(fewer.values())
            _, again = deduped(folder, rows_of(everything, 3))
            assert not leaks(again.values())
            for rows in (fewer, again):
                both = rows.keys() & after.keys()
                assert {k: sides(rows)[k] for k in both} == {k: sides(after)[k] for k in both}


def test_f34_a_new_row_between_two_sides_is_rejected_with_its_own_reason(tmp_path: Path) -> None:
    family, a, b = apart()
    _, before = deduped(tmp_path, rows_of([(family, a), (family, b)]), split=SPLIT)
    made, after = deduped(tmp_path, rows_of([(family, 0), (family, a), (family, b)]))
    assert sides(after) == sides(before)
    assert len({side for _, side in sides(after).values()}) == 2
    row = rejected(made)[f"f{family}v0"]
    assert row["rejection_reason"] == "joins_splits"
    assert row["detail"].startswith("near-duplicates are in ")
    assert {"train", "val", "test"} >= set(row["detail"].split(" in ")[1].split(" and "))


def test_f34_a_new_row_between_two_clusters_of_one_side_takes_nothing_away(tmp_path: Path) -> None:
    family = next(f for f in range(50, 90) if side_of(f, 1) == side_of(f, 3))
    _, before = deduped(tmp_path, rows_of([(family, 1), (family, 3)]), split=SPLIT)
    made, after = deduped(tmp_path, rows_of([(family, 0), (family, 1), (family, 3)]))
    assert sides(after) == sides(before)
    assert len({cluster for cluster, _ in sides(after).values()}) == 2
    assert rejected(made)[f"f{family}v0"]["rejection_reason"] == "near_duplicate"


def test_f34_a_row_that_comes_back_where_its_near_duplicate_stands_is_rejected(tmp_path: Path) -> None:
    family = next(f for f in range(90, 130) if side_of(f, 0) != side_of(f, 1))
    deduped(tmp_path, rows_of([(family, 0), (1, 0)]), split=SPLIT)
    _, alone = deduped(tmp_path, rows_of([(family, 1), (1, 0)]))
    made, after = deduped(tmp_path, rows_of([(family, 0), (family, 1), (1, 0)]))
    assert sides(after) == sides(alone)
    assert rejected(made)[f"f{family}v0"]["rejection_reason"] == "joins_splits"


def test_the_row_that_was_kept_before_stays_when_a_near_duplicate_comes_before_it(tmp_path: Path) -> None:
    _, before = deduped(tmp_path, rows_of([(1, 2)]), split=SPLIT)
    made, after = deduped(tmp_path, rows_of([(1, 0), (1, 2)]))
    assert after.keys() == before.keys()
    assert rejected(made)["f1v0"]["matched"] == next(iter(before))


def test_another_split_decides_everything_anew(tmp_path: Path) -> None:
    docs = [(family, 0) for family in range(30)]
    deduped(tmp_path / "a", rows_of(docs), split=SPLIT)
    made, moved = deduped(tmp_path / "a", rows_of(docs), split={"seed": 8})
    _, fresh = deduped(tmp_path / "b", rows_of(docs), split={**SPLIT, "seed": 8})
    assert sides(moved) == sides(fresh)
    assert set(clusters(made).values()) == {cluster for cluster, _ in sides(fresh).values()}


def test_a_smaller_jaccard_keeps_the_held_out_row_of_two_that_now_meet(tmp_path: Path) -> None:
    order = ("train", "val", "test")
    family, a, b = apart()
    first, before = deduped(tmp_path, rows_of([(family, a), (family, b)]), split=SPLIT)
    made, after = deduped(tmp_path, rows_of([(family, a), (family, b)]), dedup={"jaccard": 0.7})
    (row,) = after.values()
    assert row["split"] == max((side for _, side in sides(before).values()), key=order.index)
    assert [r["rejection_reason"] for r in rejected(made).values()] == ["joins_splits"]
    assert clusters(first) == clusters(made)


def test_a_deleted_output_comes_back_byte_by_byte_from_the_memory(tmp_path: Path) -> None:
    family, a, b = apart()
    deduped(tmp_path, rows_of([(family, a), (family, b), (2, 0)]), split=SPLIT)
    made, _ = deduped(tmp_path, rows_of([(family, 0), (family, a), (family, b), (2, 0), (2, 1)]))
    files = [made.path(key) for key in ("raw_dataset", "rejected_inputs", "clusters")]
    sealed = [sha256_path(file) for file in files]
    files[0].unlink()
    files[1].unlink()
    dedup.run(made.load())
    assert [sha256_path(file) for file in files] == sealed


def test_a_finished_stage_changes_no_byte_and_is_fresh(tmp_path: Path) -> None:
    made, _ = deduped(tmp_path, rows_of([(1, 0), (1, 1), (2, 0)]), split=SPLIT)
    folders = [made.path("raw_dataset").parent, made.path("reports"), made.path("manifests")]
    state = [sha256_path(folder) for folder in folders]
    times = {p: p.stat().st_mtime_ns for f in folders for p in f.rglob("*") if p.is_file()}
    dedup.run(made.load())
    assert [sha256_path(folder) for folder in folders] == state
    assert times == {p: p.stat().st_mtime_ns for p in times}
    stage = next(stage for stage in STAGES if stage.name == "dedup")
    assert Freshness(made.load()).stale_reason(stage) is None
    made.change(dedup={"jaccard": 0.9})
    assert "settings changed" in str(Freshness(made.load()).stale_reason(stage))


def test_f34_a_kill_at_any_step_moves_no_row(tmp_path: Path) -> None:
    family, a, b = apart()
    old = rows_of([(family, a), (family, b), (2, 2)])
    new = rows_of([(2, 0), (family, 0), (3, 0), (family, a), (family, b), (2, 2)])
    _, before = deduped(tmp_path / "whole", old, split=SPLIT)
    _, wanted = deduped(tmp_path / "whole", new)
    assert {key: sides(wanted)[key] for key in before} == sides(before)
    hits = (1, 3, 5, 7, 9, 11, 13, 22, 28)
    for hit in some("kills of the split", hits, 3, why="each is at another file that is written"):
        folder = tmp_path / str(hit)
        made, _ = deduped(folder, old, split=SPLIT)
        shutil.copy(tmp_path / "whole/raw.jsonl", folder / "raw.jsonl")
        made.run("nexa_distill.canonicalize")
        environment = {**os.environ, "NEXA_FAILPOINT": f"replace:{hit}"}
        made.run("nexa_distill.dedup", code=-9, env=environment)
        dedup.run(made.load())
        assert sides(kept(made)) == sides(wanted), hit
        assert not list(made.path("raw_dataset").parent.glob(".*"))


def test_another_output_has_a_memory_of_its_own(tmp_path: Path) -> None:
    made, _ = deduped(tmp_path, rows_of([(1, 0)]), split=SPLIT)
    before = sha256_path(made.path("clusters"))
    dedup.run(made.load(), dst=tmp_path / "other.parquet")
    assert (tmp_path / "other.parquet.clusters.parquet").is_file()
    assert sha256_path(made.path("clusters")) == before


def test_ids_of_documents_from_elsewhere_need_not_be_hashes(tmp_path: Path) -> None:
    made, _ = deduped(tmp_path, rows_of([(1, 0), (2, 0)]), split=SPLIT)
    table = pq.read_table(made.path("canonical"))
    names: list[Any] = ["one", "two"]
    foreign = table.set_column(table.column_names.index("document_id"), "document_id", [names])
    pq.write_table(foreign, tmp_path / "foreign.parquet")
    dedup.run(made.load(), src=tmp_path / "foreign.parquet", dst=tmp_path / "o.parquet")
    found = pq.read_table(tmp_path / "o.parquet")["cluster_id"].to_pylist()
    assert found == [sha256_text("one"), sha256_text("two")]


@pytest.mark.parametrize("damage", [b"PAR1 torn", b""])
def test_a_damaged_memory_is_refused_with_the_way_out(tmp_path: Path, damage: bytes) -> None:
    made, _ = deduped(tmp_path, rows_of([(1, 0)]), split=SPLIT)
    made.path("clusters").write_bytes(damage)
    made.change(dedup={"shingle_words": 4})
    done = made.run("nexa_distill.dedup", code=65)
    assert "clusters_v1.parquet" in done.stderr
    assert "assign all splits again" in done.stderr
