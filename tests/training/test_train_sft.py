import functools
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nexa_distill.errors import InputError, QualityGateMissed
from nexa_distill.settings.pipeline import Storage, load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.manifests import sha256_path
from nexa_train import train_sft
from nexa_train.data.chat_tokenization import IGNORE
from nexa_train.data.collate import collate_padded
from nexa_train.data.dataset import epoch_batches, load_dataset
from nexa_train.models.loading import load_model
from nexa_train.training import fsdp, student_model
from nexa_train.training.assistant_loss import AnswerLoss
from nexa_train.training.trainer import learning_rate
from tests import warm
from tests.support.precision import PRECISIONS, SAME_LOSS, SAME_NORM, SAME_VAL_LOSS, computing_in
from tests.support.tiny_model import ROOT, save_config, save_dataset, save_model, tokenizer
from tests.sweeps import fewer, some

pytestmark = pytest.mark.usefixtures("float32")


class Run:
    """A tiny student, its data and its settings in one folder."""

    def __init__(self, folder: Path, **train: Any) -> None:
        self.folder = folder
        self.model = save_model(folder / "model")
        self.dataset = save_dataset(folder / "sft.parquet")
        self.config = save_config(folder / "student.yaml", self.model, **train)
        self.pipeline = folder / "pipeline.yaml"
        base = ROOT / "configs/distill_config.yaml"
        self.pipeline.write_text(f"extends: {base}\nstorage: {{root: {folder / 'data'}}}\n")

    def storage(self) -> Storage:
        return load_config(self.pipeline).storage

    def here(self, output: Path) -> bool:
        config = load_yaml(self.config, StudentConfig)
        return train_sft.run(config, self.storage(), self.dataset, output)

    def flags(self, output: Path) -> list[str]:
        return ["--pipeline-config", str(self.pipeline), "--dataset", str(self.dataset),
                "--output", str(output)]  # fmt: skip

    def command(self, output: Path) -> list[str]:
        python = [warm.python(), "-m", "nexa_train.train_sft", "--config", str(self.config)]
        return [*python, *self.flags(output)]


def environment() -> dict[str, str]:
    python = {name: warm.python() for name in ("NEXA_PYTHON", "PYTHON_EXEC")}  # ours, torchrun's
    return {**os.environ, "OMP_NUM_THREADS": "1", **python}


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in metrics(output) if "loss" in row}


def follow(output: Path, other: Path, precision: str) -> None:
    """Assert that two runs compute the same, but for the order of their sums."""
    assert losses(output) == pytest.approx(losses(other), rel=SAME_LOSS[precision])
    # AdamW forgives a wrong scale of the gradients, clipping and this do not.
    norms = [[row["grad_norm"] for row in metrics(o) if "grad_norm" in row] for o in (output, other)]
    assert norms[0] == pytest.approx(norms[1], rel=SAME_NORM[precision])
    ends = [metrics(o)[-1].get("val_loss") for o in (output, other)]
    assert ends[0] == pytest.approx(ends[1], rel=SAME_VAL_LOSS[precision])


