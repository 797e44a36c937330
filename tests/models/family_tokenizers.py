"""Tokenizers of a few hundred tokens that split, join and space text as those of public models."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Words of the rows and of the templates, and runs of line breaks, so that tokens are longer than
# a character and may reach over a border.
CORPUS = [
    "How many colours does a rainbow have?", "Seven.\nThe first one is red.", "Name a city.\n\n",
    "Zürich, and also 北京.\n\nBoth are large.", "Answer in few words.", "A: B: C.\n\n\n",
    "system\n\nuser\n\nassistant\n", "I count them.\n\n", " [INST] [/INST]<<SYS>>\n",
    "12 Jan 2026 Today Date: 345",
] * 3  # fmt: skip
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is cut before its bytes are merged: numbers by one digit or by three, words by case.
CUTS = {
    "qwen": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}|{_REST}",
    "llama": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "o200k": rf"{_CASED}(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}|{_REST}",
    "tekken": rf"{_CASED}|\p{{N}}|{_REST}",
}
SP_UNKNOWN = "<unk>"
Spacing = Literal["prepend", "first", "never"]


def byte_level(
    special: Sequence[str], *, cut: str = "gpt2", nfc: bool = False, begin: str | None = None,
    strips: bool = False, plain: Sequence[str] = (),
) -> Tokenizer:  # fmt: skip
    """Byte-level BPE. `cut`: of CUTS, or gpt2 with each digit by itself. `begin`: a BOS that it
    puts before a plain text. `strips`: special tokens swallow the white space around them (Phi-4).
    `plain`: added tokens that are no special ones (Qwen3's <think>).
    """
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC() if nfc else None
    made.pre_tokenizer = pre_tokenizers.Sequence(_pre_tokenizers(cut))
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(CORPUS, trainer)
    _add(made, special, plain, left=strips, right=strips)
    made.post_processor = processors.ByteLevel(trim_offsets=cut == "gpt2")
    if begin:
        made.post_processor = _begin_with(made, begin)
    return made


def _pre_tokenizers(cut: str) -> list[Any]:
    if cut == "gpt2":
        return [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return [
        pre_tokenizers.Split(Regex(CUTS[cut]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def sentence_piece(
    special: Sequence[str], *, spacing: Spacing, begin: str | None = None, strips: bool = False,
    plain: Sequence[str] = (),
) -> Tokenizer:  # fmt: skip
    """BPE over characters with bytes for what it does not know, as SentencePiece makes it.

    `spacing`: a space is put before each piece of text between special tokens (prepend), before the
    first one, or never. `strips`: special tokens swallow the white space behind them (Phi-3).
    """
    vocabulary, merges = _pieces()
    ids = {token: i for i, token in enumerate([*special, *vocabulary])}
    made = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=SP_UNKNOWN, byte_fallback=True, fuse_unk=True))
    spaces: Any = normalizers.Replace(" ", "▁")
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spacing == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        prepended = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        made.normalizer = prepended if spacing == "prepend" else spaces
    if spacing != "never":
        back.append(decoders.Strip(" ", 1, 0))
    made.decoder = decoders.Sequence(back)
    _add(made, special, plain, right=strips)
    if begin:
        made.post_processor = _begin_with(made, begin)
    return made


@cache
def _pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """Bytes, characters and the pieces merged of them."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(
        [" " + text.replace("\n", "") for text in CORPUS], trainers.BpeTrainer(vocab_size=220, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return [*(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]], merges


def _add(
    made: Tokenizer, special: Sequence[str], plain: Sequence[str], *, left: bool = False,
    right: bool = False,
) -> None:  # fmt: skip
    made.add_special_tokens([AddedToken(token, lstrip=left, rstrip=right, normalized=False) for token in special])
    made.add_tokens([AddedToken(token, normalized=False) for token in plain])


def _begin_with(made: Tokenizer, token: str) -> Any:
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B",
        special_tokens=[(token, made.token_to_id(token))],
    )  # fmt: skip
