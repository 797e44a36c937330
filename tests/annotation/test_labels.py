"""Decisions to and from Label Studio, and preference pairs that training may see."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nexa_distill import filter_pairs, labels, sample_gate
from nexa_distill.annotation import annotations, preferences
from nexa_distill.annotation.preferences import Preference
from nexa_distill.errors import InputError, InputMissing, NexaError
from nexa_distill.settings.pipeline import DistillConfig
from tests.support.answers import GOOD, answer, collect, project


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def gated(folder: Path) -> DistillConfig:
    """Three prompts: one kept, one with a rejected first attempt, one held out."""
    config = project(folder)
    rows = [
        answer(0), answer(1, "Too short."), answer(2, "Also too short.", split="test"),
        answer(3, "Nothing."),
    ]  # fmt: skip
    collect(config, rows)
    repaired = [answer(n, GOOD, attempt=1, split=split) for n, split in ((1, "train"), (2, "test"))]
    collect(config, repaired, "regen_dataset")
    filter_pairs.run(config)
    sample_gate.run(config)
    return config


def exported(task: dict[str, Any], action: str, **texts: str) -> dict[str, Any]:
    """What Label Studio gives back of a task that a person has decided."""
    result = [{"from_name": "action", "type": "choices", "value": {"choices": [action]}}]
    result += [{"from_name": name, "type": "textarea", "value": {"text": [text]}} for name, text in texts.items()]
    made = {"completed_by": 10, "created_at": "2026-03-09T22:16:08.728353Z", "result": result,
            "was_cancelled": False}  # fmt: skip
    return {"id": 1, "data": task["data"], "annotations": [made], "predictions": []}


def test_what_is_exported_comes_back_as_decisions_once(tmp_path: Path) -> None:
    config = gated(tmp_path)
    labels.run_export(config, None, tmp_path / "tasks.jsonl")
    tasks = [json.loads(line) for line in lines(tmp_path / "tasks.jsonl")]
    assert [task["data"]["teacher_output"] for task in tasks].count("Nothing.") == 1
    assert all(task["data"]["rejection_reasons"] for task in tasks)
    done = [exported(tasks[0], "reject", reason="it is too vague"),
            exported(tasks[1], "edit", edited_output=GOOD, note="see\nbelow")]  # fmt: skip
    (tmp_path / "done.json").write_text(json.dumps(done))
    for new in (2, 2):
        labels.run_import(config, tmp_path / "done.json")
        found = annotations.read(config.storage.path_of("annotations"))
        assert len(found) == new
    first, second = found
    assert (first.sample_id, first.action, first.reason) == (
        tasks[0]["data"]["sample_id"], "reject", "it is too vague",
    )  # fmt: skip
    assert (second.edited_output, second.note, second.annotator) == (
        GOOD, "see\nbelow", "labelstudio:10",
    )  # fmt: skip


def test_the_labelling_configuration_names_what_is_exported(tmp_path: Path) -> None:
    config = gated(tmp_path)
    (task, *_) = labels.label_tasks(config.storage.path_of("rejections"))
    named = set(re.findall(r'value="\$(\w+)"', labels.LABEL_CONFIG))
    assert {"user_prompt", "teacher_output"} <= named <= task["data"].keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"text": "x"}}, "task 2: expected data.sample_id"),
        ({"annotations": [{"result": []}]}, "expected one choice named action"),
        ({"annotations": [{"result": [{"from_name": "action", "value": {"choices": ["acept"]}}]}]},
         'did you mean "accept"'),
        ({"annotations": [{"result": [{"from_name": "action", "value": {"choices": ["edit"]}}]}]},
         "edited_output is empty"),
    ],
)  # fmt: skip
def test_a_task_that_is_not_understood_is_named_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    config = gated(tmp_path)
    task = next(labels.label_tasks(config.storage.path_of("rejections")))
    good = exported(task, "accept")
    (tmp_path / "done.json").write_text(json.dumps([good, good | change]))
    with pytest.raises(InputError, match=said):
        labels.run_import(config, tmp_path / "done.json")
    assert not config.storage.path_of("annotations").exists()


def test_a_cancelled_annotation_is_none_and_lines_are_read_too(tmp_path: Path) -> None:
    config = gated(tmp_path)
    task = exported(next(labels.label_tasks(config.storage.path_of("rejections"))), "accept")
    task["annotations"][0]["was_cancelled"] = True
    (tmp_path / "done.jsonl").write_text(json.dumps(task) + "\n")
    assert labels.read_decisions(tmp_path / "done.jsonl") == []
    (tmp_path / "torn.json").write_text("[{")
    with pytest.raises(InputError, match="not JSON"):
        labels.read_decisions(tmp_path / "torn.json")
    with pytest.raises(InputMissing, match="expected a JSON export"):
        labels.read_decisions(tmp_path / "none.json")


def prefer(config: DistillConfig, row: dict[str, Any], annotator: str, which: str) -> None:
    event = Preference(
        sample_id=row["sample_id"], first="before", second="after", first_output="One.",
        second_output="Two.", preferred=which, annotator=annotator,  # type: ignore[arg-type]
        timestamp="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    preferences.append(config.storage.path_of("preferences"), event)


def test_pairs_are_of_training_prompts_and_of_what_was_rejected_for_its_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = gated(tmp_path)
    collect(config, [answer(n, None) for n in range(4)], "raw_dataset")
    labels.run_preferences(config, tmp_path / "pairs.jsonl", ["train"])
    (pair,) = (json.loads(line) for line in lines(tmp_path / "pairs.jsonl"))
    assert pair["sample_id"] == answer(1)["sample_id"]
    assert pair["chosen"] == [{"role": "assistant", "content": GOOD}]
    assert pair["rejected"] == [{"role": "assistant", "content": "Too short."}]
    assert [message["role"] for message in pair["prompt"]] == ["system", "user"]
    assert "1 from attempts, 0 from comparisons; left out: 1 of other splits" in capsys.readouterr().out
    labels.run_preferences(config, tmp_path / "pairs.jsonl", ["train", "test"])
    assert len(lines(tmp_path / "pairs.jsonl")) == 2


def test_blind_comparisons_are_pairs_where_people_agree(tmp_path: Path) -> None:
    config = gated(tmp_path)
    collect(config, [answer(n, None) for n in range(4)], "raw_dataset")
    agreed, disputed, tie = (answer(n) for n in (0, 1, 3))
    for row, who, which in (
        (agreed, "ann", "first"), (agreed, "ann", "second"), (agreed, "bob", "second"),
        (disputed, "ann", "first"), (disputed, "bob", "second"), (tie, "ann", "tie"),
    ):  # fmt: skip
        prefer(config, row, who, which)
    labels.run_preferences(config, tmp_path / "pairs.jsonl", ["train"])
    found = [json.loads(line) for line in lines(tmp_path / "pairs.jsonl")]
    (pair,) = (pair for pair in found if pair["source"] == "comparisons")
    assert pair["sample_id"] == agreed["sample_id"]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("Two.", "One.")


def test_a_folder_or_a_binary_file_is_no_export_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_bytes(b"\xff\xfe[]")
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "export.json", "not UTF-8")):
        with pytest.raises(NexaError, match=f"{said}.*expected a JSON export"):
            labels.read_decisions(path)
