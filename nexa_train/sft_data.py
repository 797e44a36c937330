"""The training set as batches: which samples are trained on, in which order, padded how.

Reads: `training/sft_dataset.parquet` (`contracts.SFT`). The order of batches depends on the seed
and the epoch only, so a resumed run continues in it, and a run on many processes follows it too.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_distill.handoff import read_table
from nexa_train.chat import IGNORE, Sample, Skip, check_tokenizer, encode

SORT_WINDOW = 8  # batches that are sorted by length together: little padding, still shuffled


@dataclass(frozen=True)
class Dataset:
    """Encoded samples of the train and val splits, and how many were skipped for which reason."""

    train: list[Sample]
    val: list[Sample]
    rows: int
    skipped: dict[str, int]


def load_dataset(path: Path, tokenizer: Any, max_length: int) -> Dataset:
    """Encode the train and val splits; the test split is not looked at.

    Raises InputError when nothing is left to train on.
    """
    check_tokenizer(tokenizer)
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    skipped: Counter[str] = Counter()
    rows = [row for row in read_table(path, TABLES["sft_parquet"]).to_pylist()
            if row["split"] in splits]  # fmt: skip
    for row in rows:
        made = encode(tokenizer, row["sample_id"], row["messages"], max_length)
        if isinstance(made, Skip):
            skipped[made.reason] += 1
        else:
            splits[row["split"]].append(made)
    if not splits["train"]:
        raise InputError(
            f"{path}: no sample to train on ({len(rows)} rows in train and val, skipped: "
            f"{dict(skipped)}); lower the thresholds in configs/filters.yaml, raise "
            "train.max_length, or collect more"
        )
    return Dataset(splits["train"], splits["val"], len(rows), dict(skipped))


def epoch_batches(
    samples: Sequence[Sample], batch_size: int, seed: int, epoch: int
) -> list[list[Sample]]:
    """Every sample once, in shuffled batches of samples of similar length.

    Packed batches are made of the same samples: what is trained does not depend on `packing`.
    """
    order = random.Random(f"{seed}:{epoch}")  # noqa: S311 - an order, not a secret
    shuffled = list(samples)
    order.shuffle(shuffled)
    window = batch_size * SORT_WINDOW
    batches = []
    for start in range(0, len(shuffled), window):
        near = sorted(shuffled[start : start + window], key=lambda sample: len(sample.input_ids))
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    order.shuffle(batches)
    return batches


def collate(
    samples: Sequence[Sample], device: torch.device, *, pad_id: int
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask`, `labels`, each (samples, longest), padded on the right."""
    longest = max(len(sample.input_ids) for sample in samples)

    def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=device)

    return {
        "input_ids": padded([s.input_ids for s in samples], pad_id),
        "attention_mask": padded([[1] * len(s.input_ids) for s in samples], 0),
        "labels": padded([s.labels for s in samples], IGNORE),
    }
