"""What every contender is asked, what is the right answer, and how long the server takes over it.

Standard library only: the server and the contenders run in environments of their own. Answer and
latency are functions of the prompt alone, so they can be computed before and after a run.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

MODEL = "teacher"
SYSTEM = "You answer briefly and name your evidence."
DECODING: dict[str, Any] = {"max_tokens": 256, "temperature": 0.2}
TASK = (
    " A sample of a porous electrode loses a tenth of its capacity in a hundred cycles, while the "
    "reference keeps all of it. Propose one hypothesis for the loss, say which measurement would "
    "refute it, and name the two most likely confounders together with a control for each."
)
REASONING = (
    " We will measure the impedance every ten cycles and compare its growth with that of the "
    "reference. If the loss comes from the surface layer, the charge transfer resistance grows "
    "before the capacity falls; if both fall together, the hypothesis is refuted. Temperature and "
    "the age of the electrolyte are controlled with cells from the same batch in the same chamber."
)
P50_SECONDS, P99_SECONDS = 0.1, 1.0
UNIT = NormalDist()
FROM_P50_TO_P99 = UNIT.inv_cdf(0.99)  # standard deviations


def prompt(number: int) -> str:
    """The prompt of a row, about 350 characters in one line."""
    return f"Question {number}:{TASK}"


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def answer(text: str) -> str:
    """The right answer to a prompt, about 480 characters."""
    return f"Hypothesis {hashlib.sha256(text.encode()).hexdigest()}.{REASONING}"


def lognormal_seconds(text: str) -> float:
    """Latency of a prompt: lognormal with the p50 and p99 above."""
    draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    chance = (draw + 0.5) / 2**48
    deviations = UNIT.inv_cdf(chance)
    return float(P50_SECONDS * (P99_SECONDS / P50_SECONDS) ** (deviations / FROM_P50_TO_P99))


def makespan(seconds: Iterable[float], in_flight: int) -> float:
    """Seconds of list scheduling: each job, in order, goes to the machine that is free first."""
    free = [0.0] * in_flight
    for length in seconds:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def write_prompts(path: Path, rows: int) -> None:
    """One prompt per line."""
    with path.open("w") as file:
        file.writelines(f"{prompt(number)}\n" for number in range(rows))


def read_prompts(path: Path) -> Iterator[str]:
    with path.open() as file:
        for line in file:
            yield line.rstrip("\n")
