"""Older names of settings in an exported folder, for transformers 4 and programs built on it.

`write_older_names` adds them; `reader_notes` are for the model card.
"""

import json
from pathlib import Path
from typing import Any

from nexa_distill.storage.atomic import write_json

GENERIC, OLDER_GENERIC = "TokenizersBackend", "PreTrainedTokenizerFast"


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = _read_json(path)
    # Without `legacy` a saved SentencePiece tokenizer reads other tokens.
    if getattr(tokenizer, "legacy", None) is not None:
        settings.setdefault("legacy", tokenizer.legacy)
    # transformers 4 knows the generic class by its older name only.
    if settings.get("tokenizer_class") == GENERIC:
        settings["tokenizer_class"] = OLDER_GENERIC
    write_json(path, settings)


def write_older_names(folder: Path) -> None:
    # Older readers do not fail without these: they take float32, and 10,000 for the base of the
    # rotary embedding (https://github.com/vllm-project/vllm/pull/42624).
    config = _read_json(folder / "config.json")
    rope = config.get("rope_parameters") or {}
    added = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    if "rope_theta" in rope:
        added["rope_theta"] = rope["rope_theta"]
        # transformers 4 has the base and the scaling under two names.
        if rope.get("rope_type", "default") != "default":
            added["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    write_json(folder / "config.json", config | added)


def reader_notes(folder: Path) -> list[str]:
    rope = _read_json(folder / "config.json").get("rope_parameters") or {}
    if rope and "rope_theta" not in rope:  # one for each kind of layer (Gemma 3)
        return [
            "Its layers have rotary embeddings of several kinds, which transformers 4 reads under "
            "other names: use transformers 5."
        ]
    return []


def _read_json(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings
