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

Batch = dict[str, torch.Tensor]
Collate = Callable[[Sequence[Sample], torch.device], Batch]
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "cu_seq_lens_q")


class AnswerLogits:
    """What a model predicts at the labelled tokens of a batch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._plain_head: bool | None = None  # asked of the model on the first batch

    def __call__(self, batch: Batch) -> torch.Tensor:
        """(labelled tokens, vocabulary): sample by sample, in the order of the tokens."""
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        wanted = batch["labels"][:, 1:] != IGNORE
        if self.plain_head(batch):
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden[:, :-1][wanted])
        else:
            logits = self.model(**inputs, use_cache=False).logits[:, :-1][wanted]
        found: torch.Tensor = logits
        return found

    @torch.no_grad()
    def plain_head(self, batch: Batch) -> bool:
        """Whether logits are the output embedding and nothing more (no scaling, no soft cap)."""
        if self._plain_head is None:
            ids = batch["input_ids"][:1, :8]
            hidden = self.model.base_model(ids, use_cache=False).last_hidden_state
            ours = self.model.get_output_embeddings()(hidden).float()
            theirs = self.model(ids, use_cache=False).logits.float()
            self._plain_head = bool(torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2))
        return self._plain_head


class AnswerLoss(nn.Module):
    """Sum of the cross entropy (nats) over the labelled tokens of a batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.logits = AnswerLogits(model)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Sum over the batch, float32, one number; differentiable also without labels."""
        return cross_entropy(self.logits(batch), batch)


def cross_entropy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum over the labelled tokens, nats; `logits` as of AnswerLogits."""
    targets = batch["labels"][:, 1:]
    return functional.cross_entropy(logits.float(), targets[targets != IGNORE], reduction="sum")


@torch.no_grad()
def mean_loss(
    model: Any, logits: AnswerLogits, samples: Sequence[Sample], batch_size: int, batch_of: Collate
) -> float | None:
    """Cross entropy per trained token over all samples, nats; None when there is none."""
    tokens = sum(sample.trained_tokens for sample in samples)
    if not tokens:
        return None
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    ordered = sorted(samples, key=lambda sample: len(sample.input_ids))
    total = 0.0
    for start in range(0, len(ordered), batch_size):
        batch = batch_of(ordered[start : start + batch_size], device)
        total += float(cross_entropy(logits(batch), batch))
    model.train(was_training)
    return total / tokens
