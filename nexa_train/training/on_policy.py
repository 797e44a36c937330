"""On-policy distillation: the teacher scores answers that the student samples itself.

Generalised knowledge distillation, Agarwal et al. 2024, https://arxiv.org/abs/2306.13649: in a
share of the batches the student's own answers replace those of the data. Gradients do not flow
through the sampling. A resumed run, or one on another number of processes, samples the same.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nexa_distill.settings.student import Distillation
from nexa_train.data import packing
from nexa_train.data.chat_tokenization import IGNORE, Sample


@dataclass(frozen=True)
class Student:
    """The trained model as a generator. Ids from `vocabulary` on are padding."""

    model: Any
    settings: Distillation
    seed: int
    vocabulary: int
    end: int

    def is_on_policy(self, step: int, number: int) -> bool:
        # No process is part of the seed: all have to agree.
        return _seeded_random(self.seed, step, number).random() < self.settings.on_policy

    def resample_answers(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        """The last answer is generated, no longer than before, and alone in the loss; unlabelled samples are kept."""
        spans = [(sample, _last_answer(sample)) for sample in samples]
        answered = [(sample, span) for sample, span in spans if span]
        prompts = [sample.input_ids[: span.start] for sample, span in answered]
        # Seed, step and sample decide every draw; the batch does not.
        draws = [_seeded_random(self.seed, step, sample.sample_id) for sample, _ in answered]
        answers = iter(self._generate_answers(prompts, [len(span) for _, span in answered], draws))
        return [_with_answer(sample, span.start, next(answers)) if span else sample for sample, span in spans]

    @torch.no_grad()
    def _generate_answers(
        self, prompts: list[list[int]], limits: list[int], draws: list[random.Random]
    ) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        was_training, device = self.model.training, next(self.model.parameters()).device
        ids, mask = _left_padded(prompts, self.end, device)
        cache = None
        self.model.eval()
        with packing.suspend_packing(self.model):
            for _ in range(max(limits, default=0)):
                # Positions count real tokens: prompts are padded on the left.
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                out = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=places,
                    use_cache=True,
                    past_key_values=cache,
                    logits_to_keep=1,
                )
                cache = out.past_key_values
                tokens = self._draw_tokens(out.logits[:, -1], draws)
                is_unfinished = False
                for answer, limit, token in zip(answers, limits, tokens.tolist(), strict=True):
                    # A finished row still gets tokens from the batch; they are dropped.
                    if len(answer) < limit and self.end not in answer[-1:]:
                        answer.append(token)
                        is_unfinished |= token != self.end and len(answer) < limit
                if not is_unfinished:
                    break
                # From now on only the new token is read; the cache has the rest.
                ids = tokens[:, None]
                mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        self.model.train(was_training)
        return answers

    def _draw_tokens(self, logits: torch.Tensor, draws: list[random.Random]) -> torch.Tensor:
        # Inverse transform sampling, with one random number per row.
        scaled = logits[:, : self.vocabulary].double() / self.settings.sampling_temperature
        cumulated = scaled.softmax(-1).cumsum(-1)
        # In double precision: float32 would round small probabilities away.
        points = [[draw.random()] for draw in draws]
        where = torch.tensor(points, dtype=torch.double, device=logits.device)
        drawn = torch.searchsorted(cumulated, where, right=True)
        return drawn[:, 0].clamp(max=cumulated.shape[1] - 1)


def _seeded_random(*key: object) -> random.Random:
    return random.Random(":".join(map(str, key)))  # noqa: S311 - a sample, not a secret


def _last_answer(sample: Sample) -> range:
    end = len(sample.labels)
    # Down to 1: token 0 is never trained.
    while end > 1 and sample.labels[end - 1] == IGNORE:
        end -= 1
    start = end
    while start > 1 and sample.labels[start - 1] != IGNORE:
        start -= 1
    return range(start, end)


def _with_answer(sample: Sample, start: int, answer: list[int]) -> Sample:
    prompt = sample.input_ids[:start]
    return Sample(sample.sample_id, prompt + answer, [IGNORE] * start + answer)


def _left_padded(prompts: list[list[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts), default=0)
    ids = [[fill] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
