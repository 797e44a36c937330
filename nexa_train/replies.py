"""What a model replies to user messages, in its own chat template, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nexa_train import chat
from nexa_train.generate_student import stop_tokens
from nexa_train.plain_template import with_template


@dataclass(frozen=True)
class Reply:
    """`ended`: by the model's end of turn, not by `max_new_tokens`. `tokens`: new ones."""

    text: str
    ended: bool
    tokens: int


def replies(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int,
    temperature: float = 0.0, top_p: float = 1.0, batch_size: int = 8, seed: int = 0,
) -> list[Reply]:  # fmt: skip
    """One reply per prompt, in their order. Temperature 0 is greedy.

    Prompts of a batch are padded on the left; the same prompts in the same batches with the same
    seed give the same replies on the same machine.
    """
    chat.check_tokenizer(with_template(tokenizer))
    stops = stop_tokens(model, tokenizer)
    ids = [chat.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in prompts]
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    said: list[Reply] = []
    for start in range(0, len(ids), batch_size):
        some = ids[start : start + batch_size]
        for tokens in _new_tokens(model, tokenizer, some, stops, max_new_tokens, sampling,
                                  seed + start):  # fmt: skip
            said.append(_reply(tokenizer, tokens, stops))
    return said


def _new_tokens(
    model: Any, tokenizer: Any, ids: list[list[int]], stops: list[int], max_new_tokens: int,
    sampling: dict[str, Any], seed: int,
) -> list[list[int]]:  # fmt: skip
    import torch
    from transformers import GenerationConfig

    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    width = max(map(len, ids))
    rows = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    wanted = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=stops, **sampling
    )
    torch.manual_seed(seed)
    with torch.inference_mode():
        out = model.generate(input_ids=rows.to(model.device), attention_mask=mask.to(model.device),
                             generation_config=wanted)  # fmt: skip
    return [list(row) for row in out[:, width:].tolist()]


def _reply(tokenizer: Any, tokens: list[int], stops: list[int]) -> Reply:
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    said = tokens if end is None else tokens[:end]
    text = tokenizer.decode(said, skip_special_tokens=True).strip()
    return Reply(text, end is not None, len(said) + (end is not None))
