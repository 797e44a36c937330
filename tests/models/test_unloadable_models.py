"""Checkpoints that cannot be trained or loaded: one line with a remedy, never a traceback."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from nexa_distill.errors import InputError
from nexa_train.models import loading
from tests.support.tiny_model import save_model
from tests.training.test_train_sft import Run

QUANTISED: list[tuple[str, dict[str, Any]]] = [
    ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("bitsandbytes", {"load_in_8bit": True}),
    ("gptq", {"quant_method": "gptq", "bits": 4}),
    ("awq", {"quant_method": "awq", "bits": 4}),
    ("fp8", {"quant_method": "fp8"}),
    ("mxfp4", {"quant_method": "mxfp4"}),
    ("compressed-tensors", {"quant_method": "compressed-tensors"}),
    ("no_such_method", {"quant_method": "no_such_method"}),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def change(model: Path, **values: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(("method", "settings"), QUANTISED)
def test_t15_a_quantised_checkpoint_is_refused_before_its_weights_are_read(
    model: Path, method: str, settings: dict[str, Any]
) -> None:
    change(model, quantization_config=settings)
    (model / "model.safetensors").unlink()
    expected = rf"quantised checkpoint \({method}\) cannot be trained; take the one in bfloat16"
    with pytest.raises(InputError, match=expected):
        loading.load_model(str(model))
    with pytest.raises(InputError, match=expected):
        loading.refuse_quantised(str(model))


def test_t15_a_training_of_a_quantised_student_ends_in_one_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    change(run.model, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match="cannot be trained"):
        run.here(tmp_path / "out")


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
    ],
)
def test_t15_a_quantised_teacher_whose_library_is_not_there_is_one_line(model: Path, settings: dict[str, Any]) -> None:
    change(model, quantization_config=settings)
    with pytest.raises(InputError, match=r"(?s)^(?!.*\n).*cannot be loaded here.*install"):
        loading.load_for_inference(str(model))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "config.json"),
        ("{", "JSON"),
        ("[]", "can be loaded"),
        ("{}", "model_type"),
        ('{"model_type": "no_such_type"}', "no_such_type"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
        ('{"model_type": "llama", "hidden_act": "no_such_function"}', "no_such_function"),
        ('{"model_type": "llama", "hidden_size": 33, "num_attention_heads": 4}', "hidden"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(model: Path, config: str | None, expected: str) -> None:
    (model / "config.json").unlink()
    if config:
        (model / "config.json").write_text(config)
    with pytest.raises(InputError, match=rf"(?s)^(?!.*\n).*{expected}"):
        loading.load_model(str(model))


def test_t24_an_adapters_folder_is_no_student_with_a_configuration_beside_it_or_not(
    model: Path, tmp_path: Path
) -> None:
    whole = AutoModelForCausalLM.from_pretrained(model)
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    get_peft_model(whole, settings).save_pretrained(str(tmp_path / "adapter"))
    for beside in (False, True):
        if beside:
            shutil.copy(model / "config.json", tmp_path / "adapter")
        with pytest.raises(InputError, match=r"a LoRA adapter .*; merge it into"):
            loading.load_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("T5ForConditionalGeneration", "t5 .* is an encoder-decoder"),
        ("BartForConditionalGeneration", "bart .* is an encoder-decoder"),
        ("ViTForImageClassification", "vit .* is no decoder of text"),
        ("CLIPModel", "clip .* is no decoder of text"),
        ("BertForMaskedLM", "bert .* is no decoder of text"),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_model_of_another_kind_is_one_line(
    tmp_path: Path, kind: str, expected: str, dtype: torch.dtype | None
) -> None:
    config = getattr(transformers, kind).config_class(architectures=[kind])
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"{expected}; take .* ends in ForCausalLM"):
        loading.load_model(str(tmp_path), dtype=dtype)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_full_disk_or_memory_and_ctrl_c_stay_what_they_are(
    model: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)) as raised:
        loading.load_model(str(model))
    assert raised.value is error
