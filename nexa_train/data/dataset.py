"""The training set: its samples, checked row by row, and the order of their batches.

Reads: `training/sft_dataset.parquet` (`contracts.SFT`).
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.console.progress import Progress
from nexa_distill.contracts import TABLES
from nexa_distill.storage.tables import check_unique, read_batches
from nexa_train.data.chat_tokenization import Sample, Skip
from nexa_train.data.row_checks import RowChecker

SPLITS = ("train", "val")
BATCH_ROWS = 1024
SORT_WINDOW = 8  # batches that are sorted by length together: little padding, enough shuffling


@dataclass(frozen=True)
class Dataset:
    """Encoded samples of the train and val splits, skipped rows by reason, and a digest."""

    train: list[Sample]
    val: list[Sample]
    rows: int
    skipped: dict[str, int]
    sha256: str


def load_dataset(path: Path, tokenizer: Any, max_length: int | None) -> Dataset:
    examination = RowChecker(tokenizer, max_length)
    # Any share may be refused here: the preflight of the training judges it.
    return build_dataset(check_dataset_rows(path, examination, None, quiet=True), examination)


def build_dataset(rows: Iterable[tuple[str, Sample | Skip]], examination: RowChecker) -> Dataset:
    splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
    for split, sample in rows:
        if isinstance(sample, Sample):
            splits[split].append(sample)
    # After the loop: `rows` is lazy, so counts and digest are complete only now.
    skipped, digest = dict(examination.refused), examination.digest
    return Dataset(**splits, rows=examination.rows, skipped=skipped, sha256=digest)


def check_dataset_rows(
    path: Path, examination: RowChecker, max_refused_share: float | None, *, quiet: bool
) -> Iterator[tuple[str, Sample | Skip]]:
    """(split, encoded row) of the train and val splits; the test split is not read. Raises CheckFailed."""
    table, columns = TABLES["sft_parquet"], ["sample_id", "split", "messages"]
    empty = table.schema.empty_table().select(columns[:2])
    keys = pa.concat_tables([empty, *read_batches(path, table, columns=columns[:2])])
    # Duplicate keys are found before the first row is encoded.
    check_unique(path, keys, table.unique)
    examination.check_tokenizer()
    total = pc.sum(pc.is_in(keys["split"], pa.array(SPLITS))).as_py() or 0
    with nullcontext() if quiet else Progress("preflight", total) as progress:
        for batch in read_batches(path, table, columns=columns, batch_rows=BATCH_ROWS):
            for row in batch.filter(pc.is_in(batch["split"], pa.array(SPLITS))).to_pylist():
                sample = examination.check_row(row["split"], row["sample_id"], row["messages"])
                yield row["split"], sample
                if progress is not None:
                    progress.add()
    examination.check_totals(max_refused_share)


def epoch_batches(samples: Sequence[Sample], batch_size: int, seed: int, epoch: int) -> list[list[Sample]]:
    """Every sample once, in shuffled batches of similar length; the same with and without packing."""
    # Seed and epoch alone decide the order: resumed and distributed runs keep it.
    order = random.Random(f"{seed}:{epoch}")  # noqa: S311 - an order, not a secret
    shuffled = list(samples)
    order.shuffle(shuffled)
    window = batch_size * SORT_WINDOW
    batches = []
    for start in range(0, len(shuffled), window):
        near = sorted(shuffled[start : start + window], key=lambda sample: len(sample.input_ids))
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    # Again: within a window the batches are sorted from short to long.
    order.shuffle(batches)
    return batches
