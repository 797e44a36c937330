"""Packing: the samples of a batch in one row without padding, each attending only to itself.

`cu_seq_lens_q` holds the borders of the samples, as in FlashAttention's variable-length kernels
(Dao 2023, https://arxiv.org/abs/2307.08691).

If all samples begin with the same prompt tokens (a system prompt, a schema), the row has these once,
in front, and each sample attends to them and to itself. Losses and gradients are the same: the prefix
is read alike in every sample, and nothing in it is trained. `cu_seq_lens_k` then has the borders of
the keys, which are longer than the queries by the prefix.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch

from nexa_distill.errors import InputError
from nexa_train.data.chat_tokenization import IGNORE, Sample

# The registry of attention functions in transformers is global, so the name contains the model's
# original function: `per_sample_sdpa`, `per_sample_eager`.
PER_SAMPLE = "per_sample_"
ORIGINAL_ATTENTIONS = ("sdpa", "eager")
SHORTEST_PREFIX = 16  # tokens; a shorter one saves little
# Relative difference of a token's hidden state. Packed and alone, attention runs on the same
# shapes, but linear layers get another number of rows and sum in another order: after 30 layers
# 4e-6 in float32, and 0.02 in bfloat16, which keeps 8 bits (SmolLM2-135M, up to 900 tokens).
EXACT, ROUNDED = 1e-4, 0.1


def shared_prefix(samples: Sequence[Sample]) -> int:
    """The number of prompt tokens that all samples begin with; 0 if it is below SHORTEST_PREFIX."""
    if len(samples) < 2:
        return 0
    ids = [sample.input_ids for sample in samples]
    # What the first and the last of the sorted ones have in common, all have.
    pairs = zip(min(ids), max(ids), strict=False)
    common = next((place for place, (a, b) in enumerate(pairs) if a != b), min(map(len, ids)))
    # A sample keeps its last prompt token, which predicts its first trained one.
    longest = min(common, *(_prompt_length(sample) - 1 for sample in samples))
    return longest if longest >= SHORTEST_PREFIX else 0


def _prompt_length(sample: Sample) -> int:
    return next((i for i, label in enumerate(sample.labels) if label != IGNORE), len(sample.labels))


def collate_packed(
    samples: Sequence[Sample], device: torch.device, *, shares_prefix: bool = True
) -> dict[str, torch.Tensor]:
    """`input_ids`, `position_ids`, `labels`: (1, tokens); `cu_seq_lens_q`: (samples + 1,).

    With a shared prefix it comes first, as a part of its own, and `cu_seq_lens_k` is there too.
    """
    prefix = shared_prefix(samples) if shares_prefix else 0
    head = samples[0].input_ids[:prefix]
    lengths = [len(sample.input_ids) - prefix for sample in samples]

    def row_tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor([values], device=device)

    def part_borders(parts: list[int]) -> torch.Tensor:
        # On the CPU: only Python reads these numbers.
        return torch.tensor([0, *accumulate([prefix, *parts] if prefix else parts)])

    batch = {
        "input_ids": row_tensor([*head, *(token for s in samples for token in s.input_ids[prefix:])]),
        # As in the sample alone: it is read as if it were.
        "position_ids": row_tensor([*range(prefix), *(prefix + i for length in lengths for i in range(length))]),
        # The token before a sample's first one belongs to another sample.
        "labels": row_tensor([IGNORE] * prefix + [x for s in samples for x in (IGNORE, *s.labels[prefix + 1 :])]),
        "cu_seq_lens_q": part_borders(lengths),
    }
    return batch | ({"cu_seq_lens_k": part_borders([prefix + length for length in lengths])} if prefix else {})


def attend_per_sample(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **own: Any,
) -> tuple[torch.Tensor, None]:
    """(1, heads, tokens, head size) in, (1, tokens, heads, head size) out; no borders: the row is one sample."""
    if attention_mask is not None:
        raise InputError(
            f"train.packing: {type(module).__name__} makes a mask of its own, which would join the "
            "packed samples; set train.packing: false"
        )
    tokens = query.shape[2]
    borders = [0, tokens] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    key_borders = borders if cu_seq_lens_k is None else cu_seq_lens_k.tolist()
    if borders[-1] != tokens:
        raise ValueError(f"{tokens} tokens, and samples that end at {borders[-1]}")
    # The original function per sample keeps soft caps, attention sinks, scaling, dropout, grouped
    # heads and sliding windows; no score between two samples is ever computed.
    attend, name = _original_attention(module)
    parts = []
    for (start, end), (first, last) in zip(pairwise(borders), pairwise(key_borders), strict=True):
        prefix = (last - first) - (end - start)
        q = query[:, :, start:end]
        k, v = (_with_prefix(tensor, prefix, start, end) for tensor in (key, value))
        mask = _attention_mask(name, end - start, prefix, sliding_window, query)
        parts.append(attend(module, q, k, v, mask, sliding_window=sliding_window, **own)[0])
    return torch.cat(parts, dim=1), None


def _with_prefix(tensor: torch.Tensor, prefix: int, start: int, end: int) -> torch.Tensor:
    own = tensor[:, :, start:end]
    return torch.cat([tensor[:, :, :prefix], own], dim=2) if prefix else own


def _original_attention(module: Any) -> tuple[Callable[..., Any], str]:
    name = module.config._attn_implementation.removeprefix(PER_SAMPLE)
    modelling = sys.modules[type(module).__module__]
    # Each model's file has an eager function of its own, with its soft caps or sinks.
    eager = modelling.eager_attention_forward
    return modelling.ALL_ATTENTION_FUNCTIONS.get_interface(name, eager), name


def _attention_mask(own: str, length: int, prefix: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """(1, 1, length, prefix + length) for one sample; None if causal sdpa needs no mask."""
    whole = prefix + length
    if window is not None and window >= whole:
        window = None  # it reaches back to the first token
    if own == "sdpa" and window is None and not prefix:
        return None
    size = 1 << (whole - 1).bit_length()  # few sizes in the cache, and aligned rows for a GPU
    # The mask of a shorter sample is the upper left corner of a longer one.
    return _square_mask(own, size, window, like.dtype, like.device)[..., prefix:whole, :whole]


@lru_cache(maxsize=16)
def _square_mask(own: str, size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    from transformers import masking_utils

    allowed = masking_utils.causal_mask_function
    if window is not None:
        allowed = masking_utils.sliding_window_causal_mask_function(window)
    mask: torch.Tensor = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[own](
        batch_size=1,
        q_length=size,
        kv_length=size,
        mask_function=allowed,
        dtype=dtype,
        device=device,
        # transformers may leave the mask out where sdpa needs none; here it is always needed.
        allow_is_causal_skip=False,
    )
    return mask


def register_attention(attention: Callable[..., Any]) -> None:
    from transformers import AttentionInterface

    for own in ORIGINAL_ATTENTIONS:
        AttentionInterface.register(PER_SAMPLE + own, attention)


def enable_packing(model: Any) -> None:
    """Attend per sample, without a key-value cache (`suspend_packing`). Raises InputError if that is impossible."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = model.config._attn_implementation.removeprefix(PER_SAMPLE)
    if own not in ORIGINAL_ATTENTIONS:
        raise InputError(
            f"train.packing: the model asks for {own} attention, and samples can be packed with "
            f"{' or '.join(ORIGINAL_ATTENTIONS)}; take attn_implementation out of its config.json, or set "
            "train.packing: false"
        )
    if PER_SAMPLE + own not in ALL_ATTENTION_FUNCTIONS:  # a compiled model registers its own
        register_attention(attend_per_sample)
    model.set_attn_implementation(PER_SAMPLE + own)


