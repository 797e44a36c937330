"""Build the student, the same way for a fresh run, a resumed one and the export."""

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig, Training
from nexa_train.data import packing
from nexa_train.models.loading import load_model
from nexa_train.training import checkpoints, fsdp, lora


def build_student(config: StudentConfig, base: str, checkpoint: Path | None = None) -> Any:
    """The base model with `keep_layers` and `train.lora`; in float32, on the CPU, ready to train."""
    model = lora.attach_adapter(load_model(base, config.keep_layers), config.train.lora)
    if checkpoint:
        checkpoints.copy_weights(model, load_file(checkpoint / checkpoints.WEIGHTS))
    model.train()
    return model


def apply_speed_options(model: Any, train: Training) -> None:
    """Settings that change time and memory but not the result. Raises InputError."""
    if train.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise InputError(f"train.gradient_checkpointing: {type(model).__name__} has none; set it to false")
        model.activation_checkpointing_enable({"use_reentrant": False})
    if train.compile:
        _compile_layers(model)


def _compile_layers(model: Any) -> None:
    from torch import compiler

    if not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError(
            "train.compile: no C++ compiler was found (g++, or what CXX names); run "
            "`apt-get install g++`, or set train.compile: false"
        )
    layers = list(fsdp.decoder_layers(model))
    if not layers:
        raise InputError(f"train.compile: {type(model).__name__} does not name its layers; set train.compile: false")
    # Packed attention loops over the samples and is not compiled.
    packing.register_attention(compiler.disable(packing.attend_per_sample))  # type: ignore[no-untyped-call]
    # In place: `torch.compile` of a module would rename its parameters, also in checkpoints.
    for layer in layers:
        layer.compile(dynamic=True)  # lengths differ from batch to batch


def undo_compile(model: Any) -> None:
    # Compiled code rounds differently, and the exported student has none.
    for layer in fsdp.decoder_layers(model):
        layer._compiled_call_impl = None
