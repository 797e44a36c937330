"""Store the words, signatures and bands of many texts in a scratch folder instead of in memory.

On disk: 8 bytes per word; with `how`, one byte per MinHash value and 8 per band. In memory: 16
bytes per text. Texts are numbered in order; equal texts of one batch share a number. The caller
removes the folder.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rensa import RMinHash

from nexa_distill.storage.atomic import is_running
from nexa_distill.text.hashing import Hashes, Indexes, mix_bits
from nexa_distill.text.ngrams import HashedWords, fingerprint_texts, hash_ngrams, hash_words

T = TypeVar("T")
R = TypeVar("R")
Signatures = npt.NDArray[np.uint8]

RECALL = 0.98
SEED = 7
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class MinHashSettings:
    """How texts are sketched: the similarity to find (0..1), words per shingle, MinHash values."""

    threshold: float
    words: int
    permutations: int

    @property
    def rows_per_band(self) -> int:
        """r: MinHash values in a band, the most whose recall is at least RECALL."""
        # 128 values and a threshold of 0.8 give r = 7, b = 18 and a recall of 0.985.
        fits = (r for r in range(self.permutations, 1, -1) if self.recall_with(r) >= RECALL)
        return next(fits, 1)

    @property
    def band_count(self) -> int:
        return self.permutations // self.rows_per_band

    def recall_with(self, rows: int) -> float:
        """The probability that a pair at the threshold t shares a band: 1 - (1 - t^r)^b."""
        # Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4.2.
        return float(1 - (1 - self.threshold**rows) ** (self.permutations // rows))


def compute_signatures(texts: HashedWords, how: MinHashSettings) -> tuple[Signatures, Hashes]:
    """(signatures, band keys) per text; a signature has one byte of each MinHash value."""
    shingles, starts, _ = hash_ngrams(texts, how.words)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, starts.astype(np.uint64), how.permutations, SEED)
    flat = itertools.chain.from_iterable(matrix.to_rows())
    size = len(texts) * how.permutations
    values = np.fromiter(flat, np.uint32, size).reshape(len(texts), how.permutations)
    bands = values[:, : how.band_count * how.rows_per_band].reshape(len(texts), how.band_count, how.rows_per_band)
    keys = np.zeros(bands.shape[:2], np.uint64)
    # Overflow is wanted: the hash is modulo 2**64.
    with np.errstate(over="ignore"):
        for row in range(how.rows_per_band):
            keys = keys * _FACTOR + bands[:, :, row]
        # The top byte of a product, which depends on all bits of the value.
        bytes_ = (values * np.uint32(0x9E3779B1)) >> np.uint32(24)
    return bytes_.astype(np.uint8), mix_bits(keys)


@dataclass(frozen=True)
class SketchedBatch:
    """One batch: its distinct texts, and the text of each row."""

    texts: HashedWords
    row_texts: Indexes
    prints: Hashes
    signatures: Signatures | None
    bands: Hashes | None


def sketch_batch(texts: pa.Array, how: MinHashSettings | None) -> SketchedBatch:
    """Hash and sketch a batch of texts (null counts as empty). Pure, so any thread may run it."""
    # Equal texts of a batch are hashed once.
    encoded = texts.fill_null("").dictionary_encode()
    words = hash_words(encoded.dictionary)
    signatures, bands = compute_signatures(words, how) if how else (None, None)
    rows = encoded.indices.to_numpy().astype(np.int64)
    return SketchedBatch(words, rows, fingerprint_texts(words), signatures, bands)


def read_pieces(path: Path, kind: npt.DTypeLike, starts: Indexes, counts: Indexes) -> npt.NDArray[Any]:
    """Read `counts[i]` numbers from number `starts[i]` on, and concatenate the pieces."""
    size = np.dtype(kind).itemsize
    places = zip((starts * size).tolist(), (counts * size).tolist(), strict=True)
    # A memory map would stay in the memory of this process.
    with path.open("rb", buffering=0) as file:
        return np.frombuffer(b"".join(os.pread(file.fileno(), length, start) for start, length in places), kind)


class SketchStore:
    """The stored texts: first `add` every batch, then `close`, then read."""

    def __init__(self, folder: Path, how: MinHashSettings | None) -> None:
        folder.mkdir(parents=True)
        self._folder, self._how, self._files = folder, how, ExitStack()
        names = ["words", *(["signatures"] if how else [])]
        names += [f"band-{band}" for band in range(how.band_count if how else 0)]
        self._out = {name: self._files.enter_context((folder / name).open("wb")) for name in names}
        self._lengths: list[Indexes] = []
        self._prints: list[Hashes] = []
        self._count = 0

    def add(self, batch: SketchedBatch) -> Indexes:
        """Append a batch and return, per row, the number of its text."""
        self._out["words"].write(batch.texts.words.data)
        if batch.signatures is not None and batch.bands is not None:
            self._out["signatures"].write(batch.signatures.data)
            # One file per band: a search reads one band of all texts at a time.
            for band, keys in enumerate(np.ascontiguousarray(batch.bands.T)):
                self._out[f"band-{band}"].write(keys.data)
        self._lengths.append(np.diff(batch.texts.starts))
        self._prints.append(batch.prints)
        numbers = batch.row_texts + self._count
        self._count += len(batch.texts)
        return numbers

    def close(self) -> None:
        """Finish adding, and set `prints` and `starts`.

        `prints`: per text, a hash of its words; `starts`: where the words of each text begin, and
        one more at the end.
        """
        self._files.close()
        self.prints: Hashes = np.concatenate([np.zeros(0, np.uint64), *self._prints])
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        self.starts: Indexes = np.cumsum(lengths)
        self._prints, self._lengths = [], []

    def __len__(self) -> int:
        return self._count

    def load_signatures(self, texts: Indexes) -> Signatures:
        width = self._how.permutations if self._how else 0
        flat = read_pieces(self._folder / "signatures", np.uint8, texts * width, np.full(len(texts), width))
        return flat.reshape(len(texts), width)

    def load_band(self, number: int) -> Hashes:
        return np.fromfile(self._folder / f"band-{number}", np.uint64)

    def load_words(self, texts: Indexes) -> HashedWords:
        first, lengths = self.starts[texts], self.starts[texts + 1] - self.starts[texts]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return HashedWords(read_pieces(self._folder / "words", np.uint64, first, lengths), starts)

    def text_blocks(self, words: int = 500_000) -> Iterator[tuple[int, int]]:
        first = 0
        while first < self._count:
            last = np.searchsorted(self.starts, self.starts[first] + words, "right") - 1
            # At least one text, also if it is longer than a block.
            end = max(int(last), first + 1)
            yield first, min(end, self._count)
            first = end


@contextmanager
def scratch_folder(dst: Path) -> Iterator[Path]:
    """A hidden folder beside `dst`, removed at the end; those of killed runs are removed first."""
    for old in dst.parent.glob(f".{dst.name}.*.scratch"):
        if not is_running(int(old.name.split(".")[-2])):
            shutil.rmtree(old, ignore_errors=True)
    folder = dst.with_name(f".{dst.name}.{os.getpid()}.scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
