"""A model of which every process keeps a part (FSDP2, `fully_shard` of torch).

A layer's weights are put together just before it computes; gradients, AdamW's moments and the
float32 weights are kept in parts. Weights travel in float32 and are computed with in the precision
of the run, so the losses are those of one process; where that is bfloat16, autocast holds a copy in
it of the whole model during a step.

`accelerate` starts the processes but does not shard: its plugin leaves a CPU out, and what is
tested on a CPU is to be what runs on GPUs (docs/adr/0016).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def blocks(model: Any) -> Iterator[nn.Module]:
    """The decoder layers, by the class names that the model gives itself."""
    names = set(model._no_split_modules or ())
    return (module for module in model.modules() if type(module).__name__ in names)


def shard(loss: Any, device: torch.device, processes: int) -> None:
    """Leave to this process its part of `loss.model`, on `device`; all processes call it."""
    mesh = init_device_mesh(device.type, (processes,))
    for block in list(blocks(loss.model)):
        fully_shard(block, mesh=mesh)
    fully_shard(loss, mesh=mesh)  # what stands in no layer: embeddings and the last norm
    for module in loss.modules():
        if device.type == "cpu" and hasattr(module, "set_force_sum_reduction_for_comms"):
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot average


def whole(named: Iterable[tuple[str, torch.Tensor]], *, keep: bool) -> dict[str, torch.Tensor]:
    """The tensors put together on the CPU, where `keep` is set; every process has to ask."""
    found = {}
    for name, tensor in named:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = full.detach().cpu().contiguous()
    return found


def part(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Of a `value` that belongs to `parameter`, what belongs to this process, on its device."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(value, mesh, placements, src_data_rank=None)
    return value
