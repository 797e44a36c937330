"""What the student did at the end of its training, before it is merged, cast and saved.

The export is compared with this, not with a later state of the model: a fault in the merge of an
adapter, in the cast or in the save is then on one side only. Losses are those of every validation
row (without any: of the first training rows), as training computes them: its precision, its packed
attention, its adapter. Answers are greedy, for a few conversations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from nexa_train import packing
from nexa_train.answer_loss import AnswerLoss, Collate
from nexa_train.batching import collate
from nexa_train.chat import Sample
from nexa_train.data.chat_format import ChatFormat, Message
from nexa_train.generation import new_tokens

TOKENS = 32  # of an answer
# Nats per token that a row, and all rows together, may differ by. The export rounds weights to
# bfloat16 (8 bits of mantissa) and training may have computed in it. Measured on the bundled model
# and the tests' models: rows below 0.05, the mean below 0.01. A tied head that an adapter was
# merged into: 5 (mean).
ROW, MEAN = 0.15, 0.03
# How much less likely than the first choice, in nats, a token of the earlier answer may be: where
# two tokens are nearly as likely, rounding decides. Measured: below 0.1.
TIE = 0.5


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


def differences(
    before: AsTrained, exported: Any, samples: Sequence[Sample], form: ChatFormat,
    prompts: Mapping[str, Sequence[Message]],
) -> Iterator[str]:  # fmt: skip
    """In words: what `exported`, a model loaded from its folder, does otherwise."""

    def padded(rows: Sequence[Sample], device: torch.device) -> dict[str, torch.Tensor]:
        return collate(rows, device, pad_id=form.end)

    after = row_losses(AnswerLoss(exported), samples, padded)
    apart = {name: after[name] - value for name, value in before.losses.items()}
    for name in sorted(apart, key=lambda name: -abs(apart[name]))[:1]:
        # `not <=` also holds of a loss that is not a number.
        if not abs(apart[name]) <= ROW:
            yield (
                f"its loss on {name} is {after[name]:.3f} nats per token, the trained model's was "
                f"{before.losses[name]:.3f}"
            )
    mean = abs(sum(apart.values())) / max(1, len(apart))
    if not mean <= MEAN:
        yield f"its mean loss over {len(apart)} rows differs by {mean:.3f} nats per token"
    for name, answer in before.answers.items():
        gap = _least_likely(exported, form.prompt_ids(prompts[name]), answer)
        if not gap <= TIE:
            yield (
                f"the trained model's greedy answer to {name}, "
                f"{form.tokenizer.decode(answer)!r}, is {gap:.2f} nats from its first choice"
            )


@torch.no_grad()
def _least_likely(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Nats between the model's first choice and the answer's token, where that is largest."""
    if not answer:
        return 0.0
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    taken = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return float((logits.max(dim=1).values - taken).max())
