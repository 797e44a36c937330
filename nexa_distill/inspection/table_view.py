"""Access single rows of large Parquet files of answers and checks.

Small columns are read once, when the file is opened; texts by row group when a row is shown, with a
cache of the last row groups.
"""

from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nexa_distill.annotation.annotations import Key
from nexa_distill.contracts import NOT_APPLIED, TABLES, Row
from nexa_distill.storage.tables import open_table

Rows = npt.NDArray[np.int64]  # row numbers of a file, ascending
Mask = npt.NDArray[np.bool_]
FACETS = ("split", "domain", "template_name")
TEXTS = ("user_prompt", "context", "teacher_output", "reasoning_output")
CACHED_GROUPS = 3


class ParquetRows:
    """Rows of a Parquet file by number; row groups are read on demand."""

    def __init__(self, parquet: pq.ParquetFile) -> None:
        self._parquet = parquet
        counts = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        # Neighbouring rows are in one row group, so moving on mostly reads nothing.
        self._group = lru_cache(CACHED_GROUPS)(parquet.read_row_group)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read_row(self, number: int) -> Row:
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        rows = self._group(group).slice(number - int(self._starts[group]), 1).to_pylist()
        return dict(rows[0])


class AnswerTable:
    """A table of contracts.OUTPUTS, or one with more columns (rejections).

    Raises InputMissing (66) or InputError (65) if the file is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parquet = open_table(path, TABLES["collected_dataset"], complete=True)
        self._stored = ParquetRows(self._parquet)
        extra = [n for n in ("rejection_reasons",) if n in self._parquet.schema_arrow.names]
        small = ["sample_id", "attempt", *FACETS, *extra]
        self.small: pa.Table = self._parquet.read(columns=small).combine_chunks()
        self.samples = self.small["sample_id"].combine_chunks()
        self.attempts: Rows = self.small["attempt"].to_numpy()
        self._by_key: dict[Key, int] | None = None
        self._texts = lru_cache(8)(self._find_text)
        self.values = cache(self._frequent_values)

    def __len__(self) -> int:
        return int(self.small.num_rows)

    def key_at(self, number: int) -> Key:
        return self.samples[number].as_py(), int(self.attempts[number])

    def read_row(self, number: int) -> Row:
        return self._stored.read_row(number)

    def numbers_of(self, sample_id: str) -> Rows:
        return np.flatnonzero(np.asarray(pc.equal(self.samples, sample_id)))

    def number_of(self, key: Key) -> int | None:
        if self._by_key is None:
            keys = zip(self.samples.to_pylist(), self.attempts.tolist(), strict=True)
            self._by_key = {key: number for number, key in enumerate(keys)}
        return self._by_key.get(key)

    def _frequent_values(self, column: str) -> list[str]:
        if column == "rejection_reasons":
            if column not in self.small.column_names:
                return []
            values = pc.list_flatten(self.small[column])
        else:
            values = pc.drop_null(self.small[column])
        counts = pc.value_counts(values).to_pylist()
        return [item["values"] for item in sorted(counts, key=lambda item: -item["counts"])]

    def mask_of_values(self, column: str, values: Sequence[str]) -> Mask:
        return np.asarray(pc.fill_null(pc.is_in(self.small[column], pa.array(values)), False))

    def mask_of_reasons(self, reasons: Sequence[str]) -> Mask:
        column = self.small["rejection_reasons"].combine_chunks()
        hits = pc.is_in(pc.list_flatten(column), pa.array(reasons))
        mask = np.zeros(len(self), np.bool_)
        # A row has several reasons: each hit among them is led back to its row.
        mask[np.asarray(pc.list_parent_indices(column))[np.asarray(hits)]] = True
        return mask

    def mask_of_text(self, text: str) -> Mask:
        """The rows whose prompt, context, answer or reasoning contains the text, ignoring case."""
        return self._texts(text)

    def _find_text(self, text: str) -> Mask:
        parts = []
        for batch in self._parquet.iter_batches(16_384, columns=list(TEXTS)):
            hits = [pc.fill_null(pc.match_substring(c, text, ignore_case=True), False) for c in batch.columns]
            parts.append(np.logical_or.reduce([np.asarray(hit) for hit in hits]))
        return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


class ChecksFile:
    """One checks file (contracts.CHECKS), accessed by answer."""

    def __init__(self, path: Path) -> None:
        table = TABLES["rules_checks"]
        stored = open_table(path, table, complete=True)
        self._stored = ParquetRows(stored)
        small = pq.ParquetFile(path, read_dictionary=["sample_id", "check", "reason"]).read(
            columns=["sample_id", "attempt", "check", "ok", "reason"]
        )
        # One dictionary for the whole file: finding a sample compares integers.
        self._samples = small["sample_id"].unify_dictionaries().combine_chunks()
        if isinstance(self._samples, pa.ChunkedArray):
            self._samples = pa.concat_arrays(self._samples.chunks)
        self._codes = np.asarray(self._samples.indices)
        self._small = small

    def rows_of_answer(self, key: Key) -> list[Row]:
        code = pc.index(self._samples.dictionary, key[0]).as_py()
        if code < 0:
            return []
        rows = (self._stored.read_row(int(n)) for n in np.flatnonzero(self._codes == code))
        return [row for row in rows if row["attempt"] == key[1]]

    @cached_property
    def check_names(self) -> list[str]:
        return sorted(self._small["check"].unique().to_pylist())

    def not_passed(self, names: Sequence[str]) -> set[Key]:
        mask = pc.and_(
            pc.is_in(self._small["check"].cast(pa.string()), pa.array(names)),
            pc.invert(pc.fill_null(self._small["ok"], False)),
        )
        # A rule that does not apply to a language is no failure.
        is_spared = pc.equal(self._small["reason"].cast(pa.string()), NOT_APPLIED)
        mask = pc.and_(mask, pc.invert(pc.fill_null(is_spared, False)))
        rows = self._small.filter(mask)
        return set(zip(rows["sample_id"].to_pylist(), rows["attempt"].to_pylist(), strict=True))
