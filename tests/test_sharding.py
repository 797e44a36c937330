"""A model that two processes keep in parts trains like one (real processes, gloo)."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nexa_distill.errors import InputError
from nexa_distill.settings_file import load_yaml
from nexa_distill.student_config import StudentConfig
from nexa_train import train_sft
from nexa_train.local_models import load_model
from tests.test_distillation import Distilled
from tests.test_train_sft import Run, environment, losses, metrics
from tests.tiny_model import ROOT

LORA = {"rank": 4, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}


def train(run: Run, output: Path, mode: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "scripts/shell/training/run_training.sh", str(run.config), mode]
    return subprocess.run(
        [*command, *run.flags(output)], cwd=ROOT, env=environment() | more, check=False,
        capture_output=True, text=True,
    )  # fmt: skip


def same(one: Path, other: Path) -> None:
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)
    norms = [[row["grad_norm"] for row in metrics(o) if "grad_norm" in row] for o in (one, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert metrics(one)[-1]["val_loss"] == pytest.approx(metrics(other)[-1]["val_loss"], rel=1e-4)
    ours, theirs = (load_file(o / "final/model.safetensors") for o in (one, other))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        assert torch.allclose(weights.float(), theirs[name].float(), atol=2e-2), name
    facts = [json.loads((o / "final/training.json").read_text()) for o in (one, other)]
    assert facts[0]["parameters"] == facts[1]["parameters"]


def test_the_losses_and_the_export_are_those_of_one_process(tmp_path: Path) -> None:
    run = Run(tmp_path, gradient_accumulation=2)
    assert train(run, tmp_path / "one", "false").returncode == 0
    done = train(run, tmp_path / "parts", "fsdp")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "parts", tmp_path / "one")
    assert load_model(str(tmp_path / "parts/final")).config.num_hidden_layers == 3
    assert not list((tmp_path / "parts").glob("step-*"))


def test_f40_killed_in_a_save_it_goes_on_in_parts_or_whole(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert train(run, tmp_path / "one", "false").returncode == 0
    for mode in ("fsdp", "false"):
        output = tmp_path / mode
        killed = train(run, output, "fsdp", NEXA_FAILPOINT="checkpoint:5")
        assert killed.returncode != 0
        assert [path.name for path in output.glob("step-*")] == ["step-000003"]
        done = train(run, output, mode)
        assert done.returncode == 0, done.stderr
        same(output, tmp_path / "one")


def test_an_adapter_and_a_teacher_beside_a_model_in_parts(tmp_path: Path) -> None:
    run = Distilled(tmp_path, {"lora": LORA, "gradient_checkpointing": True}, source="online")
    assert train(run, tmp_path / "one", "false").returncode == 0
    done = train(run, tmp_path / "parts", "fsdp")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "parts", tmp_path / "one")


def test_one_process_has_nobody_to_share_with(tmp_path: Path) -> None:
    run = Run(tmp_path)
    config = load_yaml(run.config, StudentConfig)
    with pytest.raises(InputError, match="--shard: this is one process"):
        train_sft.run(config, run.storage(), run.dataset, tmp_path / "out", shard=True)


def test_two_machines_train_as_one(tmp_path: Path) -> None:
    """As the guide says it, with both machines on this one."""
    run = Run(tmp_path)
    assert train(run, tmp_path / "one", "false").returncode == 0
    machines = []
    for rank in ("0", "1"):
        nodes = {"NEXA_MACHINES": "2", "NEXA_MACHINE_RANK": rank, "NEXA_PROCESSES": "1"}
        address = {"NEXA_MAIN_ADDRESS": "127.0.0.1", "NEXA_MAIN_PORT": "29517"}
        command = ["bash", "scripts/shell/training/run_training.sh", str(run.config), "fsdp"]
        machines.append(
            subprocess.Popen(
                [*command, *run.flags(tmp_path / "two")],
                cwd=ROOT,
                env=environment() | nodes | address,
            )
        )
    try:
        assert [machine.wait(timeout=200) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.send_signal(signal.SIGTERM)
    same(tmp_path / "two", tmp_path / "one")
