"""Is one model better than another on the same samples? Shares, intervals, paired comparisons.

Everything here is pure and exact about ties: a model compared with itself has difference 0, an
interval from 0 to 0 and the verdict "no difference".

Formulas:
- share of passes: Wilson's score interval, 95 % (Wilson 1927, JASA 22, 209-212);
- pass against pass: McNemar's exact test, the two-sided binomial test on the discordant pairs
  (McNemar 1947, Psychometrika 12, 153-157);
- every difference: percentile interval, 95 %, of the paired bootstrap (Efron 1979, Annals of
  Statistics 7, 1-26; Koehn 2004, EMNLP), which draws whole groups of samples: those that come from
  one source document stand or fall together and are no independent evidence.

"higher" or "lower" is said only where the whole interval lies on one side of 0 and, for passes,
McNemar's p is below 0.05 too: the bootstrap of few documents is too sure of itself. From fewer than
FEWEST_DOCUMENTS nothing is said: even where all of them point one way, chance does that too often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # standard normal quantile at 0.975
RESAMPLES = 10_000
SEED = 7
SIGNIFICANT = 0.05  # the two-sided level that belongs to the 95 % of every interval
FEWEST_DOCUMENTS = 6  # 2 / 2^n is below SIGNIFICANT from here: the sign test's least p
NOT_SHOWN = "no difference shown"  # there may be one; "no difference" is said of equal figures only
CHUNK = 500  # resamples drawn at a time, which bounds the memory

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """The same samples measured on two models: sums that are divided by `weights`, and groups.

    A share: 0 or 1 in `before` and `after`, weights of 1. A mean loss: nats, weighted by tokens.
    """

    groups: Sequence[str]
    before: Sequence[float]
    after: Sequence[float]
    weights: Sequence[float]


def wilson(passed: int, total: int) -> tuple[float, float] | None:
    """95 % score interval of a share, or None when nothing was measured."""
    if total == 0:
        return None
    share, z2 = passed / total, Z_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 * sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return (0.0 if passed == 0 else low, 1.0 if passed == total else high)


def mcnemar(only_before: int, only_after: int) -> float:
    """Exact two-sided p: the chance of a split at least this uneven if neither is better."""
    n, least = only_before + only_after, min(only_before, only_after)
    return min(1.0, 2 * sum(comb(n, k) for k in range(least + 1)) / (1 << n))


def paired_difference(pairs: Pairs) -> dict[str, Any] | None:
    """After minus before, with its bootstrap interval; None when there is no pair.

    `low` and `high` are null, and nothing can be said, when there are fewer than
    FEWEST_DOCUMENTS and anything changed.
    """
    if not pairs.groups:
        return None
    _, group = np.unique(np.asarray(pairs.groups), return_inverse=True)
    change: Floats = np.bincount(group, np.subtract(pairs.after, pairs.before)).astype(np.float64)
    weight: Floats = np.bincount(group, np.asarray(pairs.weights)).astype(np.float64)
    difference = float(change.sum() / weight.sum())
    enough = len(change) >= FEWEST_DOCUMENTS or not change.any()
    low, high = _interval(change, weight) if enough else (None, None)
    return {
        "difference": difference, "low": low, "high": high, "verdict": _verdict(low, high),
        "samples": len(pairs.groups), "documents": len(change),
        "resamples": RESAMPLES, "seed": SEED,
    }  # fmt: skip


def _interval(change: Floats, weight: Floats) -> tuple[float, float]:
    """2.5th and 97.5th percentile over resamples of groups, drawn with replacement."""
    generator = np.random.default_rng(SEED)
    drawn = []
    for _ in range(RESAMPLES // CHUNK):
        picks = generator.integers(0, len(change), (CHUNK, len(change)))
        drawn.append(change[picks].sum(axis=1) / weight[picks].sum(axis=1))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return float(low), float(high)


def _verdict(low: float | None, high: float | None) -> str:
    """What the interval says about after minus before."""
    if low is None or high is None:
        return "cannot be said"
    if low > 0:
        return "higher"
    if high < 0:
        return "lower"
    return "no difference" if low == high == 0 else NOT_SHOWN


def compare_passes(
    groups: Sequence[str], before: Sequence[bool], after: Sequence[bool]
) -> dict[str, Any] | None:
    """Two models at one gate: the four kinds of pair, McNemar's p, the difference of shares.

    The verdict holds by both: the interval and McNemar's test.
    """
    pairs = Pairs(
        groups, [float(x) for x in before], [float(x) for x in after], [1.0] * len(groups)
    )
    difference = paired_difference(pairs)
    if difference is None:
        return None
    both = sum(b and a for b, a in zip(before, after, strict=True))
    only_before, only_after = sum(before) - both, sum(after) - both
    p = mcnemar(only_before, only_after)
    if difference["verdict"] in {"higher", "lower"} and p >= SIGNIFICANT:
        difference["verdict"] = NOT_SHOWN
    return {
        "both": both, "only_before": only_before, "only_after": only_after,
        "neither": len(groups) - both - only_before - only_after,
        "mcnemar_p": p, **difference,
    }  # fmt: skip
