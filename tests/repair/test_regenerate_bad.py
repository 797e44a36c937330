"""The repair loop: what was rejected is asked again with its reason, once, and gated again.

The ledger teacher gives bad answers to some questions, for known reasons, and says something else
when it is asked with the reason in the prompt.
"""

import json
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from nexa_distill import gates, regenerate_bad, to_sft
from nexa_distill.annotation import annotations, decisions
from nexa_distill.annotation.annotations import Annotation
from nexa_distill.contracts import DOUBT_REASONS, REASONS
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.repair import prompts as repair_prompts
from nexa_distill.repair.plan import make_plan
from nexa_distill.repair.prompts import Fault, repair_prompt
from nexa_distill.repair.report import repair_figures
from tests import warm
from tests.support.answers import GOOD
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.faults import ask, files, prompts, provide
from tests.teacher.ledger_teacher import Teacher, ledger_teacher

REGENERATE = "scripts/python/data_processing/run_regeneration.py"
SHORT, CITES = "Too short.", f"{GOOD} See [1]."
# Questions 0 and 1 are answered badly and mended by the reason; 2 never is; 3 at the second time.
SAYS = {
    "Question 0?|Say more": GOOD, "Question 0?": SHORT,
    "Question 1?|no citations": GOOD, "Question 1?": CITES,
    "Question 2?": SHORT,
    "Question 3?|Say more": CITES, "Question 3?|no citations": GOOD, "Question 3?": SHORT,
}  # fmt: skip
PRICE = {"ledger-teacher": {"prompt": 100.0, "completion": 1000.0}}  # $0.06 an answer


def rows(made: Workspace, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(made.path(key)).to_pylist()
    return found


def collected(made: Workspace, count: int = 6) -> Workspace:
    """With the answers to so many questions."""
    provide(made, prices=PRICE, regen_model="ledger-teacher")
    ask(made, prompts(count))
    return made


def kept(made: Workspace) -> dict[str, int]:
    return {row["sample_id"]: row["attempt"] for row in rows(made, "filtered_dataset")}


def billed(teacher: Teacher) -> int:
    return sum(teacher.billed().values())


def decide(made: Workspace, sample: str, attempt: int, action: str, **more: Any) -> None:
    at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 1))
    given = {"annotator": "ann", "timestamp": at} | more
    one = Annotation.model_validate({"sample_id": sample, "attempt": attempt, "action": action} | given)
    annotations.append(made.path("annotations"), one)


def bodies(made: Workspace) -> list[str]:
    """What the repairs were asked."""
    import sqlite3

    with sqlite3.connect(made.path("journal") / "regenerate.sqlite") as db:
        return [json.loads(body)["messages"][-1]["content"]
                for (body,) in db.execute("SELECT body FROM requests")]  # fmt: skip


def test_f33_one_round_repairs_what_the_reason_can_repair_and_abandons_the_rest(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        gates.run_repair_loop(made.load())
        assert billed(teacher) == 6 + 4
        before = files(made)
        gates.run_repair_loop(made.load())
        assert billed(teacher) == 10, "pressed twice, paid once"
        assert files(made) == before
    assert kept(made) == {"s0000": 1, "s0001": 1, "s0004": 0, "s0005": 0}
    lineage = {row["sample_id"]: row["repaired_reason"] for row in rows(made, "filtered_dataset")}
    assert lineage == {"s0000": "too_short", "s0001": "banned_citation", "s0004": None,
                       "s0005": None}  # fmt: skip
    report = repair_figures(made.load())
    counts = [report[n] for n in ("first_pass", "repaired", "edited", "abandoned", "unanswered")]
    assert counts == [2, 2, 0, 2, 0]
    assert sum(counts) == report["samples"] == 6
    assert report["abandoned_by_reason"] == {"too_short": 1, "banned_citation": 1}
    assert report["usd_per_repaired_sample"] == pytest.approx(4 * 0.06 / 2)
    (one,) = report["rounds"]
    assert (one["answered"], one["kept"]) == (4, 2)


def test_f33_rounds_are_bounded_and_each_tells_the_reason_of_the_one_before(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url, regeneration={"rounds": 3}))
        gates.run_repair_loop(made.load())
        assert billed(teacher) == 6 + 4 + 2 + 1
        before = files(made)
        gates.run_repair_loop(made.load())
        assert (billed(teacher), files(made)) == (13, before)
    assert kept(made) == {"s0000": 1, "s0001": 1, "s0003": 2, "s0004": 0, "s0005": 0}
    assert Counter(row["attempt"] for row in rows(made, "regen_dataset")) == {1: 4, 2: 2, 3: 1}
    assert {row["sample_id"] for row in rows(made, "rejections") if row["attempt"] == 3} == {"s0002"}


