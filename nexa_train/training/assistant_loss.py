"""The loss on the assistant's tokens; logits are computed for these tokens only."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nexa_distill.errors import InputError
from nexa_train.data.chat_tokenization import IGNORE, Sample
from nexa_train.data.collate import Batch, Collate

ON_POLICY = "on_policy"  # a key in batches of answers that the student generated
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k")


class AnswerLogits:
    """The predictions of a model at the labelled tokens of a batch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.plain_head = _has_plain_head(model)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """(labelled tokens, vocabulary): sample by sample, in the order of the tokens."""
        logits: torch.Tensor
        if self.plain_head:
            # With a vocabulary of 49,152 the logits of prompt and padding are most of the
            # arithmetic after the last layer, so hidden states are selected first.
            logits = self.model.get_output_embeddings()(self.hidden_states(batch))
        else:
            inputs, labelled = _model_inputs(batch)
            logits = self.model(**inputs, use_cache=False).logits[:, :-1][labelled]
        return logits

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """(labelled tokens, hidden size): the input of a plain head."""
        inputs, labelled = _model_inputs(batch)
        hidden: torch.Tensor = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden[:, :-1][labelled]


def _model_inputs(batch: Batch) -> tuple[Batch, torch.Tensor]:
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    return inputs, batch["labels"][:, 1:] != IGNORE


@torch.no_grad()
def _has_plain_head(model: Any) -> bool:
    if model.base_model is model:  # Llama4ForCausalLM: hidden states are not available alone
        return False
    # Are the logits the output embedding times the hidden state? Some models scale or cap them,
    # which only a trial shows.
    was_training = model.training
    model.eval()  # with dropout two passes differ
    ids = torch.arange(8, device=next(model.parameters()).device)[None]
    hidden = model.base_model(ids, use_cache=False).last_hidden_state
    ours = model.get_output_embeddings()(hidden).float()
    theirs = model(ids, use_cache=False).logits.float()
    model.train(was_training)
    return bool(torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2))


def _has_only_a_weight(model: Any) -> bool:
    # A fused kernel reads the weight: no bias, and no adapter.
    head = model.get_output_embeddings()
    return isinstance(head, nn.Linear) and head.bias is None


class AnswerLoss(nn.Module):
    """Sum of the cross entropy (nats) over the labelled tokens of a batch."""

    def __init__(self, model: Any, fused: Any = None) -> None:
        super().__init__()
        # The terms of a subclass's last value, each a sum over the same tokens.
        self.parts: dict[str, torch.Tensor] = {}
        # `fused` computes the loss from hidden states, and never holds all logits.
        self.model, self.fused = model, fused
        self.logits = AnswerLogits(model)
        if fused is not None and not (self.logits.plain_head and _has_only_a_weight(model)):
            raise InputError(
                f"train.fused_loss: {type(model).__name__} does more than a multiplication after "
                "its last layer; set train.fused_loss: false"
            )

    def forward(self, batch: Batch, *, words_only: bool = False) -> torch.Tensor:  # noqa: ARG002
        """A scalar, float32; differentiable also without labels. `words_only`: no terms of a subclass."""
        if self.fused is None:
            return cross_entropy(self.logits(batch), batch)
        hidden, targets = self.logits.hidden_states(batch), _target_tokens(batch)
        weight = self.model.get_output_embeddings().weight
        loss: torch.Tensor
        if len(targets):
            loss = self.fused(weight.to(hidden.dtype), hidden, targets)
        else:  # a process without labels takes part; the kernel would divide by 0
            loss = (hidden.sum() + weight.sum()) * 0
        return loss


def fused_cross_entropy() -> Any:
    """liger-kernel's sum over all tokens (Hsu et al. 2024, arXiv:2410.10989). Raises InputError without it or a GPU."""
    if not torch.cuda.is_available():
        raise InputError(
            "train.fused_loss: the kernel needs a GPU, and torch sees none here; set train.fused_loss: false"
        )
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        raise InputError(
            "train.fused_loss: liger-kernel is not installed; run `pip install -e '.[fused]'`, or "
            "set train.fused_loss: false"
        ) from None
    return LigerFusedLinearCrossEntropyLoss(reduction="sum")


def cross_entropy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum over the labelled tokens, nats; `logits` from AnswerLogits."""
    return functional.cross_entropy(logits.float(), _target_tokens(batch), reduction="sum")


def _target_tokens(batch: Batch) -> torch.Tensor:
    targets = batch["labels"][:, 1:]
    return targets[targets != IGNORE]


@torch.no_grad()
def mean_loss(loss: AnswerLoss, samples: Sequence[Sample], batch_size: int, batch_of: Collate) -> float | None:
    """Cross entropy per trained token over all samples, nats; None without trained tokens."""
    tokens = sum(sample.trained_tokens for sample in samples)
    if not tokens:
        return None
    was_training, device = loss.training, next(loss.parameters()).device
    loss.eval()
    # Similar lengths together: the least padding.
    ordered = sorted(samples, key=lambda sample: len(sample.input_ids))
    total = 0.0
    for start in range(0, len(ordered), batch_size):
        batch = batch_of(ordered[start : start + batch_size], device)
        total += float(loss(batch, words_only=True))
    loss.train(was_training)
    return total / tokens
