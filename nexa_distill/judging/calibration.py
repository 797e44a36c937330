"""Judges beside people: how far a judge's score, cut at a threshold, decides as a person does.

A person's decision on an answer is positive when it is `accept`, negative when it is `reject`,
`regenerate` or `edit` (the answer as it stood would not do). Of one annotator the last line on an
answer counts; an answer on which annotators differ is counted and left out, for there is no truth
to compare with. A judge's decision is positive when its score reaches the threshold.

Cohen's kappa (Cohen 1960, "A coefficient of agreement for nominal scales"):
(p_o - p_e) / (1 - p_e), p_o the share of equal decisions, p_e the share that is expected of two
deciders who are independent and keep their own rates. 1 is agreement, 0 is chance, null is a table
in which both decide always the same. The interval is a percentile bootstrap over answers, seeded.
Not covered: answers to one prompt are drawn as if they were independent; the best threshold is
chosen on the same answers that it is judged by, so its kappa is too high.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nexa_distill.annotation.annotations import Key, current, read
from nexa_distill.errors import InputMissing

THRESHOLDS = [round(0.05 * step, 2) for step in range(21)]
DRAWS, SEED, LEVEL = 2000, 7, 0.95


class Agreement(NamedTuple):
    """Answers by both decisions: `tp` both positive, `fp` only the judge's, `fn` only people's."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa, or None where it is not defined."""
        value = float(kappas(np.array([self]))[0])
        return None if np.isnan(value) else value

    def interval(self) -> tuple[float, float] | None:
        """Of kappa, 95 %; None when fewer than half of the draws have one.

        Drawing answers with replacement is drawing the four counts from their multinomial.
        """
        total = sum(self)
        if not total:
            return None
        draws = np.random.default_rng(SEED).multinomial(total, np.array(self) / total, DRAWS)
        found = kappas(draws)
        found = found[~np.isnan(found)]
        if 2 * len(found) < DRAWS:
            return None
        low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def kappas(tables: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Cohen's kappa of each row (tp, fp, fn, tn); NaN where it is not defined."""
    tp, fp, fn, tn = np.asarray(tables, np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        total = tp + fp + fn + tn
        observed = (tp + tn) / total
        chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / total**2
        found: npt.NDArray[np.float64] = (observed - chance) / (1 - chance)
    return np.where(np.isclose(chance, 1.0), np.nan, found)


@dataclass
class Decisions:
    """`agreed`: whether people accept an answer. `disputed`: they differ."""

    agreed: dict[Key, bool] = field(default_factory=dict)
    disputed: list[Key] = field(default_factory=list)
    annotators: set[str | None] = field(default_factory=set)


def read_decisions(path: Path) -> Decisions:
    """What people decided. Raises InputMissing (66), or InputError (65) naming the line."""
    if not path.is_file():
        raise InputMissing(
            f"{path}: no such file; expected one decision per line: "
            '{"sample_id": ..., "attempt": 0, "action": "accept", "annotator": ...}'
        )
    found = Decisions()
    for key, people in current(read(path)).items():
        found.annotators |= {one.annotator for one in people}
        accepted = {one.action == "accept" for one in people}
        if len(accepted) > 1:
            found.disputed.append(key)
        else:
            found.agreed[key] = accepted.pop()
    return found


def agreement(
    scores: Mapping[Key, float], accepted: Mapping[Key, bool], threshold: float
) -> Agreement:
    """Over the answers that have both."""
    counts = Counter(
        (score >= threshold, accepted[key]) for key, score in scores.items() if key in accepted
    )
    return Agreement(*(counts[pair] for pair in
                       ((True, True), (True, False), (False, True), (False, False))))  # fmt: skip


def curve(scores: Mapping[Key, float], accepted: Mapping[Key, bool]) -> list[dict[str, Any]]:
    """One point per threshold of 0, 0.05, ..., 1; null = nothing to divide by."""
    return [_point(agreement(scores, accepted, t), t) for t in THRESHOLDS]


def _point(found: Agreement, threshold: float) -> dict[str, Any]:
    kept, wanted = found.tp + found.fp, found.tp + found.fn
    return {
        "threshold": threshold, **found._asdict(),
        "precision": found.tp / kept if kept else None,
        "recall": found.tp / wanted if wanted else None,
        "kappa": found.kappa,
    }  # fmt: skip


def best(points: Sequence[Mapping[str, Any]]) -> float | None:
    """The threshold of the highest kappa, of equals the strictest; None where there is none."""
    known = [(point["kappa"], point["threshold"]) for point in points if point["kappa"] is not None]
    return max(known)[1] if known else None
