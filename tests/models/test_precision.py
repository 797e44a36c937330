"""Which precision is computed in, and who decides it."""

import subprocess
import sys

import pytest
import torch

from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train.models.precision import has_native_bf16, uses_bf16
from tests.support.tiny_model import ROOT


@pytest.mark.parametrize(("value", "wanted"), [("on", True), ("off", False)])
def test_the_environment_decides_it_here_and_in_child_processes(
    monkeypatch: pytest.MonkeyPatch, value: str, wanted: bool
) -> None:
    monkeypatch.setenv("NEXA_BF16", value)
    assert has_native_bf16() is wanted
    program = "from nexa_train.models.precision import has_native_bf16; print(has_native_bf16())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(wanted)


@pytest.mark.parametrize("value", ["", "1", "ON", "bf16"])
def test_another_value_is_refused_and_the_two_are_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NEXA_BF16", value)
    with pytest.raises(InputError, match=f"NEXA_BF16 is '{value}', expected on or off"):
        has_native_bf16()


def test_without_it_the_hardware_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXA_BF16", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for able, wanted in (({"amx_bf16": True}, True), ({"avx2": True, "amx_bf16": False}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert has_native_bf16() is wanted


@pytest.mark.parametrize(
    ("environment", "precision", "expected"),
    [("on", "fp32", False), ("off", "bf16", True), ("on", "auto", True), ("off", "auto", False)],
)
def test_the_setting_of_a_training_comes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: str, precision: str, expected: bool
) -> None:
    monkeypatch.setenv("NEXA_BF16", environment)
    assert uses_bf16(precision) is expected


def test_only_a_precision_that_is_set_determines_the_checkpoint() -> None:
    student = load_yaml(ROOT / "configs/baseline_distill.yaml", StudentConfig)
    assert "precision" not in student.training_settings()["train"]
    chosen = student.model_copy(update={"train": student.train.model_copy(update={"precision": "fp32"})})
    assert chosen.training_settings()["train"]["precision"] == "fp32"
