"""A real Llama of a few thousand weights with a ChatML tokenizer, and a training set for it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nexa_distill.contracts import SFT

ROOT = Path(__file__).parents[2]
# SmolLM2's: no generation markers, and a system prompt of its own when there is none.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tokenizer(template: str | dict[str, str] | None = CHATML, *, gaps: bool = False) -> Any:
    """One token per byte, and the three marks; with `gaps` the marks have larger ids than tokens
    are counted.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = [270, 280, 290, *range(256)] if gaps else range(259)
    vocabulary = dict(zip(MARKS + alphabet, ids, strict=True))
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(MARKS)
    made: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=plain, eos_token=MARKS[2], pad_token=MARKS[2], bos_token=MARKS[1]
    )
    made.chat_template = template
    return made


def save_model(folder: Path, layers: int = 4, *, gaps: bool = False) -> Path:
    """A loadable checkpoint."""
    torch.manual_seed(0)
    made = tokenizer(gaps=gaps)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=made.bos_token_id, eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def save_dataset(path: Path, train: int = 24, val: int = 4) -> Path:
    """Conversations whose answer follows from the question."""
    rows = [
        {
            "sample_id": f"sample-{i}", "split": "train" if i < train else "val",
            "messages": [
                {"role": "user", "content": f"Count {i % 5}."},
                {"role": "assistant", "content": "one two three " * (1 + i % 5)},
            ],
            "template_name": "hypothesis", "domain": "test", "model_id": "m", "attempt": 0,
        }
        for i in range(train + val)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, SFT), path)
    return path


def save_config(path: Path, student: Path, **train: Any) -> Path:
    """The shipped student run, made tiny."""
    values = yaml.safe_load((ROOT / "configs/baseline_distill.yaml").read_text())
    values |= {"student": str(student), "keep_layers": [0, 1, 3]}
    values["train"] |= {
        "epochs": 2, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 0.003,
        "max_length": 256, "max_refused_share": 0.0, "save_every_steps": 3, "eval_every_steps": 4,
    } | train  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path
