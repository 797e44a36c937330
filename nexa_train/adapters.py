"""LoRA: small matrices beside the linear layers are trained, the model itself stays as it is.

Hu et al. 2021, https://arxiv.org/abs/2106.09685: W x becomes W x + (alpha / rank) B A x, with B = 0
at the start, so that a fresh adapter changes nothing. The layers are put into the model in place;
it keeps its own class, so packing, distillation and depth pruning see the model that they know.
`merge` adds B A to W: what is exported needs neither this module nor `peft`.
"""

from typing import Any

from nexa_distill.errors import InputError
from nexa_distill.student_config import Lora


def attach(model: Any, lora: Lora | None) -> Any:
    """The model with only an adapter left to train; null changes nothing.

    Raises InputError where `target_modules` names no layer of the model.
    """
    if lora is None:
        return model
    from peft import LoraConfig, inject_adapter_in_model

    wanted = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )  # fmt: skip
    try:
        return inject_adapter_in_model(wanted, model)
    except ValueError as error:
        raise InputError(
            f"train.lora.target_modules: {lora.target_modules} does not fit {type(model).__name__} "
            f"({' '.join(str(error).split())[:200]}); write all-linear, or names such as q_proj"
        ) from None


def merge(model: Any) -> None:
    """Put every adapter into the weights it stands beside, and take it out of the model."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)  # refuses weights that are not finite
            model.set_submodule(name, layer.get_base_layer())
