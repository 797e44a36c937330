"""Judges beside people: kappa as by hand, disputes seen, bad lines refused."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_distill.contracts import CHECKS
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.judging.calibration import (
    THRESHOLDS,
    Agreement,
    agreement_curve,
    best_threshold,
    count_agreement,
    read_decisions,
)
from nexa_distill.judging.calibration_report import write_calibration
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import table_writer
from tests.support.answers import project
from tests.support.workspace import workspace


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # Cohen's kappa of (both, only judge, only people, neither), by hand.
        (Agreement(20, 5, 10, 15), 0.4),  # p_o 35/50, p_e (25*30 + 25*20) / 50**2 = 0.5
        (Agreement(45, 15, 25, 15), 3 / 23),  # p_o 0.60, p_e 0.54: 0.06 / 0.46
        (Agreement(10, 0, 0, 10), 1.0),
        (Agreement(0, 10, 10, 0), -1.0),
        (Agreement(25, 25, 25, 25), 0.0),
        (Agreement(0, 0, 10, 10), 0.0),  # the judge accepts nothing: agreement is chance
        (Agreement(10, 0, 0, 0), None),
        (Agreement(0, 0, 0, 7), None),
        (Agreement(0, 0, 0, 0), None),
    ],
)
def test_kappa_is_as_by_hand(table: Agreement, kappa: float | None) -> None:
    assert table.cohens_kappa == (None if kappa is None else pytest.approx(kappa))


@given(st.tuples(*[st.integers(0, 40)] * 4))
def test_kappa_is_never_above_1_and_its_interval_is_ordered(counts: tuple[int, ...]) -> None:
    table = Agreement(*counts)
    assert table.cohens_kappa is None or -1 - 1e-9 <= table.cohens_kappa <= 1 + 1e-9
    if interval := table.kappa_interval():
        assert -1 - 1e-9 <= interval[0] <= interval[1] <= 1 + 1e-9
        assert interval == table.kappa_interval()


def test_the_interval_is_that_of_drawing_the_answers_again() -> None:
    table = Agreement(20, 5, 10, 15)
    pairs = np.repeat(np.arange(4), table)
    rng, drawn = np.random.default_rng(1), []
    for _ in range(2000):
        counts = np.bincount(rng.choice(pairs, len(pairs)), minlength=4)
        drawn.append(Agreement(*map(int, counts)).cohens_kappa or 0.0)
    assert table.kappa_interval() == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)


def test_the_curve_counts_a_score_at_the_threshold_as_accepted() -> None:
    scores = {("a", 0): 0.7, ("b", 0): 0.65, ("c", 0): 0.2, ("unseen", 0): 1.0}
    people = {("a", 0): True, ("b", 0): False, ("c", 0): False, ("unjudged", 0): True}
    assert count_agreement(scores, people, 0.7) == Agreement(1, 0, 0, 2)
    points = {point["threshold"]: point for point in agreement_curve(scores, people)}
    assert list(points) == THRESHOLDS
    assert points[0.0]["precision"] == pytest.approx(1 / 3)
    assert (points[1.0]["precision"], points[1.0]["recall"]) == (None, 0.0)
    assert best_threshold(list(points.values())) == 0.7
    assert best_threshold([]) is None


def write(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else f"{json.dumps(line)}\n"
                            for line in lines))  # fmt: skip
    return path


def line(sample: str, action: str = "accept", who: str | None = "ann", attempt: int = 0) -> Any:
    return {"sample_id": sample, "attempt": attempt, "action": action, "annotator": who}


def test_the_last_word_of_each_person_counts_and_disputes_are_left_out(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl", line("a", "reject"), line("a"), line("b"), line("b", "reject", "bob"),
        "\n", line("c", "edit"), line("c", "regenerate", "bob"), line("a", "reject", attempt=1),
        line("d", who=None),
    )  # fmt: skip
    found = read_decisions(file)
    assert found.agreed == {("a", 0): True, ("c", 0): False, ("a", 1): False, ("d", 0): True}
    assert found.disputed == [("b", 0)]
    assert found.annotators == {"ann", "bob", None}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"sample_id": "a", "att\n', "line 2"),
        ("[]\n", "expected a JSON object"),
        ("[" * 100_000 + "\n", "line 2"),
        (line("a") | {"action": "acept"}, 'did you mean "accept"'),
        (line("a") | {"action": ["accept"]}, "action is"),
        (line("a") | {"attempt": None}, "attempt is None"),
        (line("a") | {"attempt": True}, "attempt is"),
        (line("a") | {"sample_id": 5}, "sample_id is"),
        (line("a") | {"annotator": 5}, "annotator is"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(bad: Any, said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", line("a"), bad)
    with pytest.raises(InputError, match=r"line 2: ") as caught:
        read_decisions(file)
    assert said in str(caught.value)


def test_no_annotations_are_an_instruction(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="one decision per line"):
        read_decisions(tmp_path / "none.jsonl")


def judged(folder: Path, scores: dict[str, float | None]) -> DistillConfig:
    """A project whose judge gave these factuality scores."""
    config = project(folder)
    rows = [
        {"sample_id": sample, "attempt": 0, "check": check, "ok": score is not None or None,
         "value": score, "reason": None if score is not None else "judge_unparseable",
         "detail": None}
        for sample, score in scores.items()
        for check in ("judge.factuality", "judge.factuality.openai/gpt-4.1", "judge.safety")
    ]  # fmt: skip
    path = config.storage.path_of("judge_checks")
    with table_writer(path, CHECKS) as out:
        out.write(pa.Table.from_pylist(rows, schema=CHECKS))
    StageRun("judge", config.storage, inputs=[], settings={}).seal_output(path, rows_in=4, rejected=0)
    return config


def test_the_report_compares_each_judge_with_people(tmp_path: Path) -> None:
    scores = {"a": 0.9, "b": 0.8, "c": 0.75, "d": 0.1, "e": None, "f": 1.0}
    config = judged(tmp_path, scores)
    write(
        config.storage.path_of("annotations"), line("a"), line("b"), line("c", "reject"),
        line("d", "reject"), line("e"), line("f"), line("f", "reject", "bob"), line("zz"),
    )  # fmt: skip
    said = list(write_calibration(config))
    report = config.storage.path_of("reports") / "judge" / "calibration.json"
    found = json.loads(report.read_text())
    assert (found["answers_decided"], found["answers_disputed"]) == (6, 1)
    assert (found["unknown_answers"], found["unknown_named"]) == (1, [["zz", 0]])
    assert list(found["checks"]) == ["judge.factuality", "judge.factuality.openai/gpt-4.1"]
    check = found["checks"]["judge.factuality"]
    assert (check["answers"], check["without_verdict"], check["threshold"]) == (4, 1, 0.7)
    assert [check[name] for name in ("tp", "fp", "fn", "tn")] == [2, 1, 0, 1]
    assert check["kappa"] == pytest.approx(0.5)
    assert check["best_threshold"] == 0.8
    assert said[0].startswith("judge.factuality: kappa 0.50 (")
    text = report.with_suffix(".md").read_text()
    assert "1 decisions on answers that were not judged: zz (0)" in text
    page = report.with_suffix(".html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_calibrating_without_scores_or_shared_answers_is_refused(tmp_path: Path) -> None:
    config = judged(tmp_path, {"a": 0.5})
    file = write(tmp_path / "other.jsonl", line("b"))
    with pytest.raises(InputError, match="no undisputed decision on any of the 1 judged answers"):
        list(write_calibration(config, file))
    config = judged(tmp_path, {})
    with pytest.raises(InputMissing, match="judge: not run"):
        list(write_calibration(config, file))


def test_the_command_calibrates(tmp_path: Path) -> None:
    judged(tmp_path, {"a": 0.9, "b": 0.1})
    file = write(tmp_path / "a.jsonl", line("a"), line("b", "reject"))
    made = workspace(tmp_path / "unused")
    made.config = tmp_path / "config.yaml"
    done: subprocess.CompletedProcess[str]
    done = made.run("nexa_distill.judge", "calibrate", "--annotations", file)
    assert "judge.factuality: kappa 1.00" in done.stdout
    write(file, line("a"), "{}\n")
    done = made.run("nexa_distill.judge", "calibrate", "--annotations", file, code=65)
    assert "line 2: sample_id is missing" in done.stderr
