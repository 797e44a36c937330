"""Decontamination: what training shares with held-out data goes, with evidence; nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nexa_distill.deduplication import contamination, contamination_report
from nexa_distill.deduplication.contamination import find_contamination
from nexa_distill.deduplication.minhash_store import SketchStore, sketch_batch
from nexa_distill.errors import InputError, InputMissing
from tests.deduplication.test_splits import side_of
from tests.support.near_texts import deduped, rejected, text
from tests.support.workspace import Workspace

SPLIT = {"val": 0.3, "test": 0.3, "seed": 7}
TRAIN, TEST = ([n for n in range(200, 400) if side_of(n, 0) == side] for side in ("train", "test"))
RUN = "the quick onyx goblin jumps over a lazy dwarf while nine wise wizards watch"
LOOK: dict[str, Any] = {"split": SPLIT, "dedup": {"contamination_words": 13}}


def with_run(family: int, run: str = RUN) -> str:
    """A text on the side of the family's document: the run changes its hash, so look for one."""
    return f"{text(family, words=60)} {run} {text(family + 1000, words=60)}"


def doc(side: str, start: int, run: str = RUN) -> dict[str, str]:
    """A document that holds the run and stands on this side."""
    from nexa_distill.deduplication.splits import split_of_cluster
    from nexa_distill.settings.pipeline import Split
    from nexa_distill.text.hashing import sha256_text
    from nexa_distill.text.ngrams import normalize_document

    for family in range(start, start + 200):
        made = with_run(family, run)
        if split_of_cluster(sha256_text(normalize_document(made)), Split(**SPLIT)) == side:  # type: ignore[arg-type]
            return {"id": f"{side}{family}", "text": made}
    raise AssertionError(side)


def report(made: Workspace) -> dict[str, Any]:
    path = made.path("reports") / "dedup/contamination.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("order", [1, -1])
def test_the_training_row_goes_whatever_the_order_and_the_span_is_shown(tmp_path: Path, order: int) -> None:
    train, test = doc("train", 5000), doc("test", 6000)
    other = {"id": "other", "text": text(7)}
    made, kept = deduped(tmp_path, [train, other, test][::order], **LOOK)
    assert {row["task_id"] for row in kept.values()} == {f"{test['id']}:hypothesis",
                                                        "other:hypothesis"}  # fmt: skip
    row = rejected(made)[train["id"]]
    assert (row["rejection_reason"], row["detail"]) == ("contaminated", RUN)
    assert kept[row["matched"]]["task_id"] == f"{test['id']}:hypothesis"
    (evidence,) = report(made)["rows"]
    assert (evidence["span"], evidence["words"]) == (RUN, 14)
    assert evidence["matched"]["task_id"] == f"{test['id']}:hypothesis"
    page = (made.path("reports") / "dedup/contamination.md").read_text()
    assert RUN in page
    assert train["id"] in page


def test_the_report_lists_the_first_rows_and_the_table_has_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination_report, "LISTED", 2)
    monkeypatch.setattr(contamination_report, "SHOWN", 1)
    rows = [doc("train", 5000 + 300 * n) for n in range(4)] + [doc("test", 9000)]
    made, _ = deduped(tmp_path, rows, **LOOK)
    assert (len(report(made)["rows"]), report(made)["contaminated"]) == (2, 4)
    assert {row["detail"] for row in rejected(made).values()} == {RUN}
    assert "first 1 of 4" in (made.path("reports") / "dedup/contamination.md").read_text()


def test_twelve_words_are_no_match_and_val_is_held_out(tmp_path: Path) -> None:
    short = " ".join(RUN.split()[:12])
    rows = [doc("train", 5000, short), doc("test", 6000, short)]
    assert len(deduped(tmp_path / "a", rows, **LOOK)[1]) == 2
    rows = [doc("train", 5000), doc("val", 6000), doc("test", 7000)]
    made, kept = deduped(tmp_path / "b", rows, **LOOK)
    assert {row["split"] for row in kept.values()} == {"val", "test"}
    assert len(rejected(made)) == 1


def test_boilerplate_is_no_match_and_is_counted(tmp_path: Path) -> None:
    rows = [doc("train", 5000 + 300 * n) for n in range(8)]
    rows += [doc("test", 9000 + 300 * n) for n in range(3)]
    made, kept = deduped(tmp_path, rows, **LOOK)
    assert len(kept) == 11
    assert report(made)["contaminated"] == 0
    assert report(made)["boilerplate_runs"] == 2
    made, kept = deduped(tmp_path, rows, dedup={"contamination_common": 11})
    assert len(kept) == 3
    assert report(made)["contaminated"] == 8


