"""Job files of both families, on a tiny model, to a checkpoint that answers."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from nexa_distill.errors import InputError, InputMissing, ProviderUnusable
from nexa_distill.storage.atomic import write_json
from nexa_distill.storage.manifests import sha256_path
from nexa_train import easydistill
from nexa_train.data.instructions import read_items
from nexa_train.easydistill_jobs import teacher_labels
from nexa_train.easydistill_jobs.job import load_job
from nexa_train.models import replies
from nexa_train.models.loading import load_for_inference
from tests import warm
from tests.support.tiny_model import ROOT, save_model, tokenizer
from tests.teacher.ledger_teacher import ledger_teacher

pytestmark = pytest.mark.usefixtures("float32")
ITEMS = [{"instruction": f"Say {i % 3}.", "input": "" if i % 2 else "Now.", "output": "all ok"}
         for i in range(12)]  # fmt: skip
QUICK = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 0.003,
         "max_length": 256}  # fmt: skip


def job(folder: Path, **over: Any) -> Path:
    """A job file whose data and model are in `folder`; sections of `over` are laid over it."""
    values: dict[str, Any] = {
        "job_type": "kd_black_box_train_only",
        "dataset": {"labeled_path": str(folder / "labeled.json"), "seed": 42},
        "models": {"student": str(folder / "student")},
        "training": {"output_dir": str(folder / "out"), **QUICK},
    }
    for key, value in over.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "job.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "student")
    write_json(tmp_path / "labeled.json", ITEMS)
    return tmp_path


@pytest.fixture(scope="module")
def speaking(float32: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has learned to answer `ITEMS` and to stop."""
    folder = tmp_path_factory.mktemp("speaking")
    save_model(folder / "student")
    write_json(folder / "labeled.json", ITEMS)
    easydistill.run(load_job(job(folder, training={"num_train_epochs": 16, "learning_rate": 0.01})))
    return folder / "out"


def metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out/run/training/checkpoints/student/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def test_a_black_box_student_learns_the_answers_and_where_they_end(speaking: Path) -> None:
    model, tok = load_for_inference(str(speaking))
    said = replies.generate_replies(model, tok, ["Say 1.", "Say 2.\n\nNow."], max_new_tokens=20)
    assert [reply.text for reply in said] == ["all ok", "all ok"]
    assert all(reply.ended for reply in said)


def test_only_the_answers_and_their_ends_are_in_the_loss(speaking: Path) -> None:
    report = json.loads((speaking / "run/reports/training/preflight.json").read_text())
    assert report["trained_tokens"] == sum(len(item["output"]) + 1 for item in ITEMS)
    assert report["trained_on"] == {"train": len(ITEMS)}


def test_a_finished_job_run_again_changes_nothing(folder: Path) -> None:
    path = job(folder)
    easydistill.run(load_job(path))
    before = {file: (sha256_path(file), file.stat().st_mtime_ns)
              for file in (folder / "out").rglob("*") if file.is_file()}  # fmt: skip
    easydistill.run(load_job(path))
    after = {file: (sha256_path(file), file.stat().st_mtime_ns)
             for file in (folder / "out").rglob("*") if file.is_file()}  # fmt: skip
    # The preflight looks again at what it already has, and says the same.
    moved = {f for f in before | after if before.get(f) != after.get(f)}
    assert not moved


