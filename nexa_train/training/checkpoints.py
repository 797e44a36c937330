"""Atomic checkpoints, and exact resumption from them.

A checkpoint is a folder `step-NNNNNN`: `model.safetensors` (trained parameters in float32: with
LoRA the adapter alone), `optimizer.safetensors` (AdamW's moments by parameter name), `state.json`
(the run's settings and the size of every other file). Any number of processes can continue it.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nexa_distill.storage.atomic import write_json
from nexa_train.models.folders import complete_folder
from nexa_train.training.fsdp import gather_tensors, local_part

log = logging.getLogger(__name__)
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
KEPT = 2  # checkpoints on disk


def latest_checkpoint(folder: Path, run_key: str) -> Path | None:
    """The newest complete checkpoint of the run `run_key` (its data and settings), or None."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        state = _read_state(path)
        if state is None:  # the disk lost a part of it
            log.warning("%s is not complete; the checkpoint before it is continued", path)
        elif state["run_key"] == run_key:
            return path
    return None


def explain_restart(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """One line on why a run with `settings` continues no complete checkpoint; None without any."""
    saved = [(path.name, _read_state(path)) for path in sorted(folder.glob("step-*"))]
    states = {name: state for name, state in saved if state is not None}
    if not states:
        return None
    names, before = ", ".join(states), states[max(states)].get("settings")
    if before is None:
        why = "they were saved by an earlier version, with other data or settings"
    else:
        changes = ", ".join(_setting_differences(before, settings))
        why = f"settings differ: {changes}" if changes else "the data or the base model differ"
    return (
        f"{folder}: {names} cannot be continued ({why}); training begins at step 0 and removes "
        "them at its next save, so copy what you want to keep"
    )


def _setting_differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """`dotted.name old -> new` for every value that differs; an absent value is null."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _setting_differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield f"{name} {json.dumps(old)} -> {json.dumps(new)}"


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        # After a crash the disk may have lost a part of the folder: the sizes show it.
        sizes = state["files"].items()
        complete = all((path / name).stat().st_size == size for name, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return state if complete else None


def trainable_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]


def save(
    folder: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    run_key: str,
    settings: Mapping[str, Any],
    main: bool = True,
) -> None:
    """Write `step-NNNNNN`, keep the last `KEPT`. All processes of a sharded model call it; the `main` one writes."""
    # Whole tensors, so that another number of processes can continue. Learning rate and data order
    # are functions of step, seed and epoch and need no state.
    weights = gather_tensors(trainable_parameters(model), keep=main)
    moments = gather_tensors(_optimizer_moments(model, optimizer), keep=main)
    if not main:
        return
    with complete_folder(folder / f"step-{step:06d}") as temporary:
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        model.config.save_pretrained(temporary)
        save_file(moments, temporary / OPTIMIZER)
        files = {file.name: file.stat().st_size for file in temporary.iterdir()}
        state = {"step": step, "run_key": run_key, "settings": settings, "files": files}
        # Last: with it the folder is complete.
        write_json(temporary / STATE, state)
    saved = set(folder.glob("step-*"))
    own = [path for path in sorted(saved) if (_read_state(path) or {}).get("run_key") == run_key]
    for old in saved - set(own[-KEPT:]):  # checkpoints of other runs and incomplete ones too
        shutil.rmtree(old)


@torch.no_grad()
def copy_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Copy trained weights into a model that is not sharded."""
    for name, parameter in trainable_parameters(model):
        parameter.copy_(weights[name])


def restore_optimizer(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Copy the moments of checkpoint `path` into `optimizer`; returns the number of steps done."""
    stored = load_file(path / OPTIMIZER)
    for name, parameter in trainable_parameters(model):
        # A parameter without any gradient so far has no moments.
        kinds = ("step", "exp_avg", "exp_avg_sq")
        state = {kind: stored[f"{name}|{kind}"] for kind in kinds if f"{name}|{kind}" in stored}
        if state:
            optimizer.state[parameter] = {kind: local_part(parameter, value) for kind, value in state.items()}
    return int(json.loads((path / STATE).read_text(encoding="utf-8"))["step"])


def _optimizer_moments(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in trainable_parameters(model):
        for kind, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}|{kind}", value
