"""Losses and greedy answers of the student at the end of training, before merge, cast and save.

The export is compared with them: a fault in the merge of an adapter, in the cast or in the save is
then on one side only.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from nexa_train.data import packing
from nexa_train.data.chat_format import ChatFormat, Message
from nexa_train.data.chat_tokenization import Sample
from nexa_train.data.collate import Collate, collate_padded
from nexa_train.models.generation import new_tokens
from nexa_train.training.assistant_loss import AnswerLoss

ANSWER_TOKENS = 32  # of an answer


@dataclass(frozen=True)
class AsTrained:
    """By `sample_id`: nats per trained token, and the token ids of a greedy answer."""

    losses: dict[str, float]
    answers: dict[str, list[int]]


def row_losses(loss: AnswerLoss, samples: Sequence[Sample], batch_of: Collate) -> dict[str, float]:
    """Cross entropy of each row by itself, nats per trained token."""
    # As training computes it: with its precision, its packed attention and its adapter.
    was_training, device = loss.training, next(loss.parameters()).device
    loss.eval()
    with torch.no_grad():
        sums = {s.sample_id: float(loss(batch_of([s], device), words_only=True)) for s in samples}
    loss.train(was_training)
    return {sample.sample_id: sums[sample.sample_id] / sample.trained_tokens for sample in samples}


def greedy_answers(model: Any, form: ChatFormat, prompts: Mapping[str, Sequence[Message]]) -> dict[str, list[int]]:
    """At most ANSWER_TOKENS ids each, the end token included."""
    tokenizer, stops, answers = form.tokenizer, form.stop_tokens, {}
    with packing.suspend_packing(model):
        for sample, messages in prompts.items():
            prompt = [form.prompt_ids(messages)]
            new = new_tokens(model, tokenizer, prompt, max_new_tokens=ANSWER_TOKENS, stops=stops)
            answers[sample] = new[0]
    return answers


def measure_as_trained(
    loss: AnswerLoss,
    samples: Sequence[Sample],
    batch_of: Collate,
    form: ChatFormat,
    prompts: Mapping[str, Sequence[Message]],
    autocast: Callable[[], AbstractContextManager[None]],
) -> AsTrained:
    was_training = loss.training
    with autocast():
        losses = row_losses(loss, samples, batch_of)
        loss.eval()
        answers = greedy_answers(loss.model, form, prompts)
    loss.train(was_training)
    return AsTrained(losses, answers)


class Differences(NamedTuple):
    """The distance of an exported model from the trained one, in nats; None if nothing was compared."""

    row: float | None  # the largest difference of a row's loss per trained token
    mean: float | None  # the difference over all rows
    choice: float | None  # the largest gap between the likeliest token and the answer's


def compare_export(
    before: AsTrained,
    exported: Any,
    samples: Sequence[Sample],
    form: ChatFormat,
    prompts: Mapping[str, Sequence[Message]],
) -> Differences:
    def pad_batch(rows: Sequence[Sample], device: torch.device) -> dict[str, torch.Tensor]:
        return collate_padded(rows, device, pad_id=form.end)

    after = row_losses(AnswerLoss(exported), samples, pad_batch)
    apart = [after[name] - loss for name, loss in before.losses.items()]
    choices = [
        _below_first_choice(exported, form.prompt_ids(prompts[name]), answer) for name, answer in before.answers.items()
    ]
    return Differences(
        row=max(map(abs, apart), default=None),
        mean=abs(sum(apart)) / len(apart) if apart else None,
        choice=max(choices, default=None),
    )


@torch.no_grad()
def _below_first_choice(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    if not answer:
        return 0.0
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    # The logits at position i predict token i + 1.
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    taken = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return float((logits.max(dim=1).values - taken).max())
