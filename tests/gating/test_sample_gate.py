"""SampleGate: who is kept, why the others are not, and that no answer is lost."""

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_distill import filter_pairs, sample_gate
from nexa_distill.contracts import CHECKS, TABLES
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.gating.gate_report import FilterStats
from nexa_distill.sample_gate import SampleGate
from nexa_distill.settings.filters import FilterConfig, GateConfig
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.tables import read_table, table_writer
from tests import warm
from tests.support.answers import REPOSITORY, answer, collect, project, write_answers

GATE = load_yaml(REPOSITORY / "configs/filters.yaml", FilterConfig).sample_gate


def gate(**changes: Any) -> GateConfig:
    return GATE.model_copy(update=changes)


def check(row: Mapping[str, Any], name: str = "rules.x", ok: bool | None = True, **more: Any) -> Any:
    empty = {"value": None, "reason": None, "detail": None}
    key = {"sample_id": row["sample_id"], "attempt": row["attempt"]}
    return {**key, "check": name, "ok": ok, **empty, **more}


def judged(row: Mapping[str, Any], factuality: float | None, reasoning: float | None) -> list[Any]:
    scores = (("judge.factuality", factuality), ("judge.reasoning", reasoning))
    return [check(row, name, ok=None, value=score) for name, score in scores]


def decide(
    folder: Path, rows: Sequence[Mapping[str, Any]], checks: Sequence[Any], config: GateConfig = GATE
) -> tuple[FilterStats, dict[tuple[str, int], list[str]]]:
    """SampleGate on files; the reasons of every answer, [] for a kept one."""
    src = write_answers(folder / "answers.parquet", rows)
    with table_writer(folder / "checks.parquet", CHECKS) as out:
        out.write(pa.Table.from_pylist(list(checks), schema=CHECKS))
    dst, rejections = folder / "kept.parquet", folder / "rejections.parquet"
    stats = SampleGate(config).filter_dataset([src], [folder / "checks.parquet"], dst, rejections)
    found: dict[tuple[str, int], list[str]] = {}
    for row in read_table(dst, TABLES["filtered_dataset"]).to_pylist():
        found[row["sample_id"], row["attempt"]] = []
    for row in read_table(rejections, TABLES["rejections"]).to_pylist():
        assert row["rejection_reason"] == row["rejection_reasons"][0]
        found[row["sample_id"], row["attempt"]] = row["rejection_reasons"]
    return stats, found


def reasons_of(folder: Path, checks: Sequence[Any], config: GateConfig = GATE) -> list[str]:
    """Reasons against `answer(0)`."""
    return decide(folder, [answer(0)], checks, config)[1][answer(0)["sample_id"], 0]


A = answer(0)


@pytest.mark.parametrize(
    ("checks", "changes", "reasons"),
    [
        ([check(A)], {}, []),
        ([check(A, ok=False, reason="too_short")], {}, ["too_short"]),
        ([check(A, ok=None)], {}, ["check_missing"]),
        ([check(A), check(A, "exec.executes", ok=None)], {}, ["check_missing"]),
        ([check(A), check(A, "safety.key", False, reason="safety_flag")], {}, ["safety_flag"]),
        ([], {}, ["check_missing"]),
        ([check(answer(1))], {}, ["check_missing"]),
        ([check(A), check(answer(1)), check(answer(1), "rules.y")], {}, ["check_missing"]),
        ([check(A)], {"required": ["rules", "judge"]}, ["check_missing"]),
        ([check(A)], {"required": ["judge.factuality"]}, ["check_missing"]),
        ([check(A), *judged(A, 0.7, 0.7)], {"required": ["rules", "judge"]}, []),
        ([check(A), *judged(A, 0.69, 0.9)], {}, ["low_factuality"]),
        ([check(A), *judged(A, 0.9, 0.69)], {}, ["low_reasoning"]),
        ([check(A), *judged(A, 0.1, 0.1)], {}, ["low_factuality", "low_reasoning"]),
        ([check(A), *judged(A, 0.9, 0.1)], {"require_both": False}, []),
        ([check(A), *judged(A, 0.1, 0.1)], {"require_both": False},
         ["low_factuality", "low_reasoning"]),
        ([check(A), *judged(A, None, 0.9)], {}, ["check_missing"]),
        ([check(A), *judged(A, None, 0.9)], {"require_both": False}, ["check_missing"]),
        ([check(A), judged(A, 0.9, 0.9)[0]], {}, ["check_missing"]),
        ([check(A), *judged(A, 0.9, 1.01)], {}, ["low_reasoning"]),
        ([check(A), *judged(A, math.nan, 0.9)], {}, ["low_factuality"]),
        ([check(A, ok=False, reason="too_short"), check(A, "rules.y", False, reason="refusal")], {},
         ["too_short", "refusal"]),
    ],
)  # fmt: skip
def test_an_answer_passes_only_without_doubt(
    checks: list[Any], changes: dict[str, Any], reasons: list[str], tmp_path: Path
) -> None:
    assert reasons_of(tmp_path, checks, gate(**changes)) == reasons


