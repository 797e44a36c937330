"""Answers of several tasks in one run: each is measured by the rules of its own, and none lacks a check."""

from pathlib import Path

import pyarrow.parquet as pq

from nexa_distill import exec_gate, filter_pairs, sample_gate
from nexa_distill.contracts import OFF_IN_PRESET
from tests.support.answers import GOOD, REPOSITORY, answer, collect, project

ROWS = [
    answer(0, "Paris", template_name="question_answer"),
    answer(1, GOOD),
    answer(2, "Paris"),
    answer(3, '{"topic": "ice"}', template_name="extract_json"),
    answer(4, "ice", template_name="extract_json"),
    answer(5, "Paris " * 300, template_name="question_answer"),
    answer(6, "Paris (Smith, 2019) [3].", template_name="chat"),
    answer(7, "Paris", template_name="a type of the raw data"),
]
REASONS = {2: "too_short", 4: "invalid_json", 5: "repetition", 7: "too_short"}


def test_each_answer_is_measured_by_the_preset_of_its_task(tmp_path: Path) -> None:
    config = project(tmp_path)
    collect(config, ROWS)
    summary = filter_pairs.run(config)
    assert summary is not None
    assert summary.reasons == {"too_short": 2, "invalid_json": 1, "repetition": 1}
    assert not any(summary.not_applied.get(name) for name in ("rules.json", "rules.repetition"))
    checks = pq.read_table(config.storage.path_of("rules_checks")).to_pylist()
    ids = [row["sample_id"] for row in ROWS]
    assert list(dict.fromkeys(check["sample_id"] for check in checks)) == ids  # in the order of the answers
    off = {(ids.index(c["sample_id"]), c["check"]) for c in checks if (c["detail"] or "").startswith(OFF_IN_PRESET)}
    assert {(0, "rules.json"), (0, "rules.min_char_length"), (3, "rules.repetition")} <= off
    assert not {(1, "rules.min_char_length"), (3, "rules.json"), (7, "rules.action_verb")} & off
    kept = pq.read_table(config.storage.path_of("rule_filtered"))["sample_id"].to_pylist()
    assert kept == [row["sample_id"] for number, row in enumerate(ROWS) if number not in REASONS]


def test_no_answer_of_another_task_lacks_a_check_of_sample_gate(tmp_path: Path) -> None:
    config = project(tmp_path)
    collect(config, ROWS)
    filter_pairs.run(config)
    exec_gate.run(config)
    stats = sample_gate.run(config)
    assert stats is not None
    assert (stats.kept, sum(stats.reasons.values())) == (4, 4)
    assert "check_missing" not in stats.reasons
    assert not stats.not_applied.get("rules.repetition")


def test_a_preset_in_the_filters_file_is_that_of_every_answer(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(f"extends: {REPOSITORY}/configs/filters.yaml\npreset: short\n")
    config = project(tmp_path, filters=str(rules))
    collect(config, [answer(0, "Paris"), answer(1, "Rome", template_name="extract_json")])
    summary = filter_pairs.run(config)
    assert summary is not None
    assert summary.kept == 2


def test_a_run_of_one_preset_has_the_checks_that_it_had(tmp_path: Path) -> None:
    config = project(tmp_path)
    collect(config, [answer(0), answer(1, "Paris", template_name="methodology")])
    filter_pairs.run(config)
    checks = pq.read_table(config.storage.path_of("rules_checks")).to_pylist()
    assert not [check for check in checks if (check["detail"] or "").startswith(OFF_IN_PRESET)]
    assert "rules.json" not in {check["check"] for check in checks}
