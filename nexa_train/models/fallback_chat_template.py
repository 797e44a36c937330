"""The chat template for models without one: `User: ...` and `Assistant: ...`, line by line.

It is stored with the student, so that later users render the same text. An assistant's turn ends
with the model's end-of-sequence token.
"""

from pathlib import Path
from typing import Any

from nexa_distill.text.hashing import sha256_text
from nexa_train.models.folders import complete_folder, one_writer

TEMPLATE = (
    "{% for message in messages %}{{ '' if loop.first else '\\n' }}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['role'].capitalize() + ': ' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)


def add_fallback_template(tokenizer: Any) -> Any:
    if tokenizer.chat_template is None:
        # If the tokenizer puts BOS before a text, the template has to: see FAULTS["no_bos"].
        bos = tokenizer.bos_token_id
        begins = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + TEMPLATE
    return tokenizer


def save_with_fallback_template(model: str, tokenizer: Any, parent: Path) -> str:
    """`model`; without a chat template, a folder in `parent` with links to its files and the fallback template."""
    if tokenizer.chat_template is not None:
        return model
    source = _model_folder(model).resolve()
    folder = parent / f"base-{sha256_text(str(source))[:12]}"  # one folder per model
    parent.mkdir(parents=True, exist_ok=True)
    with one_writer(folder):
        if not folder.is_dir():
            with complete_folder(folder) as temporary:
                for file in source.iterdir():
                    if file.is_file() and not file.name.startswith("."):
                        (temporary / file.name).symlink_to(file.resolve())
                # The tokenizer files are replaced: the template is part of them.
                for old in temporary.glob("*token*"):
                    old.unlink()
                add_fallback_template(tokenizer).save_pretrained(temporary)
    return str(folder)


def _model_folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    # No pickles, and no code.
    return Path(snapshot_download(model, ignore_patterns=["*.bin", "*.pth", "*.py"]))
