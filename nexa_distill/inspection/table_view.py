"""Answers of a Parquet file, for a person who looks at one row at a time.

Small columns are read once, when the file is opened; texts are read by row group when a row is
looked at, and the last row groups stay in memory.
"""

from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nexa_distill.annotation.annotations import Key
from nexa_distill.contracts import NOT_APPLIED, TABLES
from nexa_distill.storage.tables import open_table

Rows = npt.NDArray[np.int64]  # row numbers of a file, ascending
Mask = npt.NDArray[np.bool_]
Row = dict[str, Any]
FACETS = ("split", "domain", "template_name")
TEXTS = ("user_prompt", "context", "teacher_output", "reasoning_output")
HELD_GROUPS = 3


class Stored:
    """Rows of a Parquet file by number: `texts` of a row group are read when they are wanted."""

    def __init__(self, parquet: pq.ParquetFile) -> None:
        self._parquet = parquet
        counts = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._group = lru_cache(HELD_GROUPS)(parquet.read_row_group)

    def row(self, number: int) -> Row:
        """All columns of one row."""
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        found = self._group(group).slice(number - int(self._starts[group]), 1).to_pylist()
        return dict(found[0])


class Answers:
    """A table of contracts.OUTPUTS, or one with more columns (rejections).

    Raises InputMissing (66) or InputError (65) when the file is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parquet = open_table(path, TABLES["collected_dataset"], complete=True)
        self._stored = Stored(self._parquet)
        extra = [n for n in ("rejection_reasons",) if n in self._parquet.schema_arrow.names]
        small = ["sample_id", "attempt", *FACETS, *extra]
        self.small: pa.Table = self._parquet.read(columns=small).combine_chunks()
        self.samples = self.small["sample_id"].combine_chunks()
        self.attempts: Rows = self.small["attempt"].to_numpy()
        self._by_key: dict[Key, int] | None = None
        self._texts = lru_cache(8)(self._having)
        self.values = cache(self._values)

    def __len__(self) -> int:
        return int(self.small.num_rows)

    def key(self, number: int) -> Key:
        """Which answer stands in this row."""
        return self.samples[number].as_py(), int(self.attempts[number])

    def row(self, number: int) -> Row:
        """The whole row."""
        return self._stored.row(number)

    def numbers_of(self, sample_id: str) -> Rows:
        """The rows of a sample's attempts."""
        return np.flatnonzero(np.asarray(pc.equal(self.samples, sample_id)))

    def number_of(self, key: Key) -> int | None:
        """The row of an answer, or None when it is not in this file."""
        if self._by_key is None:
            keys = zip(self.samples.to_pylist(), self.attempts.tolist(), strict=True)
            self._by_key = {found: number for number, found in enumerate(keys)}
        return self._by_key.get(key)

    def _values(self, column: str) -> list[str]:
        """What occurs in a column, the most frequent first; of reasons, the first of each row."""
        if column == "rejection_reasons":
            if column not in self.small.column_names:
                return []
            found = pc.list_flatten(self.small[column])
        else:
            found = pc.drop_null(self.small[column])
        counted = pc.value_counts(found).to_pylist()
        return [one["values"] for one in sorted(counted, key=lambda one: -one["counts"])]

    def among(self, column: str, wanted: Sequence[str]) -> Mask:
        """The rows whose column has one of these values."""
        return np.asarray(pc.fill_null(pc.is_in(self.small[column], pa.array(wanted)), False))

    def rejected_for(self, wanted: Sequence[str]) -> Mask:
        """The rows that have one of these rejection reasons."""
        column = self.small["rejection_reasons"].combine_chunks()
        hits = pc.is_in(pc.list_flatten(column), pa.array(wanted))
        mask = np.zeros(len(self), np.bool_)
        mask[np.asarray(pc.list_parent_indices(column))[np.asarray(hits)]] = True
        return mask

    def having(self, text: str) -> Mask:
        """The rows whose prompt, context or answer has this text in it, upper or lower case."""
        return self._texts(text)

    def _having(self, text: str) -> Mask:
        parts = []
        for batch in self._parquet.iter_batches(16_384, columns=list(TEXTS)):
            hits = [
                pc.fill_null(pc.match_substring(c, text, ignore_case=True), False)
                for c in batch.columns
            ]
            parts.append(np.logical_or.reduce([np.asarray(hit) for hit in hits]))
        return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


class Checks:
    """The measurements of one checks file (contracts.CHECKS), found by answer."""

    def __init__(self, path: Path) -> None:
        table = TABLES["rules_checks"]
        stored = open_table(path, table, complete=True)
        self._stored = Stored(stored)
        small = pq.ParquetFile(path, read_dictionary=["sample_id", "check", "reason"]).read(
            columns=["sample_id", "attempt", "check", "ok", "reason"]
        )
        # One dictionary for the whole file, so that looking for a sample compares numbers.
        self._samples = small["sample_id"].unify_dictionaries().combine_chunks()
        if isinstance(self._samples, pa.ChunkedArray):
            self._samples = pa.concat_arrays(self._samples.chunks)
        self._codes = np.asarray(self._samples.indices)
        self._small = small

    def of(self, key: Key) -> list[Row]:
        """The rows about one answer, in the order of the file."""
        code = pc.index(self._samples.dictionary, key[0]).as_py()
        if code < 0:
            return []
        found = (self._stored.row(int(n)) for n in np.flatnonzero(self._codes == code))
        return [row for row in found if row["attempt"] == key[1]]

    @cached_property
    def names(self) -> list[str]:
        """The checks that occur."""
        return sorted(self._small["check"].unique().to_pylist())

    def not_passed(self, wanted: Sequence[str]) -> set[Key]:
        """The answers that one of these checks did not let pass (or could not look at)."""
        mask = pc.and_(
            pc.is_in(self._small["check"].cast(pa.string()), pa.array(wanted)),
            pc.invert(pc.fill_null(self._small["ok"], False)),
        )
        spared = pc.equal(self._small["reason"].cast(pa.string()), NOT_APPLIED)
        mask = pc.and_(mask, pc.invert(pc.fill_null(spared, False)))
        found = self._small.filter(mask)
        return set(zip(found["sample_id"].to_pylist(), found["attempt"].to_pylist(), strict=True))
