"""LoRA: only the adapter learns, and what is exported is a plain model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train.data import packing
from nexa_train.data.dataset import load_dataset
from nexa_train.models.loading import load_model
from nexa_train.training import checkpoints, lora, student_model
from nexa_train.training.assistant_loss import AnswerLoss
from tests.support.precision import SAME_LOSS, in_float32
from tests.support.tiny_model import ROOT, tokenizer
from tests.training.test_checkpoints import ends_as, stopped
from tests.training.test_distillation import Distilled
from tests.training.test_train_sft import Run, follow, losses, metrics, train

pytestmark = pytest.mark.usefixtures("float32")
CPU = torch.device("cpu")
LORA = {"rank": 4, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}


def built(run: Run) -> Any:
    return student_model.build_student(load_yaml(run.config, StudentConfig), str(run.model))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(3, 40)[None]).logits
    return found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, lora=LORA)


@pytest.fixture(scope="module")
def finished(precision: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An adapter that was trained, packed, in one process; in its folder `out`."""
    run = Run(tmp_path_factory.mktemp("finished"), lora=LORA)
    assert run.here(run.folder / "out")
    return run


def test_a_step_changes_the_adapter_and_nothing_else(run: Run) -> None:
    model = built(run)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for _, p in checkpoints.trainable_parameters(model)], lr=0.1)
    data = load_dataset(run.dataset, tokenizer(), 256)
    packing.enable_packing(model)
    for _ in range(2):  # A has no gradient before B has moved
        AnswerLoss(model)(packing.collate_packed(data.train[:4], CPU)).backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {n for n, tensor in model.named_parameters() if not torch.equal(tensor, before[n])}
    assert changed == {name for name, _ in checkpoints.trainable_parameters(model)}
    assert all("lora_" in name for name in changed)
    assert len(changed) == 2 * 7 * 3  # A and B of seven linear layers in three decoder layers


def test_a_fresh_adapter_changes_nothing_and_a_merged_one_says_what_it_said(run: Run) -> None:
    model, plain = built(run), load_model(str(run.model), [0, 1, 3])
    assert torch.equal(logits(model), logits(plain))
    for name, tensor in checkpoints.trainable_parameters(model):
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.3)
    before = logits(model)
    assert not torch.allclose(before, logits(plain), atol=1e-2)
    lora.merge_adapters(model)
    assert torch.allclose(before, logits(model), atol=1e-5)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_dropout_does_not_hide_a_plain_head(tmp_path: Path) -> None:
    model = built(Run(tmp_path, lora=LORA | {"dropout": 0.5}))
    for name, tensor in checkpoints.trainable_parameters(model):
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.3)
    assert model.training
    assert AnswerLoss(model).logits.plain_head
    assert model.training


@in_float32
def test_t26_the_export_needs_no_peft_and_keeps_what_was_learnt(finished: Run, precision: str) -> None:
    out = finished.folder / "out"
    rows = metrics(out)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    program = (
        "import sys; sys.modules['peft'] = None\n"
        "from nexa_train.models.loading import load_model\n"
        f"print(load_model({str(out / 'final')!r}).config.num_hidden_layers)"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "3"
    model = load_model(str(out / "final"))
    packing.enable_packing(model)
    val = load_dataset(finished.dataset, tokenizer(), 256).val
    with torch.no_grad():
        nats = float(AnswerLoss(model.eval())(packing.collate_packed(val, CPU)))
    tokens = sum(sample.trained_tokens for sample in val)
    assert nats / tokens == pytest.approx(rows[-1]["val_loss"], rel=0.01)  # bfloat16 on disk


def test_f40_t27_a_full_disk_in_a_save_of_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    run = Run(tmp_path, lora=LORA | {"dropout": 0.2})
    run.here(tmp_path / "out")
    stopped(run, tmp_path / "again", monkeypatch, 7)
    saved = load_file(tmp_path / "again/step-000006" / checkpoints.WEIGHTS)
    assert saved.keys() == {name for name, _ in checkpoints.trainable_parameters(built(run))}
    run.here(tmp_path / "again")
    ends_as(run, tmp_path / "again")


def test_packed_or_padded_the_losses_are_the_same(finished: Run, tmp_path: Path, precision: str) -> None:
    padded = Run(tmp_path, packing=False, lora=LORA)
    padded.here(tmp_path / "out")
    follow(tmp_path / "out", finished.folder / "out", precision)


@pytest.mark.parametrize("source", ["cache", "online"])
def test_an_adapter_learns_from_probabilities(tmp_path: Path, source: str, precision: str) -> None:
    train = {"lora": LORA, "learning_rate": 0.02, "epochs": 4}
    run = Distilled(tmp_path / "lora", train, source=source, kd_ratio=1.0)
    run.here(run.folder / "out")
    whole = Distilled(tmp_path / "whole", {"epochs": 1}, source=source, kd_ratio=1.0)
    whole.here(whole.folder / "out")
    curve, beside = losses(run.folder / "out"), losses(whole.folder / "out")
    # A fresh adapter changes nothing.
    assert curve[1] == pytest.approx(beside[1], rel=SAME_LOSS[precision])
    assert list(curve.values())[-1] < 0.9 * curve[1]


def test_t29_two_processes_follow_the_losses_of_one(finished: Run, precision: str) -> None:
    done = train(finished, finished.folder / "two", "true")
    assert done.returncode == 0, done.stderr
    follow(finished.folder / "two", finished.folder / "out", precision)


def test_layers_that_the_model_has_not_are_named(tmp_path: Path) -> None:
    run = Run(tmp_path, lora=LORA | {"target_modules": ["no_proj"]})
    with pytest.raises(InputError, match=r"train\.lora\.target_modules: \['no_proj'\]"):
        run.here(tmp_path / "out")
