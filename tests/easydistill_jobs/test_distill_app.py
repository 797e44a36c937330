"""Every name of the Python interface, on a tiny model and data on this disk."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import distill_app as app
from nexa_distill.errors import InputError
from nexa_train.data.instructions import read_items
from nexa_train.easydistill_jobs.job import load_job
from nexa_train.models.replies import generate_replies
from tests.support.tiny_model import save_model

LABELED = "data/train_labeled.json"
ITEMS = [{"instruction": f"Say {i}.", "input": "", "output": "all ok"} for i in range(12)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths are relative to the current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, and `one` and `two` that were distilled from it."""
    folder = tmp_path_factory.mktemp("students")
    save_model(folder / "base")
    chains = [item | {"output": "<think>so</think> all ok"} for item in ITEMS]
    app.save_json(folder / "labeled.json", ITEMS)
    app.save_json(folder / "cot.json", chains)
    shared = {"student_model": str(folder / "base"), "num_epochs": 24}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(app, "LEARNING_RATE", 0.01)  # a model of a few thousand weights takes larger steps
        one = {"teacher_model": "nobody/none", "labeled_path": "labeled.json", "out_dir": "one"}
        two = {"cot_path": "cot.json", "out_dir": "two"}
        assert app.distill_system1({**shared, **one}) == "one"
        assert app.distill_system2({**shared, **two}) == "two"
    return folder


def test_system1_is_trained_by_the_job_file_that_is_written(students: Path) -> None:
    job = json.loads((students / "configs/kd_black_box_qwen_0_5b.json").read_text())
    assert job["job_type"] == "kd_black_box_local"
    assert job["dataset"]["labeled_path"] == "labeled.json"
    assert job["models"] == {"teacher": "nobody/none", "student": str(students / "base")}
    assert job["training"]["output_dir"] == "one"
    assert (students / "one/model.safetensors").is_file()


def test_system2_keeps_the_reasoning_in_the_target(students: Path) -> None:
    job = json.loads((students / "configs/kd_cot_qwen_1_5b.json").read_text())
    assert job["job_type"] == "kd_black_box_train_only"
    rows = pq.read_table(students / "two/run/training/sft_dataset.parquet").to_pylist()
    assert all(row["messages"][1]["content"].startswith("<think>so</think>") for row in rows)
    asked = app.format_prompt("Say 0.", mode="system2")
    assert rows[0]["messages"][0]["content"] == asked != "Say 0."
    report = json.loads((students / "two/run/reports/training/preflight.json").read_text())
    kept = next(check for check in report["checks"] if check["check"] == "thinking_kept")
    assert (kept["ok"], kept["rows"]) == (True, len(ITEMS))


def test_a_student_replies_and_nothing_else(students: Path) -> None:
    model, tokenizer = app.load_student(str(students / "one"))
    assert app.infer_student(model, tokenizer, "Say 3.", max_new_tokens=20) == "all ok"
    two = app.load_student(str(students / "two"))
    said = app.infer_student(*two, "Say 3.", mode="system2", max_new_tokens=40)
    assert said == "<think>so</think> all ok"
    asked = [app.format_prompt("Say 3.", mode="system2")]
    reply = generate_replies(*two, asked, max_new_tokens=40)[0]
    assert (reply.reasoning, reply.text) == ("so", "all ok")
    item = [{"instruction": "Say 3.", "input": ""}]
    labelled = app.label_with_teacher(*two, item, max_new_tokens=40, temperature=0.0, mode="system2")
    assert labelled[0]["output"] == "<think>\nso\n</think>\n\nall ok"