def test_filter_sample_decides_one_answer_from_its_checks() -> None:
    decider = SampleGate(GATE)
    assert decider.filter_sample([check(A), *judged(A, 0.8, 0.9)]) == []
    assert decider.filter_sample([check(A, ok=False, reason="refusal")]) == ["refusal"]


def test_the_best_judged_attempt_is_kept_and_of_equals_the_earliest(tmp_path: Path) -> None:
    rows = [answer(0, attempt=n) for n in range(3)] + [answer(1, attempt=n) for n in range(3)]
    scores = [0.8, 0.9, 0.9, None, 0.75, 0.7]
    checks = [check(row) for row in rows]
    for row, score in zip(rows, scores, strict=True):
        checks += judged(row, score, score) if score else []
    _, found = decide(tmp_path, rows, checks)
    kept = [(row["sample_id"], row["attempt"]) for row in rows if found[row["sample_id"], row["attempt"]] == []]
    assert set(kept) == {(rows[1]["sample_id"], 1), (rows[4]["sample_id"], 1)}
    assert found[rows[2]["sample_id"], 2] == ["better_attempt_kept"]


def test_a_failed_first_attempt_does_not_stop_its_repair(tmp_path: Path) -> None:
    rows = [answer(0), answer(0, attempt=1)]
    checks = [check(rows[0], ok=False, reason="truncated"), check(rows[1])]
    _, found = decide(tmp_path, rows, checks)
    assert found == {(A["sample_id"], 0): ["truncated"], (A["sample_id"], 1): []}


OUTCOMES = st.sampled_from([(True, None), (False, "too_short"), (None, None), "absent"])


