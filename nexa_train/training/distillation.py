"""Distillation loss on the teacher's probabilities: `(1 - kd_ratio) CE + kd_ratio KD`.

The teacher is online (its model in the process: exact, a forward pass in every step) or cached
(`storage.teacher_logits`: computed once, k tokens and a tail). `divergences.py` has the formulas.
"""

from collections.abc import Sequence
from typing import Any

import torch

from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import Storage
from nexa_distill.settings.student import Distillation, StudentConfig
from nexa_train.data.chat_tokenization import Sample
from nexa_train.data.collate import Batch, Collate, make_collate
from nexa_train.data.dataset import Dataset
from nexa_train.data.vocabulary import vocabulary_size
from nexa_train.models.bundled import resolve_model
from nexa_train.models.loading import load_for_inference
from nexa_train.training.assistant_loss import ON_POLICY, AnswerLogits, AnswerLoss, cross_entropy, fused_cross_entropy
from nexa_train.training.divergences import DIVERGENCES, TopK, dense_divergence, top_k_divergence
from nexa_train.training.teacher_cache import CachedTeacher, refuse_other_vocabulary


class DistillationLoss(AnswerLoss):
    """Sum over the labelled tokens of a batch, nats. Token ids >= `vocabulary` are padding."""

    def __init__(self, model: Any, settings: Distillation, vocabulary: int, teacher: Any = None) -> None:
        super().__init__(model)
        self.settings, self.vocabulary = settings, vocabulary
        # Not a submodule: its weights must not be trained, saved or sent to other processes.
        self.teacher = AnswerLogits(teacher) if teacher is not None else None

    def forward(self, batch: Batch, *, words_only: bool = False) -> torch.Tensor:
        """A scalar, float32. A cached teacher's rows are in the batch (`CachedTeacher.batch`)."""
        logits = self.logits(batch)
        if words_only:
            return cross_entropy(logits, batch)
        divergence = self._teacher_divergence(logits[:, : self.vocabulary], batch)
        self.parts = {"divergence": divergence.detach()}
        if ON_POLICY in batch:  # generated answers are no targets: the divergence alone counts
            return divergence
        entropy, ratio = cross_entropy(logits, batch), self.settings.kd_ratio
        self.parts["cross_entropy"] = entropy.detach()
        return (1 - ratio) * entropy + ratio * divergence

    def _teacher_divergence(self, student: torch.Tensor, batch: Batch) -> torch.Tensor:
        chosen, temperature = DIVERGENCES[self.settings.loss], self.settings.temperature
        if self.teacher is None:
            top = TopK(batch["top_ids"].long(), batch["top_log_probs"], batch["tail_log_prob"])
            return top_k_divergence(chosen, top, student, temperature)
        with torch.no_grad():
            teacher = self.teacher(batch)[:, : self.vocabulary]
        return dense_divergence(chosen, teacher, student, temperature)


def build_loss(
    config: StudentConfig, storage: Storage, model: Any, tokenizer: Any, data: Dataset, batch_of: Collate
) -> tuple[AnswerLoss, Collate]:
    """The loss and its collate function. Raises InputError for another vocabulary, or a cache of other samples."""
    settings = config.distillation
    fused = fused_cross_entropy() if config.train.fused_loss else None
    if settings.loss == "none":
        return AnswerLoss(model, fused), batch_of
    if fused is not None:
        raise InputError(
            "train.fused_loss: the kernel gives no probabilities to compare with the teacher's; "
            "set it to false, or distillation.loss: none"
        )
    vocabulary = vocabulary_size(tokenizer)
    if settings.uses_cache:
        cached = CachedTeacher(storage.path_of("teacher_logits"), [*data.train, *data.val])

        def with_teacher(samples: Sequence[Sample], device: torch.device) -> Batch:
            return batch_of(samples, device) | cached.batch_tensors(samples, device)

        return DistillationLoss(model, settings, vocabulary), with_teacher
    teacher, theirs = load_for_inference(resolve_model(settings.teacher, storage))
    refuse_other_vocabulary(theirs, tokenizer)
    # The teacher reads the same batches, so packing has to be enabled in it too.
    make_collate(teacher, theirs, [*data.train, *data.val], packed=config.train.packing)
    return DistillationLoss(model, settings, vocabulary, teacher), batch_of
