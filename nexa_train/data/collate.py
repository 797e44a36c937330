"""Samples to one batch of tensors: packed in a row, or padded."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from nexa_train.data import packing
from nexa_train.data.chat_tokenization import IGNORE, Sample

Batch = dict[str, torch.Tensor]
Collate = Callable[[Sequence[Sample], torch.device], Batch]


def make_collate(model: Any, tokenizer: Any, samples: Sequence[Sample], *, packed: bool) -> Collate:
    """`packed` changes the model's attention. Raises InputError if it cannot be packed; `samples` are the proof."""
    if packed:
        packing.enable_packing(model)
        # Proven on the real samples, since a fault may show only beyond some length.
        return partial(packing.collate_packed, shares_prefix=packing.prove_isolation(model, samples))
    pad, embeddings = tokenizer.pad_token_id, model.get_input_embeddings().weight.shape[0]
    # Any token with an embedding can pad: no attention reads it, and it has no label.
    return partial(collate_padded, pad_id=pad if pad is not None and pad < embeddings else 0)


def collate_padded(samples: Sequence[Sample], device: torch.device, *, pad_id: int) -> Batch:
    """`input_ids`, `attention_mask`, `labels`, each (samples, longest), padded on the right."""
    longest = max(len(sample.input_ids) for sample in samples)

    def pad_rows(rows: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=device)

    return {
        "input_ids": pad_rows([s.input_ids for s in samples], pad_id),
        "attention_mask": pad_rows([[1] * len(s.input_ids) for s in samples], 0),
        "labels": pad_rows([s.labels for s in samples], IGNORE),
    }
