"""The loss on the assistant's tokens, with logits computed only where it is.

With a vocabulary of 49,152 the logits of prompt and padding are most of the arithmetic after the
last layer; hidden states are picked first, then multiplied by the output embedding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nexa_train.chat import IGNORE, Sample

Collate = Callable[[Sequence[Sample], torch.device], dict[str, torch.Tensor]]


class AnswerLoss(nn.Module):
    """Sum of the cross entropy (nats) over the labelled tokens of a batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.plain_head: bool | None = None  # asked of the model on the first batch

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum over the batch, float32, one number; differentiable also without labels."""
        if self.plain_head is None:
            self.plain_head = self._head_is_plain(batch)
        targets = batch["labels"][:, 1:]
        wanted = targets != IGNORE
        inputs = {name: batch[name] for name in batch if name != "labels"}
        if self.plain_head:
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden[:, :-1][wanted])
        else:
            logits = self.model(**inputs, use_cache=False).logits[:, :-1][wanted]
        return functional.cross_entropy(logits.float(), targets[wanted], reduction="sum")

    @torch.no_grad()
    def _head_is_plain(self, batch: dict[str, torch.Tensor]) -> bool:
        """Whether logits are the output embedding and nothing more (no scaling, no soft cap)."""
        ids = batch["input_ids"][:1, :8]
        hidden = self.model.base_model(ids, use_cache=False).last_hidden_state
        ours = self.model.get_output_embeddings()(hidden).float()
        theirs = self.model(ids, use_cache=False).logits.float()
        return bool(torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2))


@torch.no_grad()
def mean_loss(
    loss: AnswerLoss, samples: Sequence[Sample], batch_size: int, batch_of: Collate
) -> float | None:
    """Nats per trained token over all samples; None when there is none: missing is not 0."""
    tokens = sum(sample.trained_tokens for sample in samples)
    if not tokens:
        return None
    was_training, device = loss.training, next(loss.parameters()).device
    loss.eval()
    ordered = sorted(samples, key=lambda sample: len(sample.input_ids))
    total = 0.0
    for start in range(0, len(ordered), batch_size):
        total += float(loss(batch_of(ordered[start : start + batch_size], device)))
    loss.train(was_training)
    return total / tokens