def train(run: Run, output: Path, mode: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The documented command; `mode` is false, true (two processes) or fsdp."""
    command = ["bash", "scripts/shell/training/run_training.sh", str(run.config), mode]
    return subprocess.run(
        [*command, *run.flags(output)], cwd=ROOT, env=environment() | more, check=False,
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(precision: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    run = Run(tmp_path_factory.mktemp("finished"))
    output = run.folder / "output"
    assert run.here(output)
    return run, output


def test_the_student_learns_and_leaves_a_loadable_smaller_model(finished: tuple[Run, Path]) -> None:
    _, output = finished
    rows = metrics(output)
    assert rows[0]["step"] == 0
    assert rows[-1]["val_loss"] < 0.8 * rows[0]["val_loss"]
    assert [row["step"] for row in rows] == list(range(13))
    model = AutoModelForCausalLM.from_pretrained(output / "final", use_safetensors=True)
    assert model.config.num_hidden_layers == 3
    facts = json.loads((output / "final/training.json").read_text())
    assert facts["parameters"] == model.num_parameters()
    assert facts["val_loss"] == rows[-1]["val_loss"]
    assert not list(output.glob("step-*"))
    assert list(output.glob("tensorboard/events*"))


def test_a_finished_run_does_nothing_and_changes_no_byte(finished: tuple[Run, Path]) -> None:
    run, output = finished
    before = sha256_path(run.folder), [p.stat().st_mtime_ns for p in sorted(output.rglob("*"))]
    assert not run.here(output)
    after = sha256_path(run.folder), [p.stat().st_mtime_ns for p in sorted(output.rglob("*"))]
    assert after == before


def test_f40_killed_in_the_middle_it_ends_with_the_same_losses(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=10, save_every_steps=10)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    training = warm.Process(run.command(killed), cwd=ROOT, env=environment())
    end = time.monotonic() + 120
    while not list(killed.glob("step-*")) and time.monotonic() < end:
        time.sleep(0.02)
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert not (killed / "final").exists(), "it was over before it was killed"
    (killed / ".step-000999.tmp").mkdir()  # what a kill during a save leaves
    subprocess.run(run.command(killed), cwd=ROOT, env=environment(), check=True)
    subprocess.run(run.command(whole), cwd=ROOT, env=environment(), check=True)
    assert losses(killed) == losses(whole)
    assert sorted(losses(killed)) == list(range(1, 61))
    trained, undisturbed = (load_file(o / "final/model.safetensors") for o in (killed, whole))
    assert all(torch.equal(trained[name], undisturbed[name]) for name in undisturbed)


def test_two_processes_follow_the_losses_of_one(finished: tuple[Run, Path], precision: str) -> None:
    run, output = finished
    done = train(run, run.folder / "many", "true")
    assert done.returncode == 0, done.stderr
    follow(run.folder / "many", output, precision)


def test_padded_batches_follow_the_losses_of_packed_ones(
    finished: tuple[Run, Path], tmp_path: Path, precision: str
) -> None:
    run = Run(tmp_path, packing=False)
    run.here(tmp_path / "output")
    follow(tmp_path / "output", finished[1], precision)


def test_a_training_in_bfloat16_is_not_one_in_float32(tmp_path: Path) -> None:
    """Else every test of both precisions would look at one of them twice."""
    run, found = Run(tmp_path, epochs=1), {}
    for name in PRECISIONS:
        with computing_in(name):
            run.here(tmp_path / name)
        found[name] = losses(tmp_path / name)
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=1e-2)
    assert found["bfloat16"] != found["float32"]


@pytest.mark.parametrize("distributed", ["false", "true"])
def test_a_student_that_is_none_is_bad_input_with_one_process_or_many(tmp_path: Path, distributed: str) -> None:
    run = Run(tmp_path)
    config = yaml.safe_load(run.config.read_text()) | {"student": str(tmp_path)}
    run.config.write_text(yaml.safe_dump(config))
    script = "scripts/shell/training/run_training.sh"
    command = ["bash", script, str(run.config), distributed, *run.flags(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 65, done.stderr
    assert f"{tmp_path}: not a model that can be loaded" in done.stderr


def test_the_loss_is_that_of_the_whole_logits(tmp_path: Path) -> None:
    model = load_model(str(save_model(tmp_path / "model")))
    data = load_dataset(save_dataset(tmp_path / "sft.parquet"), tokenizer(), 256)
    batch = collate_padded(data.train[:4], torch.device("cpu"), pad_id=2)
    whole = model(**batch).loss * sum(s.trained_tokens for s in data.train[:4])
    loss = AnswerLoss(model)
    assert float(loss(batch).detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    assert loss.logits.plain_head
    labels_of_padding = batch["labels"][batch["attention_mask"] == 0]
    assert labels_of_padding.numel()
    assert bool((labels_of_padding == IGNORE).all())


def test_gradient_accumulation_weighs_by_tokens(tmp_path: Path) -> None:
    whole = Run(tmp_path / "a", batch_size=8, epochs=1)
    parts = Run(tmp_path / "b", batch_size=8, epochs=1, gradient_accumulation=3)
    for run in (whole, parts):
        run.here(run.folder / "output")
    first = next(iter(losses(parts.folder / "output").values()))
    model = load_model(str(parts.model), [0, 1, 3])
    data = load_dataset(parts.dataset, tokenizer(), 256)
    total = float(AnswerLoss(model)(collate_padded(data.train, torch.device("cpu"), pad_id=2)))
    assert first == pytest.approx(total / sum(s.trained_tokens for s in data.train), rel=0.01)
    assert len(losses(whole.folder / "output")) == 3


SPEED_OPTIONS = [("gradient_checkpointing", True), ("gradient_checkpointing", False), ("compile", True)]
ONE_TRAINING = "each is one more training; compiling one takes half a minute"


@pytest.mark.parametrize(("setting", "packing"), some("speed options", SPEED_OPTIONS, 1, why=ONE_TRAINING))
def test_a_speed_option_leaves_the_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, packing: bool
) -> None:
    why = "C++ for a whole training takes a minute; test_packed_attention compiles a layer to it"
    if fewer("back ends of a compiled training", 1, 2, why=why) == 1:
        traced = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
        monkeypatch.setattr(torch.nn.Module, "compile", traced)
    curves = []
    for wanted in (False, True):
        run = Run(tmp_path / str(wanted), packing=packing, **{setting: wanted})
        run.here(run.folder / "out")
        curves.append(losses(run.folder / "out"))
    assert curves[1] == pytest.approx(curves[0], rel=1e-6 if setting != "compile" else 1e-3)
    assert len(curves[1]) == 12


def layers_run(run: Run) -> int:
    """How often layers compute in one forward and backward pass."""
    config = load_yaml(run.config, StudentConfig)
    model = student_model.build_student(config, str(run.model))
    student_model.apply_speed_options(model, config.train)
    ran: list[int] = []
    for layer in fsdp.decoder_layers(model):
        mlp: Any = layer.mlp
        mlp.register_forward_pre_hook(lambda *_: ran.append(1))
    data = load_dataset(run.dataset, tokenizer(), 256)
    loss = AnswerLoss(model)
    ran.clear()
    loss(collate_padded(data.train[:4], torch.device("cpu"), pad_id=2)).backward()
    return len(ran)


def test_layers_are_computed_again_instead_of_kept(tmp_path: Path) -> None:
    assert layers_run(Run(tmp_path / "a")) == 3
    assert layers_run(Run(tmp_path / "b", gradient_checkpointing=True)) == 6


def test_every_layer_is_compiled_and_without_a_compiler_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, compile=True)
    config = load_yaml(run.config, StudentConfig)
    model = student_model.build_student(config, str(run.model))
    before = [name for name, _ in model.named_parameters()]
    student_model.apply_speed_options(model, config.train)
    assert all(layer._compiled_call_impl is not None for layer in fsdp.decoder_layers(model))
    assert [name for name, _ in model.named_parameters()] == before
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(InputError, match="apt-get install g"):
        student_model.apply_speed_options(model, config.train)


def test_a_fused_loss_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, fused_loss=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"needs a GPU.*train\.fused_loss: false"):
        run.here(tmp_path / "out")


def test_how_fast_it_is_computed_does_not_make_a_finished_run_stale(finished: tuple[Run, Path]) -> None:
    run, output = finished
    before = run.config.read_text()
    values = yaml.safe_load(before)
    values["train"] |= {"gradient_checkpointing": True, "compile": True, "fused_loss": True}
    run.config.write_text(yaml.safe_dump(values))
    assert not run.here(output)
    run.config.write_text(before)


def test_an_epoch_has_every_sample_once_and_depends_on_seed_and_epoch_only(tmp_path: Path) -> None:
    data = load_dataset(save_dataset(tmp_path / "sft.parquet", train=37), tokenizer(), 256)
    batches = epoch_batches(data.train, 4, 7, 0)
    names = [sample.sample_id for batch in batches for sample in batch]
    assert sorted(names) == sorted(sample.sample_id for sample in data.train)
    assert batches == epoch_batches(data.train, 4, 7, 0)
    assert batches != epoch_batches(data.train, 4, 7, 1)


def test_too_long_samples_are_counted_and_none_left_is_an_error(tmp_path: Path) -> None:
    dataset = save_dataset(tmp_path / "sft.parquet")
    data = load_dataset(dataset, tokenizer(), 110)
    assert data.skipped["over_max_length"] > 0
    assert len(data.train) + len(data.val) + sum(data.skipped.values()) == data.rows == 28
    with pytest.raises(InputError, match="no sample to train on"):
        load_dataset(dataset, tokenizer(), 20)


def test_a_loss_that_is_not_finite_names_its_samples(tmp_path: Path) -> None:
    run = Run(tmp_path, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(QualityGateMissed, match="sample-"):
        run.here(tmp_path / "output")
    assert not (tmp_path / "output/final").exists()


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_the_documented_configuration_path_resolves() -> None:
    assert (ROOT / "nexa_train/configs/baseline_distill.yaml").samefile(ROOT / "configs/baseline_distill.yaml")
    wrong = ["bash", "scripts/shell/training/run_training.sh", "no-such.yaml"]
    seen = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, check=False)
    assert seen.returncode == 66
    assert "configs/baseline_distill.yaml" in seen.stderr


def test_the_precision_that_is_set_is_computed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curves = {}
    for name, title in (("fp32", "float32"), ("bf16", "bfloat16")):
        run = Run(tmp_path / name, precision=name)
        with computing_in("float32"):  # by the environment
            run.here(run.folder / "out")
        assert f"in {title}\n" in capsys.readouterr().out
        curves[name] = losses(run.folder / "out")
    assert curves["fp32"] != curves["bf16"]
    assert curves["fp32"] == pytest.approx(curves["bf16"], rel=0.01)
