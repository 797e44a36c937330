"""New tokens after prompts, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nexa_distill.text.reasoning import PROMPT_TAIL, reasoning_marks


def new_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: list[int],
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    on_token: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, at most max_new_tokens, padding at the end still included.

    `on_token` is called with the number of new tokens of every row so far.

    Temperature 0 is greedy. The same batch and seed give the same tokens; other hardware may round
    differently. A prompt that fills the context gets no tokens.
    """
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    readable = [bool(row) and (context is None or len(row) < context) for row in prompts]
    batch = [list(row) for row, fits in zip(prompts, readable, strict=True) if fits]
    if not batch:
        return [[] for _ in prompts]
    width = max(map(len, batch))
    if context is not None:  # the longest prompt limits the whole batch
        max_new_tokens = min(max_new_tokens, context - width)
    pad = padding_token(model, tokenizer, stops)
    # Padded on the left: the new tokens of all rows begin at one place.
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "do_sample": True}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=stops, **sampling
    )
    torch.manual_seed(seed)
    with _override_config(model, config), torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            stopping_criteria=StoppingCriteriaList([_report_tokens(width, on_token)] if on_token else []),
        )
    new = iter(out[:, width:].tolist())
    return [next(new) if fits else [] for fits in readable]


def _report_tokens(width: int, on_token: Callable[[int], None]) -> Any:
    """A stopping criterion that stops nothing: the one place that sees every token of a batch."""
    import torch

    def never_stop(ids: torch.Tensor, _scores: torch.Tensor, **_: object) -> torch.Tensor:
        on_token(ids.shape[1] - width)
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    return never_stop


def padding_token(model: Any, tokenizer: Any, stops: Sequence[int]) -> int:
    pad = tokenizer.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    return pad if pad is not None and pad < rows else stops[0]


@contextmanager
def _override_config(model: Any, config: Any) -> Iterator[None]:
    # `generate` fills unset values from the model's own config, such as a repetition penalty.
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def decode_answer(tokenizer: Any, tokens: Sequence[int], stops: Sequence[int]) -> tuple[str, int, bool]:
    """Text, token count (a stop token included) and whether a stop token ended one row."""
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    answer = tokens if end is None else tokens[:end]
    # Special tokens are dropped, except those that separate the reasoning (Magistral's [THINK],
    # gpt-oss's <|channel|>): `split_reasoning` needs them.
    names = {i: str(added) for i, added in tokenizer.added_tokens_decoder.items() if added.special}
    marks = reasoning_marks(names.values())
    kept = [i for i in answer if i not in names or names[i] in marks]
    text = tokenizer.decode(kept, skip_special_tokens=False)
    return text, len(answer) + (end is not None), end is not None


def prompt_tail(tokenizer: Any, ids: Sequence[int]) -> str:
    # A template may open the reasoning at the end of a prompt.
    return str(tokenizer.decode(list(ids[-PROMPT_TAIL:]), skip_special_tokens=False))