def test_a_local_teacher_fills_what_is_missing_and_is_not_asked_again(
    folder: Path, speaking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(folder / "asked.json", [{"instruction": f"Say {i}."} for i in range(3)])
    write_json(folder / "labeled.json",
               [{"instruction": "Say 0.", "input": "", "output": "by hand"}])  # fmt: skip
    path = job(folder, job_type="kd_black_box_local", models={"teacher": str(speaking)},
               dataset={"instruction_path": str(folder / "asked.json")},
               inference={"temperature": 0.0, "max_new_tokens": 20})  # fmt: skip
    easydistill.run(load_job(path))
    expected = ["by hand", "all ok", "all ok"]
    assert [item["output"] for item in read_items(folder / "labeled.json")] == expected
    (folder / "labeled.json").unlink()
    capsys.readouterr()
    easydistill.run(load_job(path))
    assert "starting" not in (said := capsys.readouterr().out)
    assert "3 of 3 items" in said


def test_t07_variables_of_both_chat_templates_are_settings_of_the_job(
    folder: Path, speaking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    by_model = teacher_labels.answer_by_model

    def seen(load: Any, settings: Any, *rest: Any) -> Any:
        made.extend([load()[1], settings])
        return by_model(load, settings, *rest)

    monkeypatch.setattr(teacher_labels, "answer_by_model", seen)
    write_json(folder / "asked.json", [{"instruction": "Say 1."}])
    path = job(folder, job_type="kd_black_box_local", models={"teacher": str(speaking)},
               dataset={"instruction_path": str(folder / "asked.json"),
                        "labeled_path": str(folder / "new.json")},
               inference={"temperature": 0.0, "max_new_tokens": 20,
                          "chat_template_kwargs": {"think_long": True}},
               training={"chat_template_kwargs": {"enable_thinking": False}})  # fmt: skip
    easydistill.run(load_job(path))
    teacher, settings = made
    assert "set think_long = true" in teacher.chat_template
    assert settings["chat_template_kwargs"] == {"think_long": True}
    student = (folder / "out/chat_template.jinja").read_text()
    assert "set enable_thinking = false" in student
    assert "think_long" not in student


def test_what_is_known_already_stays_and_repeated_questions_keep_their_answers() -> None:
    def said(question: str, output: str = "") -> dict[str, Any]:
        return {"instruction": question, "input": "", "output": output, "id": question}

    known = [said("a", "first"), said("a", "second"), said("elsewhere", "kept"), said("b")]
    asked = [said("a"), said("b", "not the teacher's"), said("a"), said("a")]
    found = [item["output"] for item in easydistill.merge_outputs(asked, known)]
    assert found == ["first", "", "second", "", "kept"]


def test_a_labelled_file_that_is_its_own_instruction_file_is_only_filled(folder: Path, speaking: Path) -> None:
    items = [{"instruction": "Say 0.", "input": "", "output": "one way", "id": 7},
             {"instruction": "Say 0.", "input": "", "output": "another", "id": 8},
             {"instruction": "Say 1.", "input": "", "output": " ", "id": 9}]  # fmt: skip
    write_json(folder / "labeled.json", items)
    path = job(folder, job_type="kd_black_box_local", models={"teacher": str(speaking)},
               dataset={"instruction_path": str(folder / "labeled.json")},
               inference={"temperature": 0.0, "max_new_tokens": 20})  # fmt: skip
    easydistill.run(load_job(path))
    assert read_items(folder / "labeled.json") == [*items[:2], items[2] | {"output": "all ok"}]


def test_a_new_template_is_a_new_question(folder: Path, speaking: Path) -> None:
    write_json(folder / "asked.json", [{"instruction": "Say 1."}])
    (folder / "t.jinja").write_text("Well. {{ instruction }}{{ input }}")
    shared: dict[str, Any] = {
        "job_type": "kd_black_box_local",
        "models": {"teacher": str(speaking)},
        "inference": {"temperature": 0.0, "max_new_tokens": 20},
    }
    data = {"instruction_path": str(folder / "asked.json"), "labeled_path": str(folder / "n.json")}
    for more in ({}, {"template": str(folder / "t.jinja")}):
        (folder / "n.json").unlink(missing_ok=True)
        easydistill.run(load_job(job(folder, dataset={**data, **more}, **shared)))
    config = easydistill.pipeline_config(load_job(folder / "job.json"))
    answered = pq.read_table(config.storage.path_of("collected_dataset")).to_pylist()
    assert [row["user_prompt"] for row in answered] == ["Well. Say 1."]


def test_another_student_in_the_same_folder_replaces_the_first_one_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "labeled.json", ITEMS)
    left_over = tmp_path / "out/model-00001-of-00002.safetensors"
    for name, layers in (("student", 4), ("smaller", 2)):
        save_model(tmp_path / name, layers)
        (tmp_path / name / "chat_template.jinja").unlink()
        if name == "smaller":
            left_over.write_bytes(b"of an earlier student with shards")
        easydistill.run(load_job(job(tmp_path, models={"student": str(tmp_path / name)})))
    model, _ = load_for_inference(str(tmp_path / "out"))
    assert model.config.num_hidden_layers == 2
    assert not left_over.exists()


def test_a_copy_that_is_cut_short_does_not_look_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, output = tmp_path / "final", tmp_path / "out"
    for folder, text in ((final, "new"), (output, "old")):
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(text)
    (output / "model-00001-of-00002.safetensors").touch()
    monkeypatch.setattr("shutil.copy2", _full_disk)
    with pytest.raises(OSError, match="No space"):
        easydistill.publish_student(final, output)
    assert not (output / "config.json").exists()
    monkeypatch.undo()
    easydistill.publish_student(final, output)
    assert {file.name: file.read_text() for file in output.iterdir()} == {
        "config.json": "new", "model.safetensors": "new"}  # fmt: skip


def _full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_answers_cut_at_the_limit_are_not_trained_on(folder: Path, speaking: Path) -> None:
    write_json(folder / "asked.json", [{"instruction": "Say 1."}])
    path = job(folder, job_type="kd_black_box_local", models={"teacher": str(speaking)},
               dataset={"instruction_path": str(folder / "asked.json"),
                        "labeled_path": str(folder / "new.json")},
               inference={"temperature": 0.0, "max_new_tokens": 2})  # fmt: skip
    with pytest.raises(InputError, match="no item has an output"):
        easydistill.run(load_job(path))
    assert not (folder / "out/config.json").exists()


def test_more_items_without_an_output_than_may_be_train_nothing(folder: Path) -> None:
    write_json(folder / "labeled.json", [*ITEMS[1:], {**ITEMS[0], "output": " "}])
    with pytest.raises(InputError, match=r"labeled\.json: 1 of 12 items have no output.*2\.0%"):
        easydistill.run(load_job(job(folder)))
    assert not (folder / "out/config.json").exists()
    easydistill.run(load_job(job(folder, training={"max_refused_share": 0.1})))
    report = json.loads((folder / "out/run/reports/training/preflight.json").read_text())
    assert report["trained_on"] == {"train": 11}


def test_an_api_is_asked_once_for_each_instruction(folder: Path) -> None:
    write_json(folder / "asked.json", [{"instruction": f"What is {i}?"} for i in range(5)])
    with ledger_teacher(folder / "teacher", capabilities=["models"]) as teacher:
        path = job(folder, job_type="kd_black_box_api",
                   dataset={"instruction_path": str(folder / "asked.json"),
                            "labeled_path": str(folder / "new.json")},
                   inference={"base_url": teacher.base_url, "api_key": "sk-secret", "stream": True},
                   training={"max_length": 4096})  # fmt: skip
        easydistill.run(load_job(path))
        (folder / "new.json").unlink()
        easydistill.run(load_job(path))
        assert sorted(teacher.billed().values()) == [1] * 5
    assert all(item["output"] for item in read_items(folder / "new.json"))
    written = b"".join(f.read_bytes() for f in (folder / "out").rglob("*") if f.is_file())
    assert b"sk-secret" not in written


def test_an_api_that_is_not_there_is_said(folder: Path) -> None:
    data = {
        "instruction_path": str(folder / "labeled.json"), "labeled_path": str(folder / "new.json"),
    }  # fmt: skip
    path = job(folder, job_type="kd_black_box_api", dataset=data,
               inference={"base_url": "http://127.0.0.1:9/v1"})  # fmt: skip
    with pytest.raises(ProviderUnusable, match=r"set models\.teacher"):
        easydistill.run(load_job(path))


def white_box(folder: Path, teacher: Path, kind: str = "kd_white_box", **over: Any) -> Path:
    return job(folder, job_type=kind, models={"teacher": str(teacher)},
               dataset={"instruction_path": str(folder / "labeled.json"),
                        "logits_path": str(folder / "logits.jsonl")},
               distillation={"kd_ratio": 0.5, "max_seq_length": 128},
               inference={"top_logits_num": 8}, **over)  # fmt: skip


@pytest.fixture
def with_logits(folder: Path, speaking: Path) -> Path:
    easydistill.run(load_job(white_box(folder, speaking)))
    return folder


def test_a_white_box_job_writes_probabilities_that_another_job_trains_on(
    with_logits: Path, speaking: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = (with_logits / "logits.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == len(ITEMS)
    assert len(first) == len(ITEMS[0]["output"]) + 1
    assert all(len(position) == 8 and sum(position.values()) <= 1.001 for position in first)
    end = str(tokenizer().eos_token_id)
    assert max(first[-1], key=first[-1].__getitem__) == end
    train_only = white_box(with_logits, speaking, "kd_white_box_train_only",
                           training={"output_dir": str(with_logits / "again/out")})  # fmt: skip
    easydistill.run(load_job(train_only))
    assert losses(with_logits / "again") == pytest.approx(losses(with_logits), rel=2e-3)


def test_t01_both_divergences_end_with_a_student(folder: Path, speaking: Path, precision: str) -> None:
    for kind in ("forward_kld", "reverse_kld"):
        path = white_box(folder, speaking, training={"output_dir": str(folder / kind / "out")})
        values = json.loads(path.read_text())
        values["distillation"]["distillation_type"] = kind
        path.write_text(json.dumps(values))
        easydistill.run(load_job(path))
        model, _ = load_for_inference(str(folder / kind / "out"))
        assert model.dtype == getattr(torch, precision)
        assert losses(folder / kind)[-1] < losses(folder / kind)[0]
    assert losses(folder / "forward_kld") != losses(folder / "reverse_kld")


def _shift(lines: list[str]) -> list[str]:
    moved = []
    for line in lines:
        positions = json.loads(line)
        moved.append(json.dumps([positions[-1], *positions[:-1]]))
    return moved


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], "11 lines, expected 12"),
        (lambda lines: [*lines, lines[0]], "more than 12 lines"),
        (lambda lines: [json.dumps(json.loads(lines[0])[:-1]), *lines[1:]], "6 positions, expec"),
        (_shift, "fit better to the positions one later"),
        (lambda lines: [json.dumps([{"5": 0.9}] * 7) for _ in lines], "only 0 of 84 trained tok"),
        (lambda lines: ["[[", *lines[1:]], "line 1 is not JSON"),
        (lambda lines: [lines[0].replace('{"', '{"9', 1), *lines[1:]], "vocabulary has 259"),
        (lambda lines: [json.dumps([{"5": 0.5}] * 7), *lines[1:]], "positions hold 1 to 8 tokens"),
        (lambda lines: [json.dumps([{"5": 1.5}] * 7), *lines[1:]], "add up to 1.5"),
    ],
)  # fmt: skip
def test_misaligned_probabilities_are_refused(with_logits: Path, speaking: Path, change: Any, said: str) -> None:
    path = with_logits / "logits.jsonl"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    made = white_box(with_logits, speaking, "kd_white_box_train_only",
                     training={"output_dir": str(with_logits / "again/out")})  # fmt: skip
    with pytest.raises(InputError, match=said):
        easydistill.run(load_job(made))
    assert not (with_logits / "again/out/config.json").exists()


