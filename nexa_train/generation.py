"""New tokens after prompts, batch by batch; what ends an answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nexa_distill.text.reasoning import PROMPT_TAIL, reasoning_marks


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those of the generation config."""
    configured = model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [tokenizer.eos_token_id, *more] if token is not None})


def new_tokens(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int,
    temperature: float, top_k: int, top_p: float, stops: list[int], seed: int,
) -> list[list[int]]:  # fmt: skip
    """(prompts, at most max_new_tokens): padding is still at the end. Temperature 0 is greedy.

    Prompts are padded on the left. The same batch and seed give the same tokens; other hardware may
    round differently.
    """
    import torch
    from transformers import GenerationConfig

    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
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
    return [list(row) for row in out[:, width:].tolist()]


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