def test_f33_each_round_asks_its_own_model(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS, models=["big", "bigger"]) as teacher:
        made = workspace(tmp_path, teacher.base_url, regeneration={"rounds": 3, "models": ["big", "bigger"]})
        gates.run_repair_loop(collected(made).load())
    models = {row["attempt"]: row["model_id"] for row in rows(made, "regen_dataset")}
    assert models == {1: "big", 2: "bigger", 3: "bigger"}
    assert repair_figures(made.load())["usd_per_repaired_sample"] is None, "unpriced"


def test_f33_a_kill_in_the_middle_of_a_round_pays_at_most_what_was_on_the_wire(tmp_path: Path) -> None:
    says = {f"Question {n}?|Say more": GOOD for n in range(24)} | {"Question": SHORT}
    with ledger_teacher(tmp_path, says=says, delay=0.15) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 2})
        collected(made, 24)
        for seconds in (0.0, 0.3):
            before = billed(teacher)
            process = warm.Process(
                made.command(REGENERATE), cwd=ROOT, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            deadline = time.monotonic() + 60
            while billed(teacher) <= before and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(seconds)
            process.kill()
            process.wait()
        made.run(REGENERATE)
        assert billed(teacher) - 48 <= 2 * 2
        assert len(teacher.billed()) == 48
    assert set(kept(made).values()) == {1}
    assert len(kept(made)) == 24


def test_a_kill_between_the_repairs_and_their_seal_does_not_stop_the_gates(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        gates.run_repair_loop(made.load())
        whole = kept(made)
        (made.path("manifests") / "regenerate/manifest.json").unlink()
        gates.run_gates(made.load())
        assert set(kept(made).values()) == {0}
        gates.run_repair_loop(made.load())
        assert billed(teacher) == 10
    assert kept(made) == whole


def test_repairs_of_other_answers_are_left_out(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        gates.run_repair_loop(made.load())
        ask(made, prompts(5))
        with pytest.raises(InputMissing, match="run_filtering"):
            regenerate_bad.run(made.load())
        gates.run_gates(made.load())
        assert set(kept(made).values()) == {0}
        gates.run_repair_loop(made.load())
        assert billed(teacher) == 10, "the same repairs, from the journal"
    assert kept(made) == {"s0000": 1, "s0001": 1, "s0004": 0}


def test_no_teacher_is_asked_where_answers_come_from_a_file(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        done = made.run(REGENERATE, "--answers", "some.jsonl")
        assert billed(teacher) == 6
    assert "no request is sent" in done.stdout
    assert rows(made, "regen_dataset") == []


# People.


def test_a_person_rejects_a_kept_answer_and_their_words_are_told(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says={"names no outcome": GOOD}) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url), 3)
        gates.run_gates(made.load())
        for _ in range(2):  # pressed twice
            decide(made, "s0001", 0, "reject", note="names no outcome")
            gates.run_repair_loop(made.load())
        assert billed(teacher) == 4
    assert kept(made) == {"s0000": 0, "s0001": 1, "s0002": 0}
    (rejected,) = rows(made, "rejections")
    assert (rejected["attempt"], rejected["rejection_reason"]) == (0, "rejected_by_person")
    assert "The reviewer said: names no outcome" in bodies(made)[0]


def test_f33_regenerate_asks_once_more_beyond_the_rounds(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        gates.run_repair_loop(made.load())
        for _ in range(2):
            decide(made, "s0002", 1, "regenerate", note="try again")
            gates.run_repair_loop(made.load())
        assert billed(teacher) == 11
        decide(made, "s0002", 2, "reject")
        gates.run_repair_loop(made.load())
        assert billed(teacher) == 11
    assert [row["attempt"] for row in rows(made, "regen_dataset") if row["sample_id"] == "s0002"
            ] == [1, 2]  # fmt: skip


def test_annotators_who_disagree_are_doubt_and_an_accept_overrides_no_gate(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url, regeneration={"rounds": 0}))
        gates.run_gates(made.load())
        decide(made, "s0004", 0, "accept")
        decide(made, "s0004", 0, "reject", annotator="bob")
        decide(made, "s0002", 0, "accept")
        gates.run_repair_loop(made.load())
        assert billed(teacher) == 6
    assert set(kept(made)) == {"s0005"}
    against = {row["sample_id"]: row["rejection_reasons"] for row in rows(made, "rejections")}
    assert against["s0004"] == ["annotators_disagree"]
    assert "too_short" in against["s0002"]


def test_an_edited_answer_is_an_attempt_by_a_person_and_passes_the_same_gates(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        gates.run_gates(made.load())
        decide(made, "s0002", 0, "edit", edited_output=GOOD)
        decide(made, "s0005", 0, "edit", edited_output="Nothing.")
        gates.run_repair_loop(made.load())
        asked = billed(teacher)
        assert asked == 6 + 3 + 1, "a good edit asks nobody, a bad one is repaired"
        before = files(made)
        decide(made, "s0002", 0, "edit", edited_output=GOOD)  # pressed twice
        gates.run_repair_loop(made.load())
        after = files(made)
        assert billed(teacher) == asked
    assert kept(made)["s0002"] == decisions.FIRST_EDIT_ATTEMPT
    assert kept(made)["s0005"] == 1
    (edit,) = [row for row in rows(made, "filtered_dataset") if row["sample_id"] == "s0002"]
    assert (edit["model_id"], edit["cost_usd"], edit["finish_reason"]) == ("person:ann", 0.0, "stop")
    assert edit["repaired_reason"] == "rejected_by_person"
    assert repair_figures(made.load())["edited"] == 1
    tables = [name for name in before if name.endswith("filtered_v1.parquet")]
    assert all(before[name][1] == after[name][1] for name in tables)


def test_a_decision_that_is_older_than_the_answer_does_not_count(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        decide(made, "s0000", 0, "reject", timestamp="2020-01-01T00:00:00+00:00")
        decide(made, "gone", 0, "reject")
        gates.run_gates(collected(made, 2).load())
    assert len(kept(made)) == 2
    assert decisions.load_valid_decisions(made.load()).left_out == 2


def test_seeds_name_a_row_or_a_sample_and_are_recorded_once(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url, regeneration={"rounds": 0}))
        gates.run_gates(made.load())
        third = rows(made, "rejections")[2]["sample_id"]
        lines: list[dict[str, Any]] = [{"index": 2, "action": "regenerate"},
                                       {"sample_id": "s0000", "action": "regenerate"}]  # fmt: skip
        seeds.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for _ in range(2):
            time.sleep(1.1)  # a decision is of a later second than the answer
            made.run(REGENERATE, "--annotations", seeds)
        assert billed(teacher) == 8
    assert {row["sample_id"] for row in rows(made, "regen_dataset")} == {third, "s0000"}
    assert len(annotations.read(made.path("annotations"))) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"index": 99, "action": "reject"}, "has rows 0 to 3"),
        ({"index": -1, "action": "reject"}, "has rows 0 to 3"),
        ({"index": "1", "action": "reject"}, "expected a row number"),
        ({"sample_id": "nobody", "action": "reject"}, "'nobody' is not in"),
        ({"sample_id": "s0000", "action": "rejct"}, "action"),
        ({"action": "reject"}, "expected {sample_id or index, action"),
    ],
)
def test_a_line_that_is_no_decision_is_named(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
    gates.run_gates(made.load())
    (tmp_path / "seeds.jsonl").write_text(f"\n{json.dumps(line)}\n")
    with pytest.raises(InputError, match="line 2: ") as error:
        regenerate_bad.run(made.load(), annotations=tmp_path / "seeds.jsonl")
    assert said in str(error.value)
    assert not made.path("annotations").exists()


def test_a_file_elsewhere_gets_the_decided_answers_alone_and_nothing_is_recorded(tmp_path: Path) -> None:
    seeds, dst = tmp_path / "seeds.jsonl", tmp_path / "regen.parquet"
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        gates.run_gates(made.load())
        seeds.write_text('{"sample_id": "s0001", "action": "regenerate"}\n')
        for _ in range(2):
            made.run("nexa_distill.regenerate_bad", "--annotations", seeds, "--dst", dst)
        assert billed(teacher) == 7
    (row,) = pq.read_table(dst).to_pylist()
    assert (row["sample_id"], row["attempt"]) == ("s0001", 1)
    assert not made.path("regen_dataset").exists()
    assert not made.path("annotations").exists()


# What is told.


def test_every_reason_has_an_instruction_or_is_left_out_on_purpose() -> None:
    listed = yaml.safe_load((ROOT / "nexa_distill/reasons.yaml").read_text(encoding="utf-8"))
    assert all("instruction" in reason for reason in listed.values())
    told = {name for name, reason in REASONS.items() if reason.tells_evidence or reason.hides_answer}
    assert all(REASONS[name].instruction for name in told | repair_prompts.JUDGE_REASONS)
    assert not any(REASONS[name].instruction for name in DOUBT_REASONS)


QUESTION = {
    "user_prompt": "How many?", "gold_sql": "SELECT count(*) FROM pets", "reference": None,
    "tests": None,
}  # fmt: skip


def test_evidence_about_the_answer_is_told_and_the_known_answer_never() -> None:
    faults = [
        Fault("not_executable", "no such column: pet"),
        Fault("wrong_result", "1 rows, expected 1: [(3,)] for [(42,)]"),
        Fault("low_factuality", "judge-a: the right one is SELECT * FROM pets (journal: ab)"),
        Fault("not_a_query", "near select COUNT(*)\nfrom PETS"),
    ]
    said = repair_prompt(QUESTION, faults, "select  count(*) from pets -- 3", 256)
    assert "no such column: pet" in said
    for secret in ("42", "right one", "from pets", "FROM pets", "PETS", "journal"):
        assert secret not in said
    free = QUESTION | {"gold_sql": None}
    said = repair_prompt(free, [Fault("low_factuality", "judge-a: no source (journal: ab)")],
                         "An answer.", 256)  # fmt: skip
    assert "A reader said: no source\n" in said
    assert "An answer." in said


def test_a_dangerous_or_personal_answer_is_not_shown_again() -> None:
    for reason in ("personal_data", "secret", "critical_safety", "refusal"):
        assert "my key" not in repair_prompt(QUESTION, [Fault(reason)], "my key", 256)


def test_the_repaired_answer_is_packaged_with_its_lineage(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = collected(workspace(tmp_path, teacher.base_url))
        gates.run_repair_loop(made.load())
    to_sft.run(made.load())
    packed = {row["sample_id"]: row for row in rows(made, "sft_parquet")}
    assert packed["s0000"]["repaired_reason"] == "too_short"
    assert packed["s0000"]["attempt"] == 1
    assert packed["s0004"]["repaired_reason"] is None
    assert make_plan(made.load()).plan_digest == make_plan(made.load()).plan_digest