@settings(max_examples=60, deadline=None)
@given(
    outcomes=st.dictionaries(
        st.tuples(st.integers(0, 5), st.integers(0, 3)), st.lists(OUTCOMES, min_size=2, max_size=2),
        min_size=1,
    )
)  # fmt: skip
def test_rows_are_conserved_and_one_passing_attempt_per_sample_is_kept(
    outcomes: dict[tuple[int, int], list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [answer(number, attempt=attempt) for number, attempt in outcomes]
    checks = [
        check(row, f"rules.{i}", outcome[0], reason=outcome[1])
        for row, both in zip(rows, outcomes.values(), strict=True)
        for i, outcome in enumerate(both)
        if outcome != "absent"
    ]
    names = {c["check"] for c in checks}
    stats, found = decide(tmp_path_factory.mktemp("gate"), rows, checks)
    assert stats.total == len(rows) == len(found)
    assert stats.kept + stats.rejected_count == stats.total == stats.kept + stats.reasons.total()
    passing: dict[str, list[int]] = {}
    for row, both in zip(rows, outcomes.values(), strict=True):
        made = [o for i, o in enumerate(both) if f"rules.{i}" in names]
        if made and all(o == (True, None) for o in made):
            passing.setdefault(row["sample_id"], []).append(row["attempt"])
    kept = {key for key, reasons in found.items() if not reasons}
    assert kept == {(sample, min(attempts)) for sample, attempts in passing.items()}


def filtered_project(folder: Path) -> DistillConfig:
    config = project(folder)
    collect(config, [answer(0), answer(1, "no"), answer(2, domain="physics")])
    filter_pairs.run(config)
    return config


def test_the_stage_writes_tables_and_reports_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    config = filtered_project(tmp_path)
    stats = sample_gate.run(config)
    assert stats is not None
    assert (stats.total, stats.kept, stats.reasons) == (3, 2, {"too_short": 1})
    folder = config.storage.path_of("reports") / "sample_gate"
    text = (folder / "gate_report.md").read_text()
    assert "judge: not run" in text
    assert "| physics | 1 | 1 | 100.0% |" in text
    report = json.loads((folder / "gate_report.json").read_text())
    assert (report["judge_score"], report["by_domain"]["biology"]["total"]) == (None, 2)
    quality = json.loads((folder / "quality_report.json").read_text())
    assert (quality["p_keep"], quality["exec_pass_rate"]) == (2 / 3, None)
    assert sample_gate.run(config) is None
    assert sample_gate.run(config, gate=gate(judge_f_threshold=0.8)) is not None


def test_execution_and_judge_results_are_reported_with_their_counts(tmp_path: Path) -> None:
    rows = [answer(n) for n in range(4)]
    checks = [check(row) for row in rows]
    checks += [check(row, "exec.executes", n < 3, reason=None if n < 3 else "refusal")
               for n, row in enumerate(rows)]  # fmt: skip
    checks += [c for row in rows[:2] for c in judged(row, 0.8, 1.0)]
    stats, _ = decide(tmp_path, rows, checks)
    assert (stats.measured["exec_pass_rate"], stats.measured["gold_match_rate"]) == (0.75, None)
    assert stats.measured["exec_error_counts"] == {"refusal": 1}
    assert stats.measured["judge_scores"] == {"min": 0.8, "max": 1.0, "mean": pytest.approx(0.9)}


def test_a_reason_outside_the_closed_list_stops_the_stage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="looks_odd"):
        reasons_of(tmp_path, [check(A, ok=False, reason="looks_odd")])


def test_an_answer_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="occurs twice"):
        decide(tmp_path, [answer(0), answer(0)], [check(A)])


def test_f34_checks_of_earlier_answers_are_refused(tmp_path: Path) -> None:
    config = filtered_project(tmp_path)
    collect(config, [answer(0), answer(1, "no"), answer(2), answer(3)])
    with pytest.raises(InputMissing, match=r"earlier .*teacher_outputs_v1.*filter_pairs"):
        sample_gate.run(config)


def test_a_threshold_flag_above_one_is_refused_and_a_right_one_wins(tmp_path: Path) -> None:
    filtered_project(tmp_path)
    command = [warm.python(), "-m", "nexa_distill.sample_gate",
               "--config", str(tmp_path / "config.yaml"), "--judge-f-threshold"]  # fmt: skip
    wrong = subprocess.run([*command, "70"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 65
    assert "judge_f_threshold is 70.0: scores are 0..1, write 0.70" in wrong.stderr
    right = subprocess.run([*command, "0.9", "--no-require-both"], capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert (right.returncode, right.stdout[:33]) == (0, "sample gate: 2 of 3 answers kept;")


def test_the_filtering_script_runs_both_gates_and_prints_the_funnel(tmp_path: Path) -> None:
    collect(project(tmp_path), [answer(0), answer(1, "no")])
    script = REPOSITORY / "scripts/python/data_processing/run_filtering.py"
    command = [warm.python(), str(script), "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| - too_short | 1 | 1 |" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.count("is up to date") == 4  # and the judge is not run
    page = project(tmp_path).storage.path_of("reports") / "sample_gate" / "gate_report.html"
    assert "too_short" in page.read_text()
    page.unlink()
    subprocess.run(command, capture_output=True, check=True)
    assert page.exists()


def test_a_checks_file_named_twice_cannot_stand_in_for_a_missing_check(tmp_path: Path) -> None:
    src = write_answers(tmp_path / "answers.parquet", [answer(0)])
    checks = tmp_path / "checks.parquet"
    with table_writer(checks, CHECKS) as out:
        out.write(pa.Table.from_pylist([check(answer(0))], schema=CHECKS))
    twice, out_files = [checks, checks], (tmp_path / "kept.parquet", tmp_path / "no.parquet")
    with pytest.raises(InputError, match="names a file twice"):
        SampleGate(GATE).filter_dataset([src], twice, *out_files)
