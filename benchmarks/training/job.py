"""What every contender is given, and what it hands back. Imports nothing but the standard library:
it is read in environments that do not have this project."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """`rows`: JSONL of {input_ids, completion_mask}, in the order of training."""

    model: str
    rows: str
    batch_size: int
    learning_rate: float
    out: str
    variant: str


@dataclass(frozen=True)
class Figures:
    """`tokens`: real ones, no padding. `losses`: nats per trained token, of each step."""

    tokens: int
    trained: int
    seconds: float
    losses: list[float]


def given() -> Job:
    """The job of this process."""
    return Job(**json.loads(sys.argv[1]))


def read_rows(job: Job) -> list[dict[str, list[int]]]:
    """The samples, tokenised: everybody trains on the same tokens."""
    lines = Path(job.rows).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def hand_over(job: Job, figures: Figures) -> None:
    """Write them where the benchmark looks."""
    Path(job.out).write_text(json.dumps(asdict(figures)), encoding="utf-8")


def threads() -> int:
    """Cores of this machine, for torch."""
    return os.cpu_count() or 1
