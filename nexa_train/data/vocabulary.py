"""Which token ids a tokenizer uses."""

from typing import Any


def vocabulary_size(tokenizer: Any) -> int:
    """The largest token id + 1: a model's ids from there on are padding."""
    # Not `len(tokenizer)`, which counts tokens: where ids have gaps, as after added tokens, it is too
    # small, and the largest ids, often the end of turn, would be lost.
    return int(max(tokenizer.get_vocab().values())) + 1
