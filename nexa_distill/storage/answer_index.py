"""Index the answers of some files: look up an answer's position by its key.

About 30 bytes per answer. Two keys are equal if 64 bits of their hash are equal.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexa_distill.contracts import TABLES, Table
from nexa_distill.errors import InputError
from nexa_distill.storage.tables import read_batches
from nexa_distill.text.hashing import Hashes, Indexes, digest_ids, digest_keys, mix_bits

ANSWERS = TABLES["collected_dataset"]
KEY = list(ANSWERS.unique)
Attempts = npt.NDArray[np.int32]


class AnswerIndex:
    """The keys of the answers of some files, tables like `table`.

    Raises InputError if a key occurs twice.
    """

    def __init__(self, paths: Sequence[Path], table: Table = ANSWERS) -> None:
        samples, attempts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        for path in paths:
            for rows in read_batches(path, table, columns=KEY):
                samples.append(_sample_keys(rows))
                attempts.append(rows["attempt"].to_numpy().astype(np.int32))
        self.samples, self.attempts = np.concatenate(samples), np.concatenate(attempts)
        hashes = _hash_keys(self.samples, self.attempts)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(twice):
            # The positions of one such pair, to name its key.
            _refuse_duplicate(paths, set(self._order[twice[:1] + [0, 1]].tolist()))

    def __len__(self) -> int:
        return len(self.samples)

    def find_positions(self, rows: pa.Table) -> Indexes:
        """Per row, the position of the answer with its sample_id and attempt; -1 if absent."""
        hashes = _hash_keys(_sample_keys(rows), rows["attempt"].to_numpy().astype(np.int32))
        # A hash above the last one would be out of range; the comparison below drops it.
        place = np.minimum(np.searchsorted(self._sorted, hashes), len(self) - 1)
        positions: Indexes = np.where(self._sorted[place] == hashes, self._order[place], -1)
        return positions

    def best_attempts(self, among: Indexes, rank: npt.NDArray[np.float64]) -> Indexes:
        """Per sample in `among`, the answer of the highest rank; ties go to the first attempt."""
        # Sorted by sample, then rank, then attempt: the first row of each sample is the best.
        by = np.lexsort((self.attempts[among], -rank[among], self.samples[among]))
        samples = self.samples[among[by]]
        first = np.concatenate([[True], samples[1:] != samples[:-1]])[: len(by)]
        best: Indexes = among[by[first]]
        return best


def _sample_keys(rows: pa.Table) -> Hashes:
    # Many consecutive rows of checks belong to one sample, so each id is decoded once.
    column = rows["sample_id"].combine_chunks().dictionary_encode()
    hashes: Hashes = digest_keys(digest_ids(column.dictionary.to_pylist()))[column.indices.to_numpy()]
    return hashes


def _hash_keys(samples: Hashes, attempts: Attempts) -> Hashes:
    return mix_bits(samples + mix_bits(attempts.astype(np.uint64) + np.uint64(1)))


def _refuse_duplicate(paths: Sequence[Path], pair: Collection[int]) -> None:
    start = 0
    for path in paths:
        for rows in read_batches(path, ANSWERS, columns=KEY):
            for position in pair:
                if start <= position < start + rows.num_rows:
                    key = tuple(rows.slice(position - start, 1).to_pylist()[0].values())
            start += rows.num_rows
            if max(pair) < start:
                raise InputError(f"{path}: answer {key} occurs twice, expected once")
