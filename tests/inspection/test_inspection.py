"""What the inspection room shows, without a browser: rows on demand, filters, figures, pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_distill import filter_pairs, sample_gate
from nexa_distill.annotation import preferences
from nexa_distill.annotation.annotations import Annotation, append
from nexa_distill.annotation.preferences import Preference
from nexa_distill.contracts import CHECKS, REJECTIONS
from nexa_distill.inspection import held_out_answers, row_filters, run_data
from nexa_distill.inspection.annotation_view import AnnotationFollower
from nexa_distill.inspection.row_filters import CONFLICT, UNDECIDED, RowFilters
from nexa_distill.inspection.table_view import AnswerTable, ChecksFile
from nexa_distill.inspection.word_diff import diff_words
from nexa_distill.reporting.training_curve import loss_lines, read_metrics
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import read_json_object
from nexa_distill.storage.tables import table_writer
from nexa_train.data.chat_tokenization import ROW_REASONS, Sample, student_format
from nexa_train.token_view import decode_tokens, view_sample
from tests.support.answers import GOOD, answer, collect, project
from tests.support.tiny_model import tokenizer

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> AnswerTable:
    """Thirty rejections in row groups of seven."""
    path = tmp_path_factory.mktemp("rows") / "rejections.parquet"
    with table_writer(path, REJECTIONS) as out:
        for start in range(0, 30, 7):
            rows = [rejected(number) for number in range(start, min(start + 7, 30))]
            out.write(pa.Table.from_pylist(rows, schema=REJECTIONS))
    return AnswerTable(path)


def rejected(number: int) -> dict[str, Any]:
    reasons = ["too_short", "refusal"] if number % 5 == 0 else ["repetition"]
    row = answer(number, f"Answer {number}", split=SPLITS[number % 3], domain=None)
    return row | {"rejection_reason": reasons[0], "rejection_reasons": reasons}


def matching(answers: AnswerTable, **wanted: Any) -> list[int]:
    given = {"values": {}, "reasons": [], "checks": [], "decisions": [], "text": ""} | wanted
    return list(row_filters.matching_rows(answers, [], {}, RowFilters(**given)).tolist())


def test_every_row_is_read_from_its_row_group(answers: AnswerTable) -> None:
    assert len(answers) == 30
    for number in (0, 6, 7, 13, 14, 29):
        assert answers.read_row(number)["teacher_output"] == f"Answer {number}"
        assert answers.number_of(answers.key_at(number)) == number
    assert answers.number_of(("unknown", 0)) is None
    assert answers.numbers_of("unknown").tolist() == []


def test_filters_are_joined(answers: AnswerTable) -> None:
    assert matching(answers) == list(range(30))
    assert matching(answers, values={"split": ["val"]}) == list(range(1, 30, 3))
    assert matching(answers, values={"domain": ["biology"]}) == []
    assert matching(answers, reasons=["refusal"]) == list(range(0, 30, 5))
    assert matching(answers, reasons=["refusal"], values={"split": ["train"]}) == [0, 15]
    assert matching(answers, text="ANSWER 2") == [2, *range(20, 30)]
    assert answers.values("rejection_reasons")[0] == "repetition"
    assert answers.values("domain") == []


def test_rows_are_walked_in_their_order() -> None:
    rows = np.array([2, 5, 9])
    assert [row_filters.next_row(rows, n) for n in (0, 2, 5, 9)] == [2, 5, 9, None]
    assert [row_filters.previous_row(rows, n) for n in (2, 3, 9, 20)] == [None, 2, 5, 9]


def decide(path: Path, answers: AnswerTable, number: int, action: str, annotator: str) -> None:
    sample, attempt = answers.key_at(number)
    event = {"sample_id": sample, "attempt": attempt, "action": action, "annotator": annotator}
    append(path, Annotation.model_validate(event))


def test_decisions_are_followed_as_they_are_made(answers: AnswerTable, tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    decisions = AnnotationFollower(path)
    assert decisions.current_decisions() == {}
    decide(path, answers, 3, "accept", "ann")
    decide(path, answers, 4, "reject", "ann")
    decide(path, answers, 4, "accept", "bob")
    decided = decisions.current_decisions()
    wanted = RowFilters({}, [], [], [CONFLICT], "")
    assert row_filters.matching_rows(answers, [], decided, wanted).tolist() == [4]
    wanted = RowFilters({}, [], [], ["accept", UNDECIDED], "")
    assert row_filters.matching_rows(answers, [], decided, wanted).tolist() == [n for n in range(30) if n != 4]
    decide(path, answers, 4, "reject", "bob")
    assert row_filters.decision_label(decisions.current_decisions()[answers.key_at(4)]) == "reject"
    path.write_text("")  # another file stands here
    assert decisions.current_decisions() == {}


def test_f32_a_decision_on_an_answer_that_is_not_there_marks_no_row(answers: AnswerTable, tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    append(path, Annotation(sample_id="gone", attempt=0, action="reject"))
    assert not row_filters.decided_rows(answers, AnnotationFollower(path).current_decisions()).any()


def test_checks_are_found_by_answer(tmp_path: Path) -> None:
    made = [
        {"sample_id": f"s{n}", "attempt": a, "check": c, "ok": ok, "value": None, "reason": None,
         "detail": f"{n} {a}"}
        for n in range(20) for a in (0, 1)
        for c, ok in (("rules.a", True), ("rules.b", None if n == 3 else n != 4))
    ]  # fmt: skip
    with table_writer(tmp_path / "checks.parquet", CHECKS) as out:
        for start in range(0, len(made), 9):
            out.write(pa.Table.from_pylist(made[start : start + 9], schema=CHECKS))
    checks = ChecksFile(tmp_path / "checks.parquet")
    assert [row["detail"] for row in checks.rows_of_answer(("s7", 1))] == ["7 1", "7 1"]
    assert checks.rows_of_answer(("none", 0)) == []
    assert checks.check_names == ["rules.a", "rules.b"]
    assert checks.not_passed(["rules.b"]) == {("s3", 0), ("s3", 1), ("s4", 0), ("s4", 1)}


@given(st.text("ab \n.", max_size=40), st.text("ab \n.", max_size=40))
def test_the_spans_of_a_difference_are_both_texts(old: str, new: str) -> None:
    spans = diff_words(old, new)
    assert "".join(text for text, kind in spans if kind != "new") == old
    assert "".join(text for text, kind in spans if kind != "gone") == new


def test_a_difference_is_by_words_and_long_texts_are_compared_whole() -> None:
    assert diff_words("one two", "one 2") == [("one ", "same"), ("two", "gone"), ("2", "new")]
    long = "x " * 5000
    assert [kind for _, kind in diff_words(long, f"{long}y")] == ["gone", "new"]


def run_of(folder: Path) -> DistillConfig:
    config = project(folder)
    collect(config, [answer(n, GOOD if n % 2 else "Short.") for n in range(6)])
    filter_pairs.run(config)
    sample_gate.run(config)
    return config


def test_figures_of_a_run_are_those_of_its_files(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    steps = {row["step"]: row["rows"] for row in run_data.count_funnel(config.storage)}
    assert (steps["answered"], steps["pass the rules"], steps["kept by SampleGate"]) == (6, 3, 3)
    assert "packaged" not in steps
    assert sum(row["answers"] for row in run_data.count_reasons(config.storage)) == 3
    assert [row["stage"] for row in run_data.stage_timings(config)][-1] == "sample_gate"
    assert run_data.load_cost_report(config.storage) is None
    assert run_data.latest_sessions(config) == (None, [])


def test_a_half_written_metrics_line_waits_and_a_missing_loss_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 0, "val_loss": 3.0}\n{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert loss_lines(read_metrics(path), "training", "validation") == [
        ("training", [(1, 2.5)], "plain"),
        ("validation", [(0, 3.0)], "after"),
    ]
    (tmp_path / "report.json").write_text("[1]")
    assert read_json_object(tmp_path / "report.json") is None


def compared(folder: Path) -> DistillConfig:
    """Two held-out prompts, answered by teacher and student."""
    config = project(folder)
    tables = {"collected_dataset": "T", "baseline_outputs": "B", "student_outputs": "S"}
    for key, text in tables.items():
        collect(config, [answer(n, f"{text}{n}", split="test") for n in range(2)], key)
    return config


def test_held_out_answers_stand_side_by_side(tmp_path: Path) -> None:
    assert held_out_answers.load_prompts(project(tmp_path).storage) == []
    first, second = held_out_answers.load_prompts(compared(tmp_path).storage)
    assert first.answers == {"teacher": "T0", "before": "B0", "after": "S0"}
    assert second.reasons == {}


def test_the_blind_order_is_by_chance_and_the_same_again() -> None:
    orders = [held_out_answers.blind_order(f"s{n}", "ann", ("before", "after")) for n in range(200)]
    assert orders == [held_out_answers.blind_order(f"s{n}", "ann", ("before", "after")) for n in range(200)]
    assert 60 < orders.count(("before", "after")) < 140


def preference(sample: str, annotator: str, preferred: str, first: str = "before") -> Preference:
    second = {"before": "after", "after": "before"}[first]
    texts = {"before": "One.", "after": "Two."}
    return Preference(
        sample_id=sample, first=first, second=second, first_output=texts[first],
        second_output=texts[second], preferred=preferred, annotator=annotator,  # type: ignore[arg-type]
        timestamp="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_the_last_preference_of_a_person_counts_in_whichever_order_the_texts_stood(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    assert preferences.read(path) == []
    for one in (preference("a", "ann", "first"), preference("a", "ann", "first", "after"),
                preference("a", "bob", "tie"), preference("b", "ann", "second")):  # fmt: skip
        preferences.append(path, one)
    assert preferences.count_preferences(preferences.read(path)) == {"after": 2, "tie": 1}
    with path.open("a") as file:
        file.write(json.dumps({"sample_id": "a"}) + "\n")
    with pytest.raises(Exception, match="line 5: not a preference"):
        preferences.read(path)


def test_tokens_join_to_the_text_and_the_answer_is_trained() -> None:
    made = student_format(tokenizer())
    messages = [{"role": "user", "content": "Über?"}, {"role": "assistant", "content": "Ja, ü."}]
    shown = view_sample(made, "s", messages, 200)["tokens"]
    text = "".join(token for token, _, _ in shown)
    assert text.endswith("<|im_start|>assistant\nJa, ü.<|im_end|>")
    trained = "".join(token for token, counts, _ in shown if counts)
    assert trained == "Ja, ü.<|im_end|>"
    assert [token for token, _, special in shown if special][-1] == "<|im_end|>"
    refused = view_sample(made, "s", messages, 5)
    assert (refused["skipped"], refused["why"]) == ("over_max_length", ROW_REASONS["over_max_length"])
    assert decode_tokens(made.tokenizer, Sample("a", [], [])) == []
