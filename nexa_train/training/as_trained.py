"""What the student did at the end of its training, before it is merged, cast and saved.

The export is compared with this, not with a later state of the model: a fault in the merge of an
adapter, in the cast or in the save is then on one side only. Losses are those of every validation
row (without any: of the first training rows), as training computes them: its precision, its packed
attention, its adapter. Answers are greedy, for a few conversations.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from nexa_train.data import packing
from nexa_train.data.chat_format import ChatFormat, Message
from nexa_train.data.chat_tokenization import Sample
from nexa_train.data.collate import Collate, collate
from nexa_train.models.generation import new_tokens
from nexa_train.training.assistant_loss import AnswerLoss

TOKENS = 32  # of an answer


@dataclass(frozen=True)
class AsTrained:
    """By `sample_id`: nats per trained token, and the token ids of a greedy answer."""

    losses: dict[str, float]
    answers: dict[str, list[int]]


def row_losses(loss: AnswerLoss, samples: Sequence[Sample], batch_of: Collate) -> dict[str, float]:
    """Cross entropy of each row by itself, nats per trained token."""
    was_training, device = loss.training, next(loss.parameters()).device
    loss.eval()
    with torch.no_grad():
        found = {
            sample.sample_id: float(loss(batch_of([sample], device), words_only=True))
            / sample.trained_tokens
            for sample in samples
        }
    loss.train(was_training)
    return found


def greedy_answers(
    model: Any, form: ChatFormat, prompts: Mapping[str, Sequence[Message]]
) -> dict[str, list[int]]:
    """At most TOKENS ids each, the token that ends an answer included."""
    with packing.suspended(model):
        return {
            sample: new_tokens(
                model, form.tokenizer, [form.prompt_ids(messages)], max_new_tokens=TOKENS,
                temperature=0.0, top_k=0, top_p=1.0, stops=form.stops, seed=0,
            )[0]
            for sample, messages in prompts.items()
        }  # fmt: skip


def measure(
    loss: AnswerLoss, samples: Sequence[Sample], batch_of: Collate, form: ChatFormat,
    prompts: Mapping[str, Sequence[Message]], autocast: Callable[[], AbstractContextManager[None]],
) -> AsTrained:  # fmt: skip
    """The model of `loss`, as it was trained. A model in shards is given no `prompts`."""
    was_training = loss.training
    with autocast():
        losses = row_losses(loss, samples, batch_of)
        loss.eval()
        answers = greedy_answers(loss.model, form, prompts)
    loss.train(was_training)
    return AsTrained(losses, answers)


class Differences(NamedTuple):
    """How far an exported model is from the one that was trained.

    `row`: nats per trained token, where that is largest; `mean`: of all rows together; `choice`:
    how much less likely than its first choice, in nats, the export finds a token of an answer, at
    most. None where nothing was compared: a model in shards writes no answers.
    """

    row: float | None
    mean: float | None
    choice: float | None


def compare(
    before: AsTrained, exported: Any, samples: Sequence[Sample], form: ChatFormat,
    prompts: Mapping[str, Sequence[Message]],
) -> Differences:  # fmt: skip
    """`exported`, a model loaded from its folder, beside the model as it was trained."""

    def padded(rows: Sequence[Sample], device: torch.device) -> dict[str, torch.Tensor]:
        return collate(rows, device, pad_id=form.end)

    after = row_losses(AnswerLoss(exported), samples, padded)
    apart = [after[name] - loss for name, loss in before.losses.items()]
    choices = [
        _below_first_choice(exported, form.prompt_ids(prompts[name]), answer)
        for name, answer in before.answers.items()
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
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    taken = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return float((logits.max(dim=1).values - taken).max())
