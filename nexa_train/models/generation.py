"""New tokens after prompts, batch by batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nexa_distill.text.reasoning import PROMPT_TAIL, reasoning_marks


def new_tokens(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int,
    temperature: float, top_k: int, top_p: float, stops: list[int], seed: int,
) -> list[list[int]]:  # fmt: skip
    """(prompts, at most max_new_tokens): padding is still at the end. Temperature 0 is greedy.

    Prompts are padded on the left. The same batch and seed give the same tokens; other hardware may
    round differently. No token is generated beyond what the model can read: a batch ends where its
    longest prompt does, and a prompt that leaves no room has no tokens.
    """
    import torch
    from transformers import GenerationConfig

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    asked = [list(row) for row in prompts if row and (context is None or len(row) < context)]
    if not asked:
        return [[] for _ in prompts]
    width = max(map(len, asked))
    if context is not None:
        max_new_tokens = min(max_new_tokens, context - width)
    pad = padding_token(model, tokenizer, stops)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in asked])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {
            "do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        }  # fmt: skip
    wanted = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=stops, **sampling
    )
    torch.manual_seed(seed)
    with _only(model, wanted), torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device)
        )  # fmt: skip
    made = iter(out[:, width:].tolist())
    return [
        next(made) if row and (context is None or len(row) < context) else [] for row in prompts
    ]


def padding_token(model: Any, tokenizer: Any, stops: Sequence[int]) -> int:
    """The tokenizer's padding, if the model has an embedding for it; else a token that it has."""
    pad = tokenizer.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    return pad if pad is not None and pad < rows else stops[0]


@contextmanager
def _only(model: Any, wanted: Any) -> Iterator[None]:
    """Generate by `wanted` alone: what it leaves open, `generate` takes from the model's own
    settings, such as a penalty for repetition that the caller does not know of."""
    own, model.generation_config = model.generation_config, wanted
    try:
        yield
    finally:
        model.generation_config = own


def said(tokenizer: Any, tokens: Sequence[int], stops: Sequence[int]) -> tuple[str, int, bool]:
    """Text, count (with the token that ended it) and whether one did, of one row of new tokens.

    Special tokens are dropped, except those that tell reasoning from answer (Magistral's [THINK],
    gpt-oss's <|channel|>): `split_reasoning` needs them.
    """
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    words = tokens if end is None else tokens[:end]
    names = {i: str(added) for i, added in tokenizer.added_tokens_decoder.items() if added.special}
    marks = reasoning_marks(names.values())
    kept = [i for i in words if i not in names or names[i] in marks]
    text = tokenizer.decode(kept, skip_special_tokens=False)
    return text, len(words) + (end is not None), end is not None


def prompt_tail(tokenizer: Any, ids: Sequence[int]) -> str:
    """The end of a prompt as text: a template may open the reasoning there."""
    return str(tokenizer.decode(list(ids[-PROMPT_TAIL:]), skip_special_tokens=False))
