"""Sharded models: every process keeps a part (FSDP2, `fully_shard` of torch).

A layer's weights are gathered just before it computes; gradients, AdamW's moments and the float32
weights stay sharded.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def decoder_layers(model: Any) -> Iterator[nn.Module]:
    names = set(model._no_split_modules or ())
    return (module for module in model.modules() if type(module).__name__ in names)


def shard_model(loss: Any, device: torch.device, processes: int) -> None:
    """Keep this process's part of `loss.model`, on `device`; all processes call it."""
    # Not accelerate's plugin: it does not support a CPU, and the tests on a CPU have to run the
    # code that runs on GPUs (docs/adr/0016).
    # Weights are sent in float32 and cast to the precision of the run, so the losses are those of
    # one process; in bfloat16, autocast holds a copy of the whole model in a step.
    mesh = init_device_mesh(device.type, (processes,))
    for block in list(decoder_layers(loss.model)):
        fully_shard(block, mesh=mesh)
    fully_shard(loss, mesh=mesh)  # parameters outside the layers: embeddings and the last norm
    for module in loss.modules():
        if device.type == "cpu" and hasattr(module, "set_force_sum_reduction_for_comms"):
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot average


def gather_tensors(named: Iterable[tuple[str, torch.Tensor]], *, keep: bool) -> dict[str, torch.Tensor]:
    """The gathered tensors on the CPU, if `keep` is set; every process has to call it."""
    tensors = {}
    for name, tensor in named:
        # A collective call: processes that keep nothing take part too.
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            tensors[name] = full.detach().cpu().contiguous()
    return tensors


def local_part(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        mesh, placements = parameter.device_mesh, parameter.placements
        # None: every process has the whole value and cuts its own part; nothing is sent.
        return distribute_tensor(value, mesh, placements, src_data_rank=None)
    return value