def test_the_template_of_the_prompts_is_no_match(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": text(n)} for n in range(300, 308)]
    _, kept = deduped(tmp_path, rows, **LOOK)
    assert len(kept) == 8
    assert len({row["split"] for row in kept.values()}) > 1


def test_eval_files_count_with_every_text_in_them(tmp_path: Path) -> None:
    tmp_path.joinpath("bench.jsonl").write_text(
        json.dumps({"q": "nothing", "n": 3}) + "\n"
        + json.dumps({"messages": [{"role": "user", "content": f"Look: {RUN.upper()}!"}]}) + "\n"
        + json.dumps({"answer": text(11), "note": "\ud800"}) + "\n"
    )  # fmt: skip
    rows = [doc("train", 5000), doc("test", 5000), {"id": "whole", "text": text(11)}]
    files = [str(tmp_path / "bench.jsonl")]
    made, kept = deduped(
        tmp_path / "w", rows, split={"val": 0.0, "test": 0.0, "seed": 7},
        dedup={"contamination_words": 13, "eval_files": files, "jaccard": None},
    )  # fmt: skip
    assert not kept
    assert {row["matched"] for row in rejected(made).values()} == {
        f"{files[0]}:1:messages", f"{files[0]}:2:answer",
    }  # fmt: skip
    assert report(made)["rows"][0]["matched"] == {
        "eval_file": files[0], "row": 1, "column": "messages",
    }  # fmt: skip


def test_held_out_rows_may_match_an_eval_file(tmp_path: Path) -> None:
    (tmp_path / "bench.txt").write_text(RUN)
    test = doc("test", 5000)
    look = {**LOOK["dedup"], "eval_files": [str(tmp_path / "bench.txt")]}
    _, kept = deduped(tmp_path / "w", [test], split=SPLIT, dedup=look)
    assert len(kept) == 1


def test_an_eval_file_that_is_gone_or_unreadable_is_refused(tmp_path: Path) -> None:
    look = {"dedup": {"contamination_words": 13, "eval_files": [str(tmp_path / "no.jsonl")]}}
    with pytest.raises(InputMissing, match=r"no\.jsonl"):
        deduped(tmp_path / "w", [{"text": "a"}], **look)
    (tmp_path / "no.jsonl").write_text("{")
    with pytest.raises(InputError, match="line 1"):
        deduped(tmp_path / "w", [{"text": "a"}], **look)


def test_a_changed_eval_file_makes_the_stage_run_again(tmp_path: Path) -> None:
    (tmp_path / "bench.txt").write_text("something else")
    rows = [doc("train", 5000)]
    look = {**LOOK["dedup"], "eval_files": [str(tmp_path / "bench.txt")]}
    assert len(deduped(tmp_path / "w", rows, split=SPLIT, dedup=look)[1]) == 1
    (tmp_path / "bench.txt").write_text(RUN)
    assert len(deduped(tmp_path / "w", rows)[1]) == 0


def test_what_was_not_looked_for_is_null(tmp_path: Path) -> None:
    made, _ = deduped(tmp_path, [doc("train", 5000), doc("test", 6000)], split=SPLIT)
    assert report(made)["contaminated"] is None
    assert report(made)["boilerplate_runs"] is None


def test_many_parts_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [with_run(n) for n in range(5)] + [text(n) for n in range(40)] + [RUN, text(3)[:200]]
    store = SketchStore(tmp_path / "s", None)
    store.add(sketch_batch(pa.array(texts), None))
    store.close()
    held = np.array([0, 10, 46])
    training = np.array([n for n in range(46) if n not in held])
    one = find_contamination(store, training, held, None, 13, 10)
    monkeypatch.setattr(contamination, "BUDGET", 40)
    many = find_contamination(store, training, held, None, 13, 10)
    assert one.texts.tolist() == [1, 2, 3, 4, 5, 8, 45]
    for name in ("texts", "starts", "lengths"):
        assert getattr(one, name).tolist() == getattr(many, name).tolist()


def test_a_short_text_counts_as_a_whole(tmp_path: Path) -> None:
    store = SketchStore(tmp_path / "s", None)
    store.add(sketch_batch(pa.array(["Who is it?", "who is IT", "who is it then"]), None))
    store.close()
    found = find_contamination(store, np.array([1, 2]), np.array([0]), None, 13, 10)
    assert (found.texts.tolist(), found.lengths.tolist()) == ([1], [3])
