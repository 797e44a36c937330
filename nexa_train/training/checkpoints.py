"""Checkpoints that are complete or not there, and what it takes to continue from one exactly.

A checkpoint is a folder `step-NNNNNN`: `model.safetensors` (what is trained, in float32: with LoRA
the adapter alone), `optimizer.safetensors` (AdamW's moments by parameter name), `state.json` with
the run's settings and the size of every other file, written last. What is not trained is read from
the base model again. It is written under a dotted name, synced and renamed, so a folder with the
right name is complete; should a disk have lost a part of it nevertheless, the one before it, which
is kept, is continued.
No pickles. Tensors are whole, however many processes made them: another number may continue. The
learning rate and the order of the data are functions of step, seed and epoch; they need no state.
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
from nexa_train.training.fsdp import part, whole

log = logging.getLogger(__name__)
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
KEPT = 2  # checkpoints on disk


def latest(folder: Path, run_key: str) -> Path | None:
    """The newest whole checkpoint of the run `run_key` (its data and settings), or None."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        state = _state(path)
        if state is None:
            log.warning("%s is not whole; the checkpoint before it is continued", path)
        elif state["run_key"] == run_key:
            return path
    return None


def explain_restart(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Why a run with `settings` continues none of the whole checkpoints; None where there is none.

    One line: each setting that differs, by its dotted name, and what becomes of the checkpoints.
    """
    there = {path.name: _state(path) for path in sorted(folder.glob("step-*"))}
    states = {name: state for name, state in there.items() if state is not None}
    if not states:
        return None
    names, before = ", ".join(states), states[max(states)].get("settings")
    if before is None:
        why = "they were saved by an earlier version, with other data or settings"
    else:
        changes = ", ".join(_differences(before, settings))
        why = f"settings differ: {changes}" if changes else "the data or the base model differ"
    return (
        f"{folder}: {names} cannot be continued ({why}); training begins at step 0 and removes "
        "them at its next save, so copy what you want to keep"
    )


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """`dotted.name old -> new` of every value that differs; a value that is absent is null."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield f"{name} {json.dumps(old)} -> {json.dumps(new)}"


def _state(path: Path) -> dict[str, Any] | None:
    """What `state.json` says, if every file that it names is there in its size."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        whole = all((path / name).stat().st_size == size for name, size in state["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return state if whole else None


def trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """What the optimizer changes, by name."""
    return [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]


def save(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, *, step: int, run_key: str,
    settings: Mapping[str, Any], main: bool = True,
) -> None:  # fmt: skip
    """Write `step-NNNNNN`, then remove all but the last `KEPT` of this run.

    Every process of a sharded model has to ask; the `main` one writes.
    """
    weights = whole(trained(model), keep=main)
    moments = whole(_moments(model, optimizer), keep=main)
    if not main:
        return
    with complete_folder(folder / f"step-{step:06d}") as temporary:
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        model.config.save_pretrained(temporary)
        save_file(moments, temporary / OPTIMIZER)
        files = {file.name: file.stat().st_size for file in temporary.iterdir()}
        state = {"step": step, "run_key": run_key, "settings": settings, "files": files}
        write_json(temporary / STATE, state)
    there = sorted(folder.glob("step-*"))
    own = [path for path in there if (_state(path) or {}).get("run_key") == run_key]
    for old in set(there) - set(own[-KEPT:]):  # other runs' and torn ones go, whatever their number
        shutil.rmtree(old)


def restore_model(path: Path, model: Any) -> None:
    """Put what checkpoint `path` has trained into `model`, which is made as its run made it."""
    fill(model, load_file(path / WEIGHTS))


@torch.no_grad()
def fill(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put trained weights into a whole model."""
    for name, parameter in trained(model):
        parameter.copy_(weights[name])


def restore_optimizer(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Put the moments of checkpoint `path` into `optimizer`; returns the steps that were done."""
    stored = load_file(path / OPTIMIZER)
    for name, parameter in trained(model):
        kinds = ("step", "exp_avg", "exp_avg_sq")
        state = {kind: stored[f"{name}|{kind}"] for kind in kinds if f"{name}|{kind}" in stored}
        if state:
            optimizer.state[parameter] = {
                kind: part(parameter, value) for kind, value in state.items()
            }
    return int(json.loads((path / STATE).read_text(encoding="utf-8"))["step"])


def _moments(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in trained(model):
        for kind, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}|{kind}", value
