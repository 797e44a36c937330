"""Divergence of a student's next-token distribution q from its teacher's p, in nats.

forward_kl      KL(p || q) = sum p (log p - log q)        Hinton et al. 2015, arXiv:1503.02531
reverse_kl      KL(q || p)                                Gu et al. 2024, arXiv:2306.08543
jensen_shannon  b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q, the generalised JSD of
                Agarwal et al. 2024, arXiv:2306.13649; b = 0.5 is the Jensen-Shannon divergence

All are over distributions at temperature T (logits / T) and multiplied by T squared, which keeps
the size of the gradients (Hinton et al., section 2). Everything is computed in float32.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of log-probabilities
SMALLEST = 1e-20  # least mass of a tail: its logarithm has to be finite


class TopK(NamedTuple):
    """A teacher's distribution at `temperature` for each of n tokens, in float32 or float16."""

    ids: torch.Tensor  # (n, k), int64
    log_probs: torch.Tensor  # (n, k), nats
    tail: torch.Tensor  # (n, 1), the logarithm of the mass of all others


def forward_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(n, outcomes) log-probabilities of teacher and student -> (n,) nats."""
    return (p.exp() * (p - q)).sum(-1)


def reverse_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    # Penalises tokens that the teacher would not give; forward_kl those that the student misses.
    return forward_kl(q, p)


def jensen_shannon(p: torch.Tensor, q: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """Generalised: `beta` (0..1, both excluded) is the teacher's weight in the mixture."""
    weights = torch.tensor([beta, 1 - beta], device=p.device).log()
    # In logarithms: small probabilities would be rounded to 0.
    mixture = torch.logsumexp(torch.stack([p + weights[0], q + weights[1]]), dim=0)
    return beta * forward_kl(p, mixture) + (1 - beta) * forward_kl(q, mixture)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}


def dense_divergence(
    divergence: Divergence, teacher: torch.Tensor, student: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Sum over n tokens; logits (n, vocabulary) of each."""
    # Models pad their vocabularies to different sizes: ids of only one of them are left out.
    shared = min(teacher.shape[-1], student.shape[-1])
    p, q = (_log_probs(logits[:, :shared], temperature) for logits in (teacher, student))
    return divergence(p, q).sum() * temperature**2


def top_k_divergence(divergence: Divergence, teacher: TopK, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over n tokens; student's logits (n, vocabulary), same `temperature`. At most `dense_divergence`."""
    # Both are distributions over k + 1 outcomes: the teacher's k tokens, and all others together
    # (the tail). Joining outcomes never makes a divergence larger.
    q = _log_probs(student, temperature)
    top = q.gather(-1, teacher.ids)
    # 1 - sum would round a small tail to 0 if the k tokens have nearly all of the mass.
    rest = torch.log1p(-top.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    ours = torch.cat([top, rest], dim=-1)
    # Cast part by part: autocast to bfloat16 cannot concatenate float16 tensors.
    theirs = torch.cat([part.float() for part in (teacher.log_probs, teacher.tail)], dim=-1)
    return divergence(theirs, ours).sum() * temperature**2


def top_k(logits: torch.Tensor, k: int, temperature: float) -> TopK:
    """The teacher's k most likely tokens from its logits (n, vocabulary)."""
    log_probs = _log_probs(logits, temperature)
    kept = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)
    # The tail is summed from the others: 1 - sum of the k would round a small one to 0.
    others = log_probs.scatter(-1, kept.indices, float("-inf"))
    tail = torch.logsumexp(others, dim=-1, keepdim=True).clamp(min=math.log(SMALLEST))
    return TopK(kept.indices, kept.values, tail)


def _log_probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return functional.log_softmax(logits.float() / temperature, dim=-1)
