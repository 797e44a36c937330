"""Judges compared with annotators: agreement of a judge's thresholded score with human decisions.

A human decision is positive if it is `accept`, negative if it is `reject`, `regenerate` or `edit`
(the original answer was not good enough). The last decision of each annotator counts. Answers on
which annotators disagree are counted and excluded: there is no truth to compare with. A judge's
decision is positive if its score reaches the threshold.

Cohen's kappa (Cohen 1960, "A coefficient of agreement for nominal scales"):
(p_o - p_e) / (1 - p_e), p_o the share of equal decisions, p_e the share expected of two independent
raters with the same rates. 1 is agreement, 0 is chance, null means that both always decide the
same. The interval is a seeded percentile bootstrap over answers. Not covered: answers to one prompt
are drawn as if they were independent; the best threshold is chosen and measured on the same
answers, so its kappa is too high.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nexa_distill.annotation.annotations import Key, latest_decisions, read
from nexa_distill.errors import InputMissing

THRESHOLDS = [round(0.05 * step, 2) for step in range(21)]
DRAWS, SEED, LEVEL = 2000, 7, 0.95


class Agreement(NamedTuple):
    """Counts of answers: `tp` both positive, `fp` only the judge, `fn` only the annotators."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def cohens_kappa(self) -> float | None:
        value = float(compute_kappas(np.array([self]))[0])
        return None if np.isnan(value) else value

    def kappa_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of kappa; None if fewer than half of the draws define kappa."""
        total = sum(self)
        if not total:
            return None
        # Drawing answers with replacement is drawing the four counts from their multinomial.
        draws = np.random.default_rng(SEED).multinomial(total, np.array(self) / total, DRAWS)
        values = compute_kappas(draws)
        values = values[~np.isnan(values)]
        if 2 * len(values) < DRAWS:
            return None
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def compute_kappas(tables: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Cohen's kappa of each row (tp, fp, fn, tn); NaN where it is not defined."""
    tp, fp, fn, tn = np.asarray(tables, np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        total = tp + fp + fn + tn
        observed = (tp + tn) / total
        chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / total**2
        values: npt.NDArray[np.float64] = (observed - chance) / (1 - chance)
    # Both always decide the same: kappa would be 0 / 0.
    return np.where(np.isclose(chance, 1.0), np.nan, values)


@dataclass
class HumanDecisions:
    """`agreed`: whether annotators accept an answer. `disputed`: answers they disagree on."""

    agreed: dict[Key, bool] = field(default_factory=dict)
    disputed: list[Key] = field(default_factory=list)
    annotators: set[str | None] = field(default_factory=set)


def read_decisions(path: Path) -> HumanDecisions:
    """The decisions in a JSONL file. Raises InputMissing (66), InputError (65) naming the line."""
    if not path.is_file():
        raise InputMissing(
            f"{path}: no such file; expected one decision per line: "
            '{"sample_id": ..., "attempt": 0, "action": "accept", "annotator": ...}'
        )
    decisions = HumanDecisions()
    for key, events in latest_decisions(read(path)).items():
        decisions.annotators |= {event.annotator for event in events}
        accepted = {event.action == "accept" for event in events}
        if len(accepted) > 1:
            decisions.disputed.append(key)
        else:
            decisions.agreed[key] = accepted.pop()
    return decisions


def count_agreement(scores: Mapping[Key, float], accepted: Mapping[Key, bool], threshold: float) -> Agreement:
    counts = Counter((score >= threshold, accepted[key]) for key, score in scores.items() if key in accepted)
    return Agreement(*(counts[pair] for pair in ((True, True), (True, False), (False, True), (False, False))))


def agreement_curve(scores: Mapping[Key, float], accepted: Mapping[Key, bool]) -> list[dict[str, Any]]:
    """One point per threshold of 0, 0.05, ..., 1; null = nothing to divide by."""
    return [_curve_point(count_agreement(scores, accepted, t), t) for t in THRESHOLDS]


def _curve_point(counts: Agreement, threshold: float) -> dict[str, Any]:
    kept, accepted = counts.tp + counts.fp, counts.tp + counts.fn
    return {
        "threshold": threshold,
        **counts._asdict(),
        "precision": counts.tp / kept if kept else None,
        "recall": counts.tp / accepted if accepted else None,
        "kappa": counts.cohens_kappa,
    }


def best_threshold(points: Sequence[Mapping[str, Any]]) -> float | None:
    """The threshold with the highest kappa, ties to the strictest; None if none is defined."""
    defined = [(p["kappa"], p["threshold"]) for p in points if p["kappa"] is not None]
    # Pairs are compared, so that of equal kappas the higher threshold is chosen.
    return max(defined)[1] if defined else None
