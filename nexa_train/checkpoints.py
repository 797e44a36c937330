"""Checkpoints that are complete or not there, and what it takes to continue from one exactly.

A checkpoint is a folder `step-NNNNNN`: the model (safetensors, float32), `optimizer.safetensors`
(AdamW's moments by parameter name), `state.json` with the size of every other file, written last.
It is written under a dotted name, synced and renamed, so a folder with the right name is complete;
should a disk have lost a part of it nevertheless, the one before it, which is kept, is continued.
No pickles. The learning rate and the order of the data are functions of step, seed and epoch; they
need no state.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nexa_distill import failpoints
from nexa_distill.handoff import sync_folder, write_json

log = logging.getLogger(__name__)
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
KEPT = 2  # checkpoints on disk


@contextmanager
def complete_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success sync it and rename it to `final`, replacing that."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        try:
            yield temporary
            failpoints.hit("checkpoint")
        except SafetensorError as error:  # its message is all that is left of the system's error
            if "os error 28" in str(error) or "No space" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(final)) from error
            raise
        for file in (path for path in temporary.rglob("*") if path.is_file()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        failpoints.hit("checkpoint")
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        failpoints.hit("checkpoint")
        sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def latest(folder: Path, run_key: str) -> Path | None:
    """The newest whole checkpoint of the run `run_key` (its data and settings), or None."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        state = _state(path)
        if state is None:
            log.warning("%s is not whole; the checkpoint before it is continued", path)
        elif state["run_key"] == run_key:
            return path
    return None


def _state(path: Path) -> dict[str, Any] | None:
    """What `state.json` says, if every file that it names is there in its size."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        whole = all((path / name).stat().st_size == size for name, size in state["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return state if whole else None


def save(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, *, step: int, run_key: str
) -> Path:
    """Write `step-NNNNNN`, then remove those before the last `KEPT`."""
    path = folder / f"step-{step:06d}"
    with complete_folder(path) as temporary:
        model.save_pretrained(temporary)
        save_file(_moments(model, optimizer), temporary / OPTIMIZER)
        files = {file.name: file.stat().st_size for file in temporary.iterdir()}
        write_json(temporary / STATE, {"step": step, "run_key": run_key, "files": files})
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
    return path


def restore_optimizer(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Put the moments of checkpoint `path` into `optimizer`; returns the steps that were done."""
    stored = load_file(path / OPTIMIZER)
    for name, parameter in model.named_parameters():
        kinds = ("step", "exp_avg", "exp_avg_sq")
        state = {kind: stored[f"{name}|{kind}"] for kind in kinds if f"{name}|{kind}" in stored}
        if state:
            optimizer.state[parameter] = {
                kind: value.to(parameter.device) for kind, value in state.items()
            }
    return int(json.loads((path / STATE).read_text(encoding="utf-8"))["step"])


def _moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}|{kind}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
