"""Model families as data: a tiny checkpoint of each, with the template, the tokenizer, the special
tokens and the stop tokens of the public model.

`python -m tests.families > docs/model-families.md` trains each of them and writes what came out.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from tests.models import family_templates
from tests.models.family_tokenizers import byte_level, sentence_piece

IM, LLAMA_3 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>",
]  # fmt: skip
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
SP = ["<unk>", "<s>", "</s>"]
R1 = [f"<\uff5c{name}\uff5c>" for name in ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant")]
THINK = ["<think>", "</think>"]
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "initializer_range": 0.2,  # about 1 / sqrt(hidden_size): it learns in fewer steps
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """`model`: the public model that it behaves like. `named`: eos_token and so on as shipped.

    `stops`: eos of generation_config.json as shipped, which has `sampling` too. `tokenizer_class`:
    as its tokenizer_config.json names it. `sizes`: of the model, beside SIZES. `variables`: the
    run's chat_template_kwargs. `reasoned`: whether it is trained on answers with their reasoning.

    What is expected: `lead`, what the template writes between prompt and answer, in the loss;
    `turns`, why a row of two turns is refused, a key of ROW_REASONS; `refused`, why the family is,
    a key of FAULTS.
    """

    name: str
    model: str
    template: str | None
    tokenizer: Callable[[], Tokenizer]
    named: Mapping[str, str]
    architecture: str
    stops: Sequence[str]
    tokenizer_class: str = "PreTrainedTokenizerFast"
    tokenizer_settings: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    reasoned: bool = False
    lead: str = ""
    turns: str = ""
    refused: str = ""

    def save(self, folder: Path) -> Path:
        """The checkpoint, in the files that its hub has."""
        tokens = self.tokenizer()
        folder.mkdir()
        tokens.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": self.tokenizer_class, **self.named, **self.tokenizer_settings}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if self.template:
            (folder / "chat_template.jinja").write_text(self.template)
        ids = {name: tokens.token_to_id(text) for name, text in self.named.items()}
        ids = {f"{name}_id": ids.get(name) for name in ("bos_token", "eos_token", "pad_token")}
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.architecture}Config")(
            vocab_size=-(-tokens.get_vocab_size() // 8) * 8, **SIZES | ids | dict(self.sizes)
        )
        architecture = self.architecture.removesuffix("Text")
        getattr(transformers, f"{architecture}ForCausalLM")(config).save_pretrained(folder)
        stops = [tokens.token_to_id(stop) for stop in self.stops]
        generation = {"eos_token_id": stops if len(stops) > 1 else stops[0], **self.sampling}
        generation |= {k: v for k, v in ids.items() if k != "eos_token_id" and v is not None}
        (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder


WARM = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
FAMILIES = [
    Family(
        "Llama 2", "meta-llama/Llama-2-7b-chat-hf", family_templates.LLAMA_2,
        partial(sentence_piece, SP, spacing="prepend", begin="<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "Llama", ["</s>"],
        "LlamaTokenizer", {"legacy": False}, WARM,
    ),
    Family(
        "Llama 3.1", "meta-llama/Llama-3.1-8B-Instruct", family_templates.LLAMA_3_1,
        partial(byte_level, LLAMA_3, cut="llama", begin="<|begin_of_text|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, "Llama",
        ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], sampling=WARM,
    ),
    Family(
        "Llama 3.2", "meta-llama/Llama-3.2-1B-Instruct", family_templates.LLAMA_3_2,
        partial(byte_level, LLAMA_3, cut="llama", begin="<|begin_of_text|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, "Llama",
        ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], sampling=WARM,
    ),
    Family(
        "Qwen 2.5", "Qwen/Qwen2.5-0.5B-Instruct", family_templates.QWEN_2_5,
        partial(byte_level, IM, cut="qwen", nfc=True),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "Qwen2",
        ["<|im_end|>", "<|endoftext|>"], "Qwen2Tokenizer",
        sampling={"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
                  "repetition_penalty": 1.05},
    ),
    Family(
        "Qwen 2.5 base", "Qwen/Qwen2.5-0.5B", family_templates.QWEN_2_5,
        partial(byte_level, IM, cut="qwen", nfc=True),
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "Qwen2", ["<|endoftext|>"],
        "Qwen2Tokenizer",
    ),
    Family(
        "Qwen 3", "Qwen/Qwen3-0.6B", family_templates.QWEN_3,
        partial(byte_level, IM, cut="qwen", nfc=True, plain=THINK),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "Qwen3",
        ["<|im_end|>", "<|endoftext|>"], "Qwen2Tokenizer",
        sampling=WARM, sizes={"head_dim": 8},
        lead="<think></think>",
    ),
    Family(
        "Qwen 3, enable_thinking: false", "Qwen/Qwen3-0.6B", family_templates.QWEN_3,
        partial(byte_level, IM, cut="qwen", nfc=True, plain=THINK),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "Qwen3",
        ["<|im_end|>", "<|endoftext|>"], "Qwen2Tokenizer",
        sampling=WARM, sizes={"head_dim": 8}, variables={"enable_thinking": False},
        turns="prompt_differs",
    ),
    Family(
        "Qwen 3 Thinking", "Qwen/Qwen3-4B-Thinking-2507", family_templates.QWEN_3_THINKING,
        partial(byte_level, IM, cut="qwen", nfc=True, plain=THINK),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "Qwen3",
        ["<|im_end|>", "<|endoftext|>"], "Qwen2Tokenizer",
        sampling=WARM, sizes={"head_dim": 8}, reasoned=True,
        turns="prompt_opens_thinking",
    ),
    Family(
        "Gemma 2", "google/gemma-2-2b-it", family_templates.GEMMA_2,
        partial(sentence_piece, GEMMA, spacing="never", begin="<bos>", plain=["\n", "\n\n"]),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        "Gemma2", ["<eos>", "<end_of_turn>"], "GemmaTokenizer",
        sizes={"head_dim": 8, "query_pre_attn_scalar": 8},
    ),
    Family(
        "Gemma 3", "google/gemma-3-1b-it", family_templates.GEMMA_3,
        partial(sentence_piece, GEMMA, spacing="never", begin="<bos>", plain=["\n", "\n\n"]),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        "Gemma3Text", ["<eos>", "<end_of_turn>"], "GemmaTokenizer",
        sizes={"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 512},
    ),
    Family(
        "Mistral v1", "mistralai/Mistral-7B-Instruct-v0.1", family_templates.MISTRAL_1,
        partial(sentence_piece, SP, spacing="prepend", begin="<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "Mistral", ["</s>"],
        "LlamaTokenizer", {"legacy": True},
    ),
    Family(
        "Mistral v3", "mistralai/Mistral-7B-Instruct-v0.3", family_templates.MISTRAL_3,
        partial(sentence_piece, [*SP, "[INST]", "[/INST]"], spacing="first", begin="<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "Mistral", ["</s>"],
        "LlamaTokenizer", {"legacy": False}, sizes={"sliding_window": None},
    ),
    Family(
        "Mistral v7", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", family_templates.MISTRAL_7,
        partial(
            byte_level,
            [*SP, "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
            cut="tekken", begin="<s>",
        ),
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        "Mistral", ["</s>"], sizes={"sliding_window": None, "head_dim": 8},
    ),
    Family(
        "Phi-3", "microsoft/Phi-3-mini-4k-instruct", family_templates.PHI_3,
        partial(
            sentence_piece,
            [*SP, "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
            spacing="prepend", strips=True,
        ),
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
         "unk_token": "<unk>"},
        "Phi3", ["<|endoftext|>", "<|assistant|>", "<|end|>"], "LlamaTokenizer",
        {"legacy": False, "add_bos_token": False}, sizes={"tie_word_embeddings": False},
    ),
    Family(
        "Phi-4", "microsoft/phi-4", family_templates.PHI_4,
        partial(byte_level, [*IM, "<|im_sep|>", "<|dummy|>"], cut="llama", strips=True),
        {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|dummy|>",
         "unk_token": "<|endoftext|>"},
        "Phi3", ["<|endoftext|>", "<|im_end|>"], "GPT2Tokenizer",
    ),
    Family(
        "DeepSeek-R1 distill", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        family_templates.DEEPSEEK_R1,
        partial(byte_level, R1, cut="qwen", begin=R1[0], plain=THINK),
        {"bos_token": R1[0], "eos_token": R1[1], "pad_token": R1[1]}, "Qwen2", [R1[1]],
        "LlamaTokenizerFast", {"legacy": True}, WARM,
        refused="prompt_opens_thinking",
    ),
    Family(
        "SmolLM2", "HuggingFaceTB/SmolLM2-135M-Instruct", family_templates.SMOLLM_2,
        partial(byte_level, IM),
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
         "unk_token": "<|endoftext|>"},
        "Llama", ["<|im_end|>"], "GPT2Tokenizer",
    ),
    Family(
        "SmolLM3", "HuggingFaceTB/SmolLM3-3B", family_templates.SMOLLM_3,
        partial(
            byte_level, ["<|begin_of_text|>", "<|end_of_text|>", *IM[1:]], cut="llama", plain=THINK
        ),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        "SmolLM3", ["<|im_end|>"], sampling=WARM,
    ),
    Family(
        "Granite 3", "ibm-granite/granite-3.3-2b-instruct", family_templates.GRANITE_3,
        partial(byte_level, ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"]),
        {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>",
         "pad_token": "<|end_of_text|>", "unk_token": "<|end_of_text|>"},
        "Granite", ["<|end_of_text|>"], "GPT2Tokenizer",
        sizes={"embedding_multiplier": 2.0, "residual_multiplier": 0.5,
               "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
    Family(
        "gpt-oss", "openai/gpt-oss-20b", family_templates.GPT_OSS,
        partial(
            byte_level,
            ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
             "<|start|>", "<|end|>", "<|message|>", "<|call|>"],
            cut="o200k",
        ),
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
        "GptOss", ["<|return|>", "<|endoftext|>", "<|call|>"], sampling={"do_sample": True},
        sizes={"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
               "tie_word_embeddings": False},
        lead="<|channel|>final<|message|>", turns="turns_end_otherwise",
    ),
    Family(
        "Vicuna 1.5", "lmsys/vicuna-7b-v1.5", family_templates.VICUNA,
        partial(sentence_piece, SP, spacing="prepend", begin="<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"},
        "Llama", ["</s>"], "LlamaTokenizer", {"legacy": False},
    ),
    Family(
        "Llama 2, legacy: true", "none: a setting of older tokenizers", family_templates.LLAMA_2,
        partial(sentence_piece, SP, spacing="prepend", begin="<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "Llama", ["</s>"],
        "LlamaTokenizer", {"legacy": True},
    ),
    Family(
        "roles in plain words, no end", "none: a template written by hand",
        family_templates.PLAIN_ROLES, partial(sentence_piece, SP, spacing="first", begin="<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "Llama", ["</s>"],
        "LlamaTokenizer", {"legacy": False},
        refused="no_end_of_turn",
    ),
    Family(
        "a base model without template", "meta-llama/Llama-3.2-1B", None,
        partial(byte_level, LLAMA_3, cut="llama", begin="<|begin_of_text|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, "Llama",
        ["<|end_of_text|>"], sampling=WARM,
        refused="no_chat_template",
    ),
]  # fmt: skip


def main() -> None:
    """Print docs/model-families.md."""
    from tests.models import family_trial

    family_trial.be_quiet()
    with redirect_stdout(sys.stderr):  # the trainings print too
        page = family_trial.page(FAMILIES)
    print(page, end="")


if __name__ == "__main__":
    main()
