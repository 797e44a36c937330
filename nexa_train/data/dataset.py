"""The training set: which samples are trained on, and in which order.

Reads: `training/sft_dataset.parquet` (`contracts.SFT`), row by row through an `Examination`: no
sample gets past the preflight's checks. The order of batches depends on the seed
and the epoch only, so a resumed run continues in it, and a run on many processes follows it too.
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
from nexa_train.data.row_checks import Examination

SPLITS = ("train", "val")
BATCH_ROWS = 1024
SORT_WINDOW = 8  # batches that are sorted by length together: little padding, still shuffled


@dataclass(frozen=True)
class Dataset:
    """Encoded samples of the train and val splits, and how many were skipped for which reason.

    `sha256`: the examination's digest of them.
    """

    train: list[Sample]
    val: list[Sample]
    rows: int
    skipped: dict[str, int]
    sha256: str


def load_dataset(path: Path, tokenizer: Any, max_length: int | None) -> Dataset:
    """`collect` with every row of up to `max_length` tokens, whatever share that is."""
    examination = Examination(tokenizer, max_length)
    return collect(examined(path, examination, None, quiet=True), examination)


def collect(made: Iterable[tuple[str, Sample | Skip]], examination: Examination) -> Dataset:
    """The samples of `examined`, split by split."""
    splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
    for split, sample in made:
        if isinstance(sample, Sample):
            splits[split].append(sample)
    skipped, digest = dict(examination.refused), examination.digest
    return Dataset(**splits, rows=examination.rows, skipped=skipped, sha256=digest)


def examined(
    path: Path, examination: Examination, max_refused_share: float | None, *, quiet: bool
) -> Iterator[tuple[str, Sample | Skip]]:
    """(split, encoded row) of the train and val splits; the test split is not looked at.

    Raises CheckFailed.
    """
    table, columns = TABLES["sft_parquet"], ["sample_id", "split", "messages"]
    keys = pa.concat_tables([table.schema.empty_table().select(columns[:2]),
                             *read_batches(path, table, columns=columns[:2])])  # fmt: skip
    check_unique(path, keys, table.unique)
    examination.begin()
    total = pc.sum(pc.is_in(keys["split"], pa.array(SPLITS))).as_py() or 0
    with nullcontext() if quiet else Progress("preflight", total) as progress:
        for batch in read_batches(path, table, columns=columns, batch_rows=BATCH_ROWS):
            for row in batch.filter(pc.is_in(batch["split"], pa.array(SPLITS))).to_pylist():
                made = examination.look(row["split"], row["sample_id"], row["messages"])
                yield row["split"], made
                if progress is not None:
                    progress.add()
    examination.finish(max_refused_share)


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
