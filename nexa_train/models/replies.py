"""Replies of a model to user messages, in its own chat template, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nexa_distill.text.reasoning import split_reasoning
from nexa_train.data.chat_format import chat_format
from nexa_train.models.fallback_chat_template import add_fallback_template
from nexa_train.models.generation import decode_answer, new_tokens, prompt_tail


@dataclass(frozen=True)
class Reply:
    """One answer of a model."""

    text: str  # without the reasoning
    ended: bool  # by the model, before `max_new_tokens`
    tokens: int  # generated
    reasoning: str | None
    full_text: str  # with the reasoning, as the model wrote them


def generate_replies(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 8,
    seed: int = 0,
) -> list[Reply]:
    """One reply per prompt, in order. Temperature 0 is greedy; see `new_tokens`. Raises ChatRefused."""
    form = chat_format(add_fallback_template(tokenizer))
    stops = form.stop_tokens
    ids = [form.prompt_ids([{"role": "user", "content": text}]) for text in prompts]
    answers: list[Reply] = []
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]
        rows = new_tokens(
            model,
            tokenizer,
            batch,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stops=stops,
            # Another seed for each batch, or equal prompts would get equal samples.
            seed=seed + start,
        )
        for prompt, row in zip(batch, rows, strict=True):
            full, count, ended = decode_answer(tokenizer, row, stops)
            reasoning, text = split_reasoning(full, prompt_tail(tokenizer, prompt))
            answers.append(Reply((text or "").strip(), ended, count, reasoning, full.strip()))
    return answers