def test_models_are_compared_and_what_is_not_there_is_skipped(
    students: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = app.load_teacher(str(students / "base"))
    app.compare_models(
        ["Say 1."], system1_path=str(students / "one"), system2_path="gone",
        teacher_model=model, teacher_tokenizer=tokenizer, max_tokens_teacher=150,
        max_tokens_sys1=20,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "Model not found at gone" in said
    assert "Prompt: Say 1." in said
    assert "System 1 student: all ok" in said
    assert "System 2" not in said
    teacher = next(line for line in said.splitlines() if line.startswith("Teacher: "))
    assert len(teacher) <= len("Teacher: ") + app.SHOWN_CHARACTERS + len(" ...")


def test_a_teacher_labels_items_in_their_order(students: Path) -> None:
    model, tokenizer = app.load_teacher(str(students / "one"))
    assert tokenizer.pad_token is not None
    asked = [{"instruction": f"Say {i}."} for i in (1, 2, 3)]
    asked[0]["input"] = "Loud."
    found = app.label_with_teacher(model, tokenizer, asked, temperature=0.01, max_new_tokens=20)
    assert [item["output"] for item in found] == ["all ok"] * 3
    assert [item["instruction"] for item in found] == ["Say 1.", "Say 2.", "Say 3."]
    again = app.label_with_teacher(model, tokenizer, asked, max_new_tokens=20)
    assert again == app.label_with_teacher(model, tokenizer, asked, max_new_tokens=20)


def test_a_model_that_is_nowhere_is_an_error_of_loading(here: Path) -> None:
    for load in (app.load_teacher, app.load_student):
        with pytest.raises(InputError, match="not a model that can be loaded"):
            load(str(here / "nowhere"))


@pytest.mark.parametrize(("distill", "key"), [("distill_system1", "labeled_path"), ("distill_system2", "cot_path")])
def test_what_cannot_be_distilled_is_said(
    students: Path, capsys: pytest.CaptureFixture[str], distill: str, key: str
) -> None:
    run, base, system = getattr(app, distill), str(students / "base"), f"System {distill[-1]}"
    assert run({"student_model": "no such model"}) is None
    assert "Invalid student model: no such model" in (said := capsys.readouterr().out)
    assert "Qwen/Qwen2.5-0.5B-Instruct" in said
    assert run({"student_model": base, key: "none.json"}) is None
    assert f"No data for {system} distillation" in capsys.readouterr().out
    app.save_json("empty.json", [])
    assert run({"student_model": base, key: "empty.json"}) is None
    assert f"No data for {system} distillation" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown key studnt"):
        run({"studnt": base})


def test_a_training_that_fails_gives_no_folder(students: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app.save_json("unanswered.json", [{"instruction": "Say 1.", "input": "", "output": ""}])
    base = str(students / "base")
    assert app.distill_system2({"student_model": base, "cot_path": "unanswered.json"}) is None
    assert "exit status 65" in capsys.readouterr().out


def test_job_files_say_what_was_asked_for() -> None:
    one = app.write_system1_config(num_epochs=3, config_path="a.json", instruction_path="i.json")
    job = load_job(Path(one))
    assert (one, job.job_type, job.dataset.instruction_path) == (
        "a.json", "kd_black_box_local", "i.json")  # fmt: skip
    assert job.training.num_train_epochs == 3
    two = load_job(Path(app.write_system2_config(template_path="t.jinja", config_path="b.json")))
    assert (two.dataset.template, two.models.teacher) == ("t.jinja", None)
    assert app.run_easy_distill("none.json") == 66


def test_prompts_of_both_systems() -> None:
    assert app.format_prompt("Add.", "1 2") == "Add.\n\n1 2"
    assert app.format_prompt("Add.") == "Add."
    asked = app.format_prompt("Add.", "1 2", mode="system2")
    assert asked.startswith("Add.\n\n1 2\n\n")
    assert "step by step" in asked
    assert app.format_prompt("{{ 1 + 1 }}") == "{{ 1 + 1 }}"  # data is not a template


def test_json_is_readable_utf8(here: Path) -> None:
    app.save_json("deep/a.json", {"é": "日本"})
    assert "日本" in (here / "deep/a.json").read_text(encoding="utf-8")
    assert app.read_json("deep/a.json") == {"é": "日本"}


def test_system1_data_from_a_dataset_on_this_disk(students: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(6)]
    Path("set").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), "set/train.parquet")
    app.prepare_system1_dataset("train[:4]", source="set")
    assert app.read_json("data/train_labeled.json") == [
        {"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(4)]  # fmt: skip
    assert [item["output"] for item in app.read_json("data/train_instructions.json")] == [""] * 4
    model, tokenizer = app.load_teacher(str(students / "one"))
    app.prepare_system1_dataset("train[:2]", model, tokenizer, True, "i.json", "l.json", "set")
    assert all(item["output"] not in ("0", "1") for item in app.read_json("l.json"))
    app.prepare_system1_dataset("train[:0]", out_labeled="no.json", source="set")
    assert "No data for System 1 distillation" in capsys.readouterr().out
    assert not Path("no.json").exists()
    with pytest.raises(InputError, match="relabel_with_teacher needs"):
        app.prepare_system1_dataset("train[:2]", relabel_with_teacher=True, source="set")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.jsonl", '{"instruction": "1+0", "output": 0}\n{"instruction": 2, "output": 1}\n'
                      '{"instruction": "none", "output": null}\n'),
        ("set.csv", "instruction,output\n1+0,0\n2,1\nnone,\n"),
    ],
)  # fmt: skip
def test_t19_numbers_are_text_that_the_next_command_reads(here: Path, name: str, content: str) -> None:
    Path(name).write_text(content)
    app.prepare_system1_dataset("train", source=name)
    found = [(item["instruction"], item["output"]) for item in read_items(Path(LABELED))]
    assert found == [("1+0", "0"), ("2", "1"), ("none", "")]
    Path("flags.jsonl").write_text('{"instruction": "a", "input": 0, "output": false}\n')
    app.prepare_system1_dataset("train", source="flags.jsonl")
    assert app.read_json(LABELED) == [{"instruction": "a", "input": "0", "output": "False"}]
    Path("lists.jsonl").write_text('{"instruction": "a", "output": ["b"]}\n')
    with pytest.raises(InputError, match=r"lists\.jsonl: row 0: output is "):
        app.prepare_system1_dataset("train", source="lists.jsonl")


def chain(verbosity: int, difficulty: int, text: str) -> dict[str, Any]:
    return {"Reasoning_Verbosity": {"level": verbosity}, "Cognitive_Difficulty":
            {"level": difficulty}, "full_response": text}  # fmt: skip


def test_system2_data_is_chosen_by_verbosity_and_difficulty(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": "a", "reasoning": [chain(3, 9, "short"), chain(7, 7, "long")]},
        {"question": "b", "reasoning": [chain(9, 2, "easy")]},
        {"question": "c", "reasoning": [chain(6, 6, "at the border")]},
    ]
    Path("omni.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    app.prepare_system2_dataset("train", out_cot="cot.json", source="omni.jsonl")
    assert app.read_json("cot.json") == [
        {"instruction": "a", "input": "", "output": "long"},
        {"instruction": "c", "input": "", "output": "at the border"},
    ]
    Path("other.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    app.prepare_system2_dataset("train", out_cot="no.json", source="other.jsonl")
    assert "Unexpected OmniThought schema, please inspect omni[0]" in capsys.readouterr().out
    assert not Path("no.json").exists()
    with pytest.raises(InputError, match=r"rv_min is 7; levels are 0\.\.1, write 0\.7"):
        app.prepare_system2_dataset("train", 7, source="omni.jsonl")
    with pytest.raises(InputError, match="cannot be loaded"):
        app.prepare_system2_dataset("dev", source="omni.jsonl")
