"""Divergences as by hand and as torch has them; a known top of the distribution bounds them."""

import math

import pytest
import torch
from torch.nn import functional

from nexa_train.training.divergences import (
    DIVERGENCES,
    TopK,
    dense_divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    top_k,
    top_k_divergence,
)

TOKENS, VOCABULARY = 7, 50


def logits(seed: int, size: int = VOCABULARY, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(TOKENS, size, generator=torch.manual_seed(seed))


TEACHER, STUDENT = logits(1), logits(2)
P, Q = (functional.log_softmax(x, -1) for x in (TEACHER, STUDENT))


def test_two_outcomes_are_as_by_hand() -> None:
    p, q = (torch.tensor([[a, 1 - a]]).log() for a in (0.75, 0.5))
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(forward_kl(p, q)) == pytest.approx(by_hand, rel=1e-5)
    assert float(reverse_kl(p, q)) == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), rel=1e-5)
    m = torch.tensor([[0.625, 0.375]]).log()
    assert float(jensen_shannon(p, q)) == pytest.approx(
        0.5 * float(forward_kl(p, m)) + 0.5 * float(forward_kl(q, m)), rel=1e-5
    )


def test_forward_and_reverse_are_torchs() -> None:
    theirs = functional.kl_div(Q, P, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(forward_kl(P, Q), theirs, atol=1e-5)
    other = functional.kl_div(P, Q, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(reverse_kl(P, Q), other, atol=1e-5)


def test_jensen_shannon_is_symmetric_at_a_half_and_tends_to_the_kls() -> None:
    assert torch.allclose(jensen_shannon(P, Q), jensen_shannon(Q, P), atol=1e-5)
    assert (jensen_shannon(P, Q) <= math.log(2) + 1e-6).all()
    small = 1e-3  # Agarwal et al. 2024: JSD(b)/b -> KL(p || q) as b -> 0, and the reverse at 1
    p, q = (functional.log_softmax(x.double() / 6, -1) for x in (TEACHER, STUDENT))
    assert torch.allclose(jensen_shannon(p, q, small) / small, forward_kl(p, q), rtol=0.02)
    assert torch.allclose(jensen_shannon(p, q, 1 - small) / small, reverse_kl(p, q), rtol=0.02)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_is_that_of_differences(name: str, temperature: float) -> None:
    student = STUDENT[:2, :6].double().requires_grad_()
    teacher = TEACHER[:2, :6].double()

    def value(x: torch.Tensor) -> float:
        p, q = (functional.log_softmax(y / temperature, -1) for y in (teacher, x))
        return float(DIVERGENCES[name](p, q).sum() * temperature**2)

    dense_divergence(DIVERGENCES[name], teacher, student, temperature).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    for place in ((0, 0), (1, 3)):
        step = torch.zeros_like(teacher)
        step[place] = 1e-4
        by_difference = (value(student.detach() + step) - value(student.detach() - step)) / 2e-4
        assert float(student.grad[place]) == pytest.approx(by_difference, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_all_tokens_known_is_dense_and_fewer_are_a_lower_bound(name: str, temperature: float) -> None:
    whole = float(dense_divergence(DIVERGENCES[name], TEACHER, STUDENT, temperature))
    bounds = []
    for k in (1, 5, 20, VOCABULARY):
        known = top_k(TEACHER, k, temperature)
        assert torch.allclose(known.log_probs.exp().sum(-1) + known.tail.exp().squeeze(-1),
                              torch.ones(TOKENS), atol=1e-5)  # fmt: skip
        bounds.append(float(top_k_divergence(DIVERGENCES[name], known, STUDENT, temperature)))
    assert bounds == sorted(bounds)
    assert 0 < bounds[0] < bounds[2] < whole + 1e-4
    assert bounds[-1] == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_t01_under_autocast_to_bfloat16_what_is_stored_narrow_is_compared_in_float32(name: str) -> None:
    """To the last bit: bfloat16 would leave 8 bits of mantissa, an error of about 1e-2."""
    known = top_k(TEACHER, 8, 2.0)
    stored = TopK(known.ids, known.log_probs.half(), known.tail.half())

    def found(narrow: torch.Tensor, autocast: bool) -> list[torch.Tensor]:
        student = STUDENT.bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            sums = [
                dense_divergence(DIVERGENCES[name], narrow, student, 2.0),
                top_k_divergence(DIVERGENCES[name], stored, student, 2.0),
            ]
            torch.stack(sums).sum().backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        return [*sums, student.grad]

    for narrow in (TEACHER.bfloat16(), TEACHER.half()):
        under, outside = found(narrow, True), found(narrow, False)
        assert [value.dtype for value in under[:2]] == [torch.float32] * 2
        assert all(torch.equal(one, other) for one, other in zip(under, outside, strict=True))


def test_equal_distributions_are_not_apart() -> None:
    for name, divergence in DIVERGENCES.items():
        assert float(dense_divergence(divergence, TEACHER, TEACHER + 3.0, 2.0)) == pytest.approx(0, abs=1e-4), name
        known = top_k(TEACHER, 8, 2.0)
        assert float(top_k_divergence(divergence, known, TEACHER, 2.0)) == pytest.approx(0, abs=1e-4), name


def test_what_pads_a_vocabulary_is_left_out() -> None:
    padded = torch.cat([TEACHER, torch.full((TOKENS, 14), 30.0)], dim=-1)
    same = float(dense_divergence(forward_kl, TEACHER, STUDENT, 1.0))
    assert float(dense_divergence(forward_kl, padded, STUDENT, 1.0)) == pytest.approx(same)
    assert float(dense_divergence(forward_kl, TEACHER, torch.cat([STUDENT, padded[:, 50:]], -1), 1.0)) == pytest.approx(
        same
    )


def test_a_teacher_that_is_sure_leaves_a_finite_tail() -> None:
    sure = torch.zeros(1, VOCABULARY)
    sure[0, 3] = 1000.0
    known = top_k(sure, 4, 1.0)
    assert bool(torch.isfinite(known.tail.half()).all())
    student = STUDENT[:1].clone().requires_grad_()
    top_k_divergence(forward_kl, known, student, 1.0).backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(student.grad).all())  # type: ignore[arg-type]
    certain = TopK(known.ids, known.log_probs, known.tail)
    assert float(top_k_divergence(forward_kl, certain, sure, 1.0)) == pytest.approx(0, abs=1e-3)
