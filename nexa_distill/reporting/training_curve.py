"""The losses of a training, step by step, from its `metrics.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

Line = tuple[str, list[tuple[float, float]], str]  # of a plot: label, points, colour


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete rows of the file; none without it."""
    # The training may be writing: the last line is complete only with its newline.
    complete = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in complete if line]


def step_seconds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of each optimizer step, with its validation if it had one."""
    clock = [row["seconds"] for row in rows if "seconds" in row]
    # The clock of a resumed training begins again at 0.
    return [now - before if now >= before else now for before, now in pairwise([0.0, *clock])]


def loss_lines(rows: Sequence[Mapping[str, Any]], training: str, validation: str) -> list[Line]:
    """The loss of each step, and the validation loss where it was measured, under these labels."""
    kinds = ((training, "loss", "plain"), (validation, "val_loss", "after"))
    return [
        (label, [(row["step"], row[key]) for row in rows if row.get(key) is not None], color)
        for label, key, color in kinds
    ]
