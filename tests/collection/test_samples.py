"""`collection.samples`: several answers per prompt, of which the gates keep the best one."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nexa_distill import filter_pairs, regenerate_bad, sample_gate
from tests.support.workspace import Workspace, workspace
from tests.teacher.faults import again_is_free, answers, ask, collect, prompts, reasons
from tests.teacher.ledger_teacher import ledger_teacher

THREE = {"samples": 3, "concurrency": 1}  # one after the other: a fault strikes the first attempts


def table(made: Workspace, key: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(made.path(key)).to_pylist()
    return rows


def gate(made: Workspace) -> dict[str, int]:
    """Sample -> the attempt that is kept."""
    filter_pairs.run(made.load())
    sample_gate.run(made.load())
    return {row["sample_id"]: row["attempt"] for row in table(made, "filtered_dataset")}


def test_each_prompt_is_asked_so_often_and_each_answer_is_an_attempt(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"samples": 3})
        ask(made, prompts(8))
        assert sorted(teacher.billed().values()) == [3] * 8
        again_is_free(made, teacher)
        attempts = [(row["sample_id"], row["attempt"]) for row in answers(made)]
        assert attempts == [(f"s{n:04}", attempt) for n in range(8) for attempt in range(3)]
        assert len({row["request_key"] for row in answers(made)}) == 24
        collect(made, "--samples", "4")
        assert sorted(teacher.billed().values()) == [4] * 8, "only the fourth is new"
        collect(made, "--samples", "2")
        assert sum(teacher.billed().values()) == 32
    assert len(answers(made)) == 16


def test_the_gates_keep_the_first_answer_that_passes(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="html", times=2, share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection=THREE)
        ask(made, prompts(12))
    bad = {row["sample_id"] for row in answers(made) if row["answer_flag"]}
    assert 0 < len(bad) < 12
    assert gate(made) == {f"s{n:04}": 2 if f"s{n:04}" in bad else 0 for n in range(12)}
    against = defaultdict(list)
    for row in table(made, "rejections"):
        against[row["sample_id"]].append(row["rejection_reason"])
    for sample, found in against.items():
        reason = "malformed_response" if sample in bad else "better_attempt_kept"
        assert found == [reason] * 2
    regenerate_bad.run(made.load())  # at an address where nobody answers any more
    assert table(made, "regen_dataset") == [], "each sample has an answer"


def test_only_a_sample_of_which_no_answer_was_kept_is_repaired_by_the_attempt_after_them(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault=["html"], times=3, share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection=THREE)
        ask(made, prompts(12))
        without = {f"s{n:04}" for n in range(12)} - gate(made).keys()
        assert 0 < len(without) < 12
        regenerate_bad.run(made.load())
        assert sum(teacher.billed().values()) == 36 + len(without)
        again = table(made, "regen_dataset")
        assert [(row["sample_id"], row["attempt"]) for row in again] == [(sample, 3) for sample in sorted(without)]
        kept = gate(made)
        regenerate_bad.run(made.load())
        assert sum(teacher.billed().values()) == 36 + len(without)
        assert table(made, "regen_dataset") == again
        assert gate(made) == kept
    mended = {row["sample_id"] for row in again if row["answer_flag"] is None}
    assert mended
    assert {sample for sample, attempt in kept.items() if attempt == 3} == mended
    assert without - kept.keys() == without - mended


def test_a_sample_whose_first_request_was_refused_is_repaired_too(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault=["status:400", "html"], times=3) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection=THREE)
        ask(made, prompts(12))
        first = {row["sample_id"] for row in answers(made) if row["attempt"] == 0}
        assert 0 < len(first) < 12
        assert len(answers(made)) + len(table(made, "unanswered")) == 36
        assert set(reasons(made).values()) == {"request_refused"}
        assert gate(made) == {}
        regenerate_bad.run(made.load())
        asked = [*table(made, "regen_dataset"), *_unanswered_repairs(made)]
    assert {(row["sample_id"], row["attempt"]) for row in asked} == {(f"s{n:04}", 3) for n in range(12)}


def _unanswered_repairs(made: Workspace) -> list[dict[str, Any]]:
    path = made.path("regen_dataset")
    return pq.read_table(path.with_name(f"{path.stem}.unanswered.parquet")).to_pylist()  # type: ignore[no-any-return]


def test_f27_two_ids_of_the_same_content_share_their_answers_one_by_one(tmp_path: Path) -> None:
    rows = prompts(4)
    rows[3] |= {"user_prompt": rows[0]["user_prompt"]}
    with ledger_teacher(tmp_path, fault="html", delay=0.05) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"samples": 2})
        ask(made, rows)
        assert sorted(teacher.billed().values()) == [2, 2, 2]
        again_is_free(made, teacher)
    found: dict[str, list[Any]] = defaultdict(list)
    for row in answers(made):
        found[row["sample_id"]].append((row["attempt"], row["teacher_output"], row["request_key"]))
    assert found["s0000"] == found["s0003"]
    assert len({text for _, text, _ in found["s0000"]}) == 2, "one was malformed, and one was not"
