"""The model of a training, made the same way for a fresh run, a resumed one and the export."""

import os
import shutil
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig, Training
from nexa_train.data import packing
from nexa_train.models.loading import load_model
from nexa_train.training import checkpoints, fsdp, lora


def build(config: StudentConfig, base: str, checkpoint: Path | None = None) -> Any:
    """The base model with `keep_layers` and `train.lora`; of `checkpoint`, what it has trained.

    In float32, on the CPU, ready to train.
    """
    model = lora.attach(load_model(base, config.keep_layers), config.train.lora)
    if checkpoint:
        checkpoints.restore_model(checkpoint, model)
    model.train()
    return model


def hasten(model: Any, train: Training) -> None:
    """Settings that change time and memory, and nothing of what is learnt.

    Raises InputError where one of them cannot work.
    """
    if train.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise InputError(
                f"train.gradient_checkpointing: {type(model).__name__} knows none; set it to false"
            )
        model.activation_checkpointing_enable({"use_reentrant": False})
    if train.compile:
        _compile(model)


def _compile(model: Any) -> None:
    """Each decoder layer by itself, in place: parameters keep their names, and it is compiled once
    for all layers. Lengths differ from batch to batch, so they are no constants of it; packed
    attention, which loops over them, is left out."""
    from torch import compiler

    if not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError(
            "train.compile: no C++ compiler was found (g++, or what CXX names); run "
            "`apt-get install g++`, or set train.compile: false"
        )
    layers = list(fsdp.blocks(model))
    if not layers:
        raise InputError(
            f"train.compile: {type(model).__name__} does not say what its layers are; set "
            "train.compile: false"
        )
    packing.register(compiler.disable(packing.attend_per_sample))  # type: ignore[no-untyped-call]
    for layer in layers:
        layer.compile(dynamic=True)


def settle(model: Any) -> None:
    """Take compilation out again: it rounds in its own way, and what is exported has none."""
    for layer in fsdp.blocks(model):
        layer._compiled_call_impl = None
