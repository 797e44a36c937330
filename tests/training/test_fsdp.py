"""A model that two processes keep in parts trains like one (real processes, gloo)."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train import train_sft
from nexa_train.models.loading import load_model
from tests.support.precision import SAME_DIVERGENCE, SAME_LOSS, in_float32
from tests.support.tiny_model import ROOT
from tests.training.test_distillation import Distilled
from tests.training.test_train_sft import Run, environment, follow, metrics, train

pytestmark = pytest.mark.usefixtures("float32")
LORA = {"rank": 4, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}


def same(one: Path, other: Path, precision: str) -> None:
    follow(one, other, precision)
    ours, theirs = (load_file(o / "final/model.safetensors") for o in (one, other))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        assert torch.allclose(weights.float(), theirs[name].float(), atol=2e-2), name
    facts = [json.loads((o / "final/training.json").read_text()) for o in (one, other)]
    assert facts[0]["parameters"] == facts[1]["parameters"]


@pytest.fixture(scope="module")
def whole(precision: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """12 steps of two batches in one process, undisturbed, in its folder `one`."""
    run = Run(tmp_path_factory.mktemp("whole"), epochs=4, gradient_accumulation=2)
    run.here(run.folder / "one")
    return run


def test_t31_the_losses_and_the_export_are_those_of_one_process(whole: Run, tmp_path: Path, precision: str) -> None:
    done = train(whole, tmp_path / "parts", "fsdp")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "parts", whole.folder / "one", precision)
    assert load_model(str(tmp_path / "parts/final")).config.num_hidden_layers == 3
    assert not list((tmp_path / "parts").glob("step-*"))


@in_float32
@pytest.mark.parametrize("mode", ["fsdp", "false"])
def test_f40_killed_in_a_save_it_goes_on_in_parts_or_whole(
    whole: Run, tmp_path: Path, mode: str, precision: str
) -> None:
    output = tmp_path / mode
    killed = train(whole, output, "fsdp", NEXA_FAILPOINT="checkpoint:5")
    assert killed.returncode != 0
    assert [path.name for path in output.glob("step-*")] == ["step-000003"]
    done = train(whole, output, mode)
    assert done.returncode == 0, done.stderr
    same(output, whole.folder / "one", precision)


def test_an_adapter_and_a_teacher_beside_a_model_in_parts(tmp_path: Path, precision: str) -> None:
    run = Distilled(tmp_path, {"lora": LORA, "gradient_checkpointing": True}, source="online")
    run.here(tmp_path / "one")
    done = train(run, tmp_path / "parts", "fsdp")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "parts", tmp_path / "one", precision)
    both = [metrics(tmp_path / name)[1:] for name in ("parts", "one")]
    for part, limit in (("cross_entropy", SAME_LOSS), ("divergence", SAME_DIVERGENCE)):
        ours, theirs = ([row[part] for row in rows] for rows in both)
        assert ours == pytest.approx(theirs, rel=limit[precision])


def test_one_process_has_nobody_to_share_with(tmp_path: Path) -> None:
    run = Run(tmp_path)
    config = load_yaml(run.config, StudentConfig)
    with pytest.raises(InputError, match="--shard: this is one process"):
        train_sft.run(config, run.storage(), run.dataset, tmp_path / "out", shard=True)


@in_float32
def test_two_machines_train_as_one(whole: Run, tmp_path: Path, precision: str) -> None:
    """As the guide says it, with both machines on this one."""
    machines = []
    for rank in ("0", "1"):
        nodes = {"NEXA_MACHINES": "2", "NEXA_MACHINE_RANK": rank, "NEXA_PROCESSES": "1"}
        address = {"NEXA_MAIN_ADDRESS": "127.0.0.1", "NEXA_MAIN_PORT": "29517"}
        command = ["bash", "scripts/shell/training/run_training.sh", str(whole.config), "fsdp"]
        machines.append(
            subprocess.Popen([*command, *whole.flags(tmp_path / "two")], cwd=ROOT, env=environment() | nodes | address)
        )
    try:
        assert [machine.wait(timeout=200) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.send_signal(signal.SIGTERM)
    same(tmp_path / "two", whole.folder / "one", precision)
