"""Samples of a batch in one row without padding, each attending to itself alone.

The samples stand behind one another, position ids begin at 0 in each, and attention is computed
sample by sample: no mask that something could replace or drop, nothing computed on padding, and no
score between tokens of two samples is ever formed. Models whose layers look at neighbours in other
ways (convolutions, state spaces, attention sinks, sliding windows shorter than a sample) are not
covered; `prove_isolation` refuses a model that is not, before the first step.

`cu_seq_lens_q` are the borders of the samples, as FlashAttention's variable-length kernels have
them (Dao 2023, https://arxiv.org/abs/2307.08691).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn import functional

from nexa_distill.errors import InputError
from nexa_train.chat import IGNORE, Sample

PER_SAMPLE = "per_sample"  # name of the attention below in transformers' register
PROOF_TOKENS = 32
# Of the length of a token's hidden state. Other shapes round differently, in bfloat16 in the second
# digit; samples that see each other are 0.2 to 1.4 apart (SmolLM2-135M).
EXACT, ROUNDED = 1e-4, 0.1


def collate_packed(samples: Sequence[Sample], device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids`, `position_ids`, `labels`: (1, tokens); `cu_seq_lens_q`: (samples + 1,), on the
    CPU, for they are only ever read as numbers.

    The first label of a sample is IGNORE: the token before it is another sample's.
    """
    lengths = [len(sample.input_ids) for sample in samples]

    def row(values: list[int]) -> torch.Tensor:
        return torch.tensor([values], device=device)

    return {
        "input_ids": row([token for s in samples for token in s.input_ids]),
        "position_ids": row([position for length in lengths for position in range(length)]),
        "labels": row([label for s in samples for label in (IGNORE, *s.labels[1:])]),
        "cu_seq_lens_q": torch.tensor([0, *accumulate(lengths)]),
    }


def attend_per_sample(
    _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None, sliding_window: int | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Causal attention within each sample. Shapes as transformers': (1, heads, tokens, head size);
    returns (1, tokens, heads, head size). Without borders the row is one sample.
    """
    if attention_mask is not None:
        raise ValueError("packed samples take no attention mask: it would join them")
    tokens = query.shape[2]
    borders = [0, tokens] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    if borders[-1] != tokens:
        raise ValueError(f"{tokens} tokens, and samples that end at {borders[-1]}")
    if sliding_window and any(end - start > sliding_window for start, end in pairwise(borders)):
        raise InputError(
            f"train.packing: a sample is longer than the sliding window of {sliding_window} tokens "
            "of this model; set train.packing: false"
        )
    grouped = key.shape[1] != query.shape[1]
    parts = [
        functional.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end],
            dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=grouped,
        )
        for start, end in pairwise(borders)
    ]  # fmt: skip
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def enable(model: Any) -> None:
    """Let the model attend per sample. It keeps no key-value cache then: see `suspended`."""
    from transformers import AttentionInterface

    AttentionInterface.register(PER_SAMPLE, attend_per_sample)
    model.set_attn_implementation(PER_SAMPLE)


@contextmanager
def suspended(model: Any) -> Iterator[None]:
    """The usual attention, which generation needs for its cache; packed again afterwards."""
    packed = model.config._attn_implementation == PER_SAMPLE
    if packed:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if packed:
            model.set_attn_implementation(PER_SAMPLE)


@torch.no_grad()
def prove_isolation(model: Any, samples: Sequence[Sample]) -> None:
    """Raises InputError unless a sample has the same hidden states packed and alone.

    Looks at the beginnings of the first and the last sample, in the model's own precision and in
    evaluation mode, on the model that is going to be trained.
    """
    two = [Sample(s.sample_id, s.input_ids[:PROOF_TOKENS], s.labels[:PROOF_TOKENS])
           for s in (samples[0], samples[-1])]  # fmt: skip
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    alone = [_hidden(model, [sample], device) for sample in two]
    packed = _hidden(model, two, device)
    model.train(was_training)
    parted = torch.cat(alone, dim=1)
    apart = float(((packed - parted).norm(dim=-1) / parted.norm(dim=-1)).max())
    allowed = EXACT if model.dtype == torch.float32 else ROUNDED
    if not apart <= allowed:
        raise InputError(
            f"train.packing: packed samples change each other in {type(model).__name__} (a hidden "
            f"state by {apart:.2g} of its length, at most {allowed:g} expected); set "
            "train.packing: false"
        )


def _hidden(model: Any, samples: Sequence[Sample], device: torch.device) -> torch.Tensor:
    batch = collate_packed(samples, device)
    del batch["labels"]
    hidden: torch.Tensor = model.base_model(**batch, use_cache=False).last_hidden_state
    return hidden.float()