@contextmanager
def suspend_packing(model: Any) -> Iterator[None]:
    # Generation needs the key-value cache, which packed attention does not have.
    packed = model.config._attn_implementation
    model.set_attn_implementation(packed.removeprefix(PER_SAMPLE))
    try:
        yield
    finally:
        model.set_attn_implementation(packed)


def prove_isolation(model: Any, samples: Sequence[Sample]) -> bool:
    """Whether a prefix can be shared. Raises InputError unless samples have the same hidden states packed as alone."""
    allowed = EXACT if model.dtype == torch.float32 else ROUNDED
    if _packing_error(model, samples, shares_prefix=True) <= allowed:
        return True
    apart = _packing_error(model, samples, shares_prefix=False)
    if not apart <= allowed:
        raise InputError(
            f"train.packing: packing changes the samples in {type(model).__name__} (a hidden state "
            f"differs by {apart:.2g} of its length, at most {allowed:g} expected): its layers mix "
            "samples, or look back less far than a sample is long; set train.packing: false"
        )
    return False


@torch.no_grad()
def _packing_error(model: Any, samples: Sequence[Sample], *, shares_prefix: bool) -> float:
    """The largest relative difference of a token's hidden state, packed and alone; NaN if one is."""
    # A window or chunk that is shorter than some sample is shorter than the longest one.
    # Tried on the model that will be trained, in its precision: layers may mix samples without
    # attention (convolutions, state spaces, chunks of positions shorter than a sample).
    by_length = sorted(samples, key=lambda sample: len(sample.input_ids))
    row = [by_length[0], by_length[-1], by_length[0]]
    was_training, device = model.training, next(model.parameters()).device
    # Dropout would make two passes differ.
    model.eval()
    batch = collate_packed(row, device, shares_prefix=shares_prefix)
    prefix = shared_prefix(row) if shares_prefix else 0
    del batch["labels"]
    packed = _hidden_states(model, **batch)
    with suspend_packing(model):
        parts = [_hidden_states(model, input_ids=torch.tensor([s.input_ids], device=device)) for s in row]
    model.train(was_training)
    alone = torch.cat([parts[0][:, :prefix], *(part[:, prefix:] for part in parts)], dim=1)
    return float(((packed - alone).norm(dim=-1) / alone.norm(dim=-1)).max())


def _hidden_states(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    output = model.base_model(**inputs, use_cache=False)
    # A class without an inner model, such as Llama4ForCausalLM, returns logits alone.
    hidden: torch.Tensor = output.get("last_hidden_state", output.get("logits"))
    return hidden.float()
