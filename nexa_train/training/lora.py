"""LoRA: train small matrices beside the linear layers; the base model's weights do not change.

Hu et al. 2021, https://arxiv.org/abs/2106.09685: W x becomes W x + (alpha / rank) B A x, with B = 0
at the start. `merge_adapters` adds B A to W, so an exported student needs no `peft`.
"""

from collections import defaultdict
from typing import Any

from nexa_distill.errors import InputError
from nexa_distill.settings.student import Lora


def attach_adapter(model: Any, lora: Lora | None) -> Any:
    """Only the adapter is trainable. Raises InputError for `target_modules` without layers, or with shared weights."""
    if lora is None:
        return model
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules
    )
    # Before the injection, which moves the weights of a layer into a wrapper.
    users = _users_of_weights(model)
    try:
        # In place: the model keeps its class, on which packing, distillation and pruning depend.
        adapted = inject_adapter_in_model(config, model)
    except ValueError as error:
        raise InputError(
            f"train.lora.target_modules: {lora.target_modules} does not fit {type(model).__name__} "
            f"({' '.join(str(error).split())[:200]}); write all-linear, or names such as q_proj"
        ) from None
    _refuse_shared_weights(adapted, users)
    return adapted


def _users_of_weights(model: Any) -> list[list[str]]:
    """For each weight, the names of the modules that have it."""
    names: dict[int, list[str]] = defaultdict(list)
    # A module that is used twice has two names.
    for name, module in model.named_modules(remove_duplicate=False):
        for weight in module.parameters(recurse=False):
            names[id(weight)].append(name)
    return list(names.values())


def _refuse_shared_weights(model: Any, users: list[list[str]]) -> None:
    # Merging an adapter changes the weight for every module that shares it; the others did not have
    # the adapter in training.
    from peft.tuners.lora import LoraLayer

    modules = dict(model.named_modules(remove_duplicate=False))
    for names in users:
        adapted = [name for name in names if isinstance(modules[name], LoraLayer)]
        if adapted and len({modules[name] for name in names}) > 1:
            others = ", ".join(name for name in names if name != adapted[0])
            raise InputError(
                f"train.lora.target_modules: {adapted[0]} shares its weights with {others}, and an "
                "adapter on one of them changes both once it is merged; leave "
                f"{adapted[0].rpartition('.')[2]} out, or use a model in which they are not shared "
                "(tie_word_embeddings: false)"
            )


def merge_adapters(model: Any) -> None:
    from peft.tuners.lora import LoraLayer

    # A list: the loop replaces modules.
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)  # refuses weights that are not finite
            model.set_submodule(name, layer.get_base_layer())
