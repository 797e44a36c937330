"""Load models and tokenizers from disk or the hub, for training and inference, or depth-pruned.

Safetensors only, and no code from a checkpoint. InputError names what cannot be loaded, and why.
"""

import importlib.util
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig
from nexa_train.data.chat_template import fix_template
from nexa_train.models.bundled import BUNDLED
from nexa_train.models.precision import has_native_bf16


def load_model(model: str, keep_layers: list[int] | None = None, dtype: Any = None) -> Any:
    """With only `keep_layers` if given; float32 for training, or `dtype`. Raises InputError."""
    import torch

    _refuse_other_kinds(model, _load_config(model))
    if dtype is None:
        refuse_quantised(model)
    loaded, info = _load_weights(model, dtype=dtype or torch.float32, output_loading_info=True)
    if missing := sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])}):
        # transformers would only warn and begin with random weights in their place.
        raise InputError(
            f"{model}: {len(missing)} weights are missing or of another shape, the first is "
            f"{missing[0]}; the checkpoint is not complete, get it again"
        )
    return loaded if keep_layers is None else prune_depth(loaded, keep_layers)


def _load_weights(model: str, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(model, use_safetensors=True, trust_remote_code=False, **options)
    except Exception as error:  # noqa: BLE001 - other libraries raise any type
        raise _load_error(model, error, _quantisation_method(_load_config(model))) from None


def refuse_quantised(model: str) -> None:
    # From the configuration alone, before any weight is read.
    if method := _quantisation_method(_load_config(model)):
        raise InputError(f"{model}: a quantised checkpoint ({method}) cannot be trained; take the one in bfloat16")


def _quantisation_method(config: Any) -> str | None:
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if settings is not None:
            named = settings if isinstance(settings, dict) else settings.to_dict()
            return str(named.get("quant_method") or "bitsandbytes")  # which writes no name
    return None


def _load_config(model: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - each of hundreds of classes has its own checks
        raise _load_error(model, error) from None


def _refuse_other_kinds(model: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    # Parts of such a model might load without an error, and be trained.
    classes = config.architectures or []
    if config.is_encoder_decoder:
        kind = "an encoder-decoder"
    elif config.model_type not in CAUSAL or (
        # BERT-like models load as decoders too, and would see the tokens that they predict.
        getattr(config, "is_decoder", True) is False
        and classes
        and not any(name.endswith("ForCausalLM") for name in classes)
    ):
        kind = "no decoder of text"
    else:
        return
    raise InputError(
        f"{model}: {config.model_type} ({', '.join(classes) or 'no class named'}) is {kind}; take "
        "a model whose class ends in ForCausalLM"
    )


def context_length(model: str) -> int | None:
    """The context length in tokens; None if the configuration has none."""
    return getattr(_load_config(model).get_text_config(), "max_position_embeddings", None)


def embedding_count(model: str) -> int | None:
    """Rows of the input embedding, an upper bound of token ids; None if unknown."""
    return getattr(_load_config(model).get_text_config(), "vocab_size", None)


def load_student_tokenizer(model: str, student: StudentConfig) -> Any:
    variables, today = student.chat_template_kwargs, student.chat_template_date
    return fix_template(load_tokenizer(model), variables, today)


def load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - other libraries raise any type
        raise _load_error(model, error) from None


def _load_error(model: str, error: Exception, quantised: str | None = None) -> Exception:
    import torch

    # A full disk or memory is not the model's fault.
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return error
    why = " ".join(str(error).split())[:300]
    if (Path(model) / "adapter_config.json").is_file():
        return InputError(
            f"{model}: a LoRA adapter without its model ({why}); merge it into its base model "
            "(peft's merge_and_unload) and name the merged folder"
        )
    if quantised:
        return InputError(
            f"{model}: a checkpoint quantised with {quantised} that cannot be loaded here "
            f"({why}); install the package that is named, or take the checkpoint in bfloat16"
        )
    return InputError(
        f"{model}: not a model that can be loaded ({why}); student: takes {BUNDLED}, a Hugging "
        "Face id, or a local folder with config.json, tokenizer and safetensors"
    )


def load_for_inference(
    model: str, keep_layers: list[int] | None = None, student: StudentConfig | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer) on the GPU if there is one, in bfloat16 if native; `student`: its template settings."""
    import torch

    loaded = load_model(model, keep_layers, torch.bfloat16 if has_native_bf16() else torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_student_tokenizer(model, student) if student else load_tokenizer(model)
    return loaded.to(device).eval(), tokenizer


def load_quantised(model: str) -> tuple[Any, Any]:
    """As `load_for_inference`, in 8 bits with a GPU and the package bitsandbytes."""
    import torch

    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        return load_for_inference(model)
    from transformers import BitsAndBytesConfig

    eight_bits = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return _load_weights(model, quantization_config=eight_bits, device_map="auto").eval(), load_tokenizer(model)


def prune_depth(model: Any, keep_layers: list[int]) -> Any:
    """Keep only the decoder layers `keep_layers` (ascending), in place. Raises InputError naming the layer."""
    from torch import nn

    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise InputError(
            f"keep_layers is set, and {type(model).__name__} has no model.layers to keep; write keep_layers: null"
        )
    last = len(layers) - 1
    if not keep_layers or keep_layers != sorted(set(keep_layers)):
        raise InputError(f"keep_layers is {keep_layers}; expected ascending indices 0..{last}")
    if keep_layers[0] < 0 or keep_layers[-1] > last:
        raise InputError(f"keep_layers is {keep_layers}; the model has layers 0..{last}")
    model.model.layers = nn.ModuleList(layers[index] for index in keep_layers)
    for position, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = position  # the KV cache is addressed by it
    model.config.num_hidden_layers = len(keep_layers)
    # The kind of attention of each layer, in models that alternate them.
    types = getattr(model.config, "layer_types", None)
    if types is not None:
        model.config.layer_types = [types[index] for index in keep_layers]
    return model
