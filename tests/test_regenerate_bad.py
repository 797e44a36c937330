"""A second attempt for rejected answers: asked once, and gated like the first."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nexa_distill import filter_pairs, regenerate_bad, sample_gate
from tests.faults import prompts, put
from tests.ledger_teacher import ledger_teacher
from tests.workspace import Workspace, workspace

GEN = "scripts/python/data_processing/run_full_data_gen.py"
REGENERATE = "scripts/python/data_processing/run_regeneration.py"


def rows(made: Workspace, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(made.path(key)).to_pylist()
    return found


def filtered(made: Workspace) -> None:
    filter_pairs.run(made.load())
    sample_gate.run(made.load())


def test_f33_what_was_rejected_is_asked_again_once_and_the_good_answer_is_kept(
    tmp_path: Path,
) -> None:
    with ledger_teacher(tmp_path, fault="html", share=0.4, always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url, input={"limit": 12})
        made.run(GEN)
        filtered(made)
        rejected = {row["sample_id"] for row in rows(made, "rejections")}
        assert 0 < len(rejected) < 24
        made.run(REGENERATE)
        billed = sum(teacher.billed().values())
        assert billed == 24 + len(rejected)
        made.run(REGENERATE)
        assert sum(teacher.billed().values()) == billed
    again = rows(made, "regen_dataset")
    assert {row["sample_id"] for row in again} == rejected
    assert {row["attempt"] for row in again} == {1}
    kept = {row["sample_id"]: row["attempt"] for row in rows(made, "filtered_dataset")}
    assert {sample for sample, attempt in kept.items() if attempt == 1} <= rejected
    assert 1 in kept.values()


def test_repairs_of_other_answers_are_left_out(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="html", share=0.4, always=True) as teacher:
        made = workspace(tmp_path, teacher.base_url, input={"limit": 12})
        made.run(GEN)
        filtered(made)
        regenerate_bad.run(made.load())
        made.change(input={"limit": 11})
        made.run(GEN)
        filtered(made)
    assert made.path("regen_dataset").exists()
    everything = rows(made, "filtered_dataset") + rows(made, "rejections")
    assert len(everything) == 22
    assert {row["attempt"] for row in everything} == {0}


def test_a_persons_decisions_choose_what_is_asked_again(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, input={"limit": 3})
        made.run(GEN)
        first = rows(made, "collected_dataset")[0]["sample_id"]
        decisions = [
            {"sample_id": first, "action": "reject", "note": "names no outcome"},
            {"sample_id": "other", "action": "accept"},
        ]
        file = tmp_path / "rejected.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in decisions))
        regenerate_bad.run(made.load(), annotations=file)
    (again,) = rows(made, "regen_dataset")
    assert again["sample_id"] == first


def test_a_line_that_is_no_decision_is_named(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        made.run("nexa_distill.collect_teacher", "--src", put(made, prompts(2)))
        (tmp_path / "rejected.jsonl").write_text('{"sample_id": "a"}\n')
        done = made.run(
            "nexa_distill.regenerate_bad", "--annotations", tmp_path / "rejected.jsonl", code=65
        )
    assert "line 1: expected {sample_id, action" in done.stderr