def test_a_model_without_a_chat_template_trains_and_answers_in_the_plain_one(tmp_path: Path) -> None:
    save_model(tmp_path / "student")
    (tmp_path / "student/chat_template.jinja").unlink()
    write_json(tmp_path / "labeled.json", ITEMS)
    training = {"num_train_epochs": 16, "learning_rate": 0.01}
    easydistill.run(load_job(job(tmp_path, training=training)))
    model, tok = load_for_inference(str(tmp_path / "out"))
    asked = tok.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False,
                                    add_generation_prompt=True)  # fmt: skip
    assert asked == "User: Hi\nAssistant:"
    said = replies.generate_replies(model, tok, ["Say 2."], max_new_tokens=20)[0]
    assert (said.text, said.ended) == ("all ok", True)


def test_a_template_of_whole_conversations_is_not_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = folder / "chat_template_kd.jinja"
    theirs.write_text("{{ message.content }}{% if add_output %}{{ message.output }}{% endif %}")
    easydistill.run(load_job(job(folder, dataset={"template": str(theirs)})))
    assert "renders whole conversations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"job_type": "kd_blackbox_local"}, r'did you mean "kd_black_box_local"'),
        ({"job_type": "rank_dpo_api"}, "the types that run here: kd_black_box_api"),
        ({"job_type": "kd_white_box"}, r"missing key dataset\.instruction_path"),
        ({"dataset": {"label_path": "x"}}, r'unknown key dataset\.label_path.*labeled_path'),
        ({"training": {"lr_scheduler_type": "linear"}}, r"training\.lr_scheduler_type is 'linear'"),
        ({"training": {"num_train_epochs": 0}}, r"training\.num_train_epochs is 0"),
    ],
)  # fmt: skip
def test_what_a_job_file_cannot_mean_is_named(folder: Path, over: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_job(job(folder, **over))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "expected a list"), ("[1]", "item 0 is '1', expected an object"),
        ('[{"instruction": "a", "output": [3]}]', r"output is '\[3\]', expected a string or a num"),
        ('[{"input": "a"}]', "item 0: has no instruction"), ("[", "not JSON"),
    ],
)  # fmt: skip
def test_what_is_not_instruction_data_is_named(folder: Path, content: str, said: str) -> None:
    (folder / "labeled.json").write_text(content)
    with pytest.raises(InputError, match=said):
        easydistill.run(load_job(job(folder)))


def test_t19_a_number_is_its_text_and_null_is_empty(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(
        '[{"instruction": 1, "input": 0, "output": false}, {"instruction": "a", "output": null},'
        ' {"instruction": "b", "output": 0.5}]'
    )
    found = [tuple(item.values()) for item in read_items(tmp_path / "items.json")]
    assert found == [("1", "0", "False"), ("a", "", ""), ("b", "0.5", "")]


def test_the_command_ends_with_the_code_of_what_happened(folder: Path) -> None:
    def code(path: Path) -> tuple[int, str]:
        command = [warm.python(), "-m", "nexa_train.easydistill", "--config", str(path)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        return done.returncode, done.stderr

    assert code(folder / "none.json")[0] == InputMissing.exit_code
    status, said = code(job(folder, job_type="mllm_kd"))
    assert (status, "job_type is 'mllm_kd'" in said) == (InputError.exit_code, True)
    assert code(job(folder, inference={"trust_remote_code": True}))[0] == 0
    assert (folder / "out/model.safetensors").exists()
