"""Replies of a model, in its own chat template, batch by batch."""

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

    answer: str | None  # without the reasoning, as the model wrote it; None if the reasoning took all tokens
    text: str  # the answer without white space around it
    reasoning: str | None
    full_text: str  # both
    tokens: int  # generated
    ended: bool  # by the model, before `max_new_tokens`

    def output_columns(self, model_id: str) -> dict[str, Any]:
        """The columns of contracts.OUTPUTS about a first answer and the model."""
        return {
            "attempt": 0,
            "teacher_output": self.answer,
            "reasoning_output": self.reasoning,
            "model_id": model_id,
            "finish_reason": "stop" if self.ended else "length",
            "completion_tokens": self.tokens,
        }


def read_reply(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int], stops: Sequence[int]) -> Reply:
    """The reply in the new tokens after a prompt; what follows a stop token is padding."""
    full, count, ended = decode_answer(tokenizer, tokens, stops)
    # A template may open the reasoning in the prompt, so the prompt's end is needed too.
    reasoning, answer = split_reasoning(full, prompt_tail(tokenizer, prompt))
    return Reply(answer, (answer or "").strip(), reasoning, full.strip(), count, ended)


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
    """One reply per user message, in order. Temperature 0 is greedy; see `new_tokens`. Raises ChatRefused."""
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
        answers += [read_reply(tokenizer, prompt, row, stops) for prompt, row in zip(batch, rows, strict=True)]
    return answers
