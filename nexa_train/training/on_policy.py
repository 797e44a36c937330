"""Answers that the student samples itself, for its teacher to score: on-policy distillation.

Generalised knowledge distillation, Agarwal et al. 2024, https://arxiv.org/abs/2306.13649: a share
of the batches has the student's own words in place of the data's, so that it learns in the
situations which it gets itself into. Gradients do not flow through the sampling.

Everything random follows the seed, the step and the sample: a resumed run says the same again, and
so does a run on another number of processes.
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
    """The model that is trained, as one that answers. `vocabulary`: ids from there on are padding;
    `end`: the token that ends an answer.
    """

    model: Any
    settings: Distillation
    seed: int
    vocabulary: int
    end: int

    def speaks(self, step: int, number: int) -> bool:
        """Whether the `number`-th batch of `step` is its own; the same on every process."""
        return _random(self.seed, step, number).random() < self.settings.on_policy

    def retold(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        """The samples with the last answer of each said anew, at most as long as it was.

        What stood before it is not trained on, nor is anything after it. A sample without labels
        stays as it is.
        """
        cut = [(sample, _last_answer(sample)) for sample in samples]
        asked = [(sample, place) for sample, place in cut if place]
        prompts = [sample.input_ids[: place.start] for sample, place in asked]
        draws = [_random(self.seed, step, sample.sample_id) for sample, _ in asked]
        said = iter(self._say(prompts, [len(place) for _, place in asked], draws))
        return [
            _told(sample, place.start, next(said)) if place else sample for sample, place in cut
        ]

    @torch.no_grad()
    def _say(
        self, prompts: list[list[int]], limits: list[int], draws: list[random.Random]
    ) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in prompts]
        was_training, device = self.model.training, next(self.model.parameters()).device
        ids, mask = _left_padded(prompts, self.end, device)
        cache = None
        self.model.eval()
        with packing.suspended(self.model):
            for _ in range(max(limits, default=0)):
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                out = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True,
                    past_key_values=cache, logits_to_keep=1,
                )  # fmt: skip
                cache = out.past_key_values
                tokens = self._draw(out.logits[:, -1], draws)
                going = False
                for row, token in enumerate(tokens.tolist()):
                    if len(said[row]) < limits[row] and self.end not in said[row][-1:]:
                        said[row].append(token)
                        going |= token != self.end and len(said[row]) < limits[row]
                if not going:
                    break
                ids = tokens[:, None]
                mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        self.model.train(was_training)
        return said

    def _draw(self, logits: torch.Tensor, draws: list[random.Random]) -> torch.Tensor:
        """One token a row: where the row's random number falls in the cumulated probabilities."""
        scaled = logits[:, : self.vocabulary].double() / self.settings.sampling_temperature
        cumulated = scaled.softmax(-1).cumsum(-1)
        points = [[draw.random()] for draw in draws]
        where = torch.tensor(points, dtype=torch.double, device=logits.device)
        drawn = torch.searchsorted(cumulated, where, right=True)
        return drawn[:, 0].clamp(max=cumulated.shape[1] - 1)


def _random(*key: object) -> random.Random:
    return random.Random(":".join(map(str, key)))  # noqa: S311 - a sample, not a secret


def _last_answer(sample: Sample) -> range:
    """Where the last run of trained tokens is; the first token of all has nothing before it."""
    end = len(sample.labels)
    while end > 1 and sample.labels[end - 1] == IGNORE:
        end -= 1
    start = end
    while start > 1 and sample.labels[start - 1] != IGNORE:
        start -= 1
    return range(start, end)


def _told(sample: Sample, start: int, said: list[int]) -> Sample:
    prompt = sample.input_ids[:start]
    return Sample(sample.sample_id, prompt + said, [IGNORE] * start + said)


def _left_padded(
    prompts: list[list[int]], fill: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts), default=0)
    ids = [[fill] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
