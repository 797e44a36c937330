"""Significance of differences between two models on the same samples. Pure functions.

A model compared with itself has difference 0, an interval from 0 to 0 and the verdict "no
difference". The verdict is "higher" or "lower" only if the whole interval is on one side of 0 and,
for passes, McNemar's p is below 0.05.
"""

from collections.abc import Mapping, Sequence
from math import comb, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # standard normal quantile at 0.975
RESAMPLES = 10_000
SEED = 7
SIGNIFICANT = 0.05  # the two-sided level of every 95 % interval
# Below this number even documents that all agree are too often chance: the least p of a sign test,
# 2 / 2^n, is below SIGNIFICANT from here.
FEWEST_DOCUMENTS = 6
NOT_SHOWN = "no difference shown"  # there may be one; "no difference" is for equal figures only
CHUNK = 500  # resamples drawn at a time, which bounds the memory

Floats = npt.NDArray[np.float64]


def wilson_interval(passed: int, total: int) -> tuple[float, float] | None:
    """Wilson's 95 % score interval of a share; None without measurements (1927, JASA 22, 209)."""
    if total == 0:
        return None
    share, z2 = passed / total, Z_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 * sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    # Exact at the ends, where rounding would leave a tiny number.
    return (0.0 if passed == 0 else low, 1.0 if passed == total else high)


def mcnemar_p_value(only_before: int, only_after: int) -> float:
    """McNemar's exact test: two-sided p that a split is this uneven if neither is better."""
    # The binomial test on the discordant pairs (McNemar 1947, Psychometrika 12, 153-157).
    n, least = only_before + only_after, min(only_before, only_after)
    # Integers are exact: 0.5**n would be 0 for large n.
    return min(1.0, 2 * sum(comb(n, k) for k in range(least + 1)) / (1 << n))


def paired_difference(
    groups: Sequence[str], before: Sequence[float], after: Sequence[float], weights: Sequence[float]
) -> dict[str, Any] | None:
    """After minus before, with its interval. None without samples; no verdict below FEWEST_DOCUMENTS.

    The same samples measured on two models. A share: 0 or 1, weights of 1. A mean loss: nats, weighted by tokens.
    """
    if not groups:
        return None
    # Sums by document: the bootstrap draws documents, not samples.
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    change: Floats = np.bincount(group, np.subtract(after, before)).astype(np.float64)
    weight: Floats = np.bincount(group, np.asarray(weights)).astype(np.float64)
    difference = float(change.sum() / weight.sum())
    # Without any change the interval is 0 to 0, however few the documents are.
    enough = len(change) >= FEWEST_DOCUMENTS or not change.any()
    low, high = _bootstrap_interval(change, weight) if enough else (None, None)
    interval = {"difference": difference, "low": low, "high": high, "verdict": _classify_interval(low, high)}
    counts = {"samples": len(groups), "documents": len(change)}
    return interval | counts | {"resamples": RESAMPLES, "seed": SEED}


def _bootstrap_interval(change: Floats, weight: Floats) -> tuple[float, float]:
    # The paired bootstrap (Efron 1979, Annals of Statistics 7, 1-26; Koehn 2004, EMNLP). It draws
    # whole groups: samples of one source document are not independent.
    generator = np.random.default_rng(SEED)
    drawn = []
    for _ in range(RESAMPLES // CHUNK):
        picks = generator.integers(0, len(change), (CHUNK, len(change)))
        # A ratio of sums, as the figure itself: a mean of ratios would favour small documents.
        drawn.append(change[picks].sum(axis=1) / weight[picks].sum(axis=1))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return float(low), float(high)


def _classify_interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "cannot be said"
    if low > 0:
        return "higher"
    if high < 0:
        return "lower"
    return "no difference" if low == high == 0 else NOT_SHOWN


def compare_losses(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """`document`, `nats`, `tokens` per sample. None without common samples, or for different tokenizers."""
    keys = sorted(before.keys() & after.keys())
    weights = [before[key]["tokens"] for key in keys]
    if weights != [after[key]["tokens"] for key in keys]:
        return None  # nats per token of two tokenizers cannot be compared
    groups = [after[key]["document"] for key in keys]
    first, second = ([run[key]["nats"] for key in keys] for run in (before, after))
    return paired_difference(groups, first, second, weights)


def compare_passes(groups: Sequence[str], before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any] | None:
    """Two models at one gate: the four kinds of pair, McNemar's p, the difference of shares."""
    difference = paired_difference(groups, list(map(float, before)), list(map(float, after)), [1.0] * len(groups))
    if difference is None:
        return None
    both = sum(b and a for b, a in zip(before, after, strict=True))
    only_before, only_after = sum(before) - both, sum(after) - both
    p = mcnemar_p_value(only_before, only_after)
    # Both tests have to agree: the bootstrap of few documents gives intervals that are too narrow.
    if difference["verdict"] in {"higher", "lower"} and p >= SIGNIFICANT:
        difference["verdict"] = NOT_SHOWN
    neither = len(groups) - both - only_before - only_after
    counts = {"both": both, "only_before": only_before, "only_after": only_after}
    return {**counts, "neither": neither, "mcnemar_p": p, **difference}
