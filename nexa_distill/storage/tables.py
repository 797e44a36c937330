"""Write Parquet tables atomically, and validate them when they are read."""

import contextlib
import difflib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nexa_distill.contracts import Table
from nexa_distill.errors import InputError, InputMissing, did_you_mean
from nexa_distill.storage import failpoints
from nexa_distill.storage.atomic import replace_atomically


class TableWriter:
    """Writes batches of one schema to the Parquet file of `table_writer`."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self.schema, self.rows = schema, 0
        self._parquet = pq.ParquetWriter(file, schema, compression="zstd", compression_level=1)

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Append rows as one row group; the columns are brought into the schema's order."""
        failpoints.hit_failpoint("row_group")
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self._parquet.write_table(table.select(self.schema.names).cast(self.schema))
        self.rows += table.num_rows

    def close(self) -> None:
        self._parquet.close()


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Stream row groups into `path`, which appears only if the block succeeds."""
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        writer = TableWriter(file, schema)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is raised
                writer.close()
            raise
        writer.close()


# Nullable columns without which a table is another one: answers, and results of checks.
ESSENTIAL = ("teacher_output", "ok")
MISSPELT = 0.85  # difflib's ratio from which on a name is a misspelling of another


def open_table(
    path: Path, table: Table, renamed: Mapping[str, str] | None = None, *, complete: bool = False
) -> pq.ParquetFile:
    """Open a Parquet file after checking that it has the table's columns and types.

    Extra columns are allowed. A nullable column may be absent (it is null then), unless `complete`,
    or if the file has one with a similar name. `renamed` maps a column of the table to its name in
    this file. Raises InputMissing (66) or InputError (65) naming path and column.
    """
    if not path.exists():
        raise InputMissing(f"{path}: no such file; `{table.command}` writes {table.grain}s")
    if not path.is_file():
        raise InputError(f"{path}: expected a Parquet file, found a folder")
    try:
        # Buffering ahead would hold the whole file in memory by the end of a pass.
        parquet = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a complete Parquet file ({error}); `{table.command}` writes it") from None
    schema = parquet.schema_arrow
    for field in table.schema:
        name = (renamed or {}).get(field.name, field.name)
        if name not in schema.names:
            if not complete and name == field.name and _may_be_absent(field, schema.names, table):
                continue
            raise InputError(
                f"{path}: column {name} is missing{did_you_mean(name, schema.names)}; found: {', '.join(schema.names)}"
            )
        kind = schema.field(name).type
        if not _is_compatible(kind, field.type):
            raise InputError(f"{path}: column {name} is {kind}, expected {field.type}")
    return parquet


def _may_be_absent(field: pa.Field, names: list[str], table: Table) -> bool:
    # A misspelt column must not be taken for an absent one, whose values would all be null.
    others = [name.casefold() for name in names if name not in table.schema.names]
    misspelt = difflib.get_close_matches(field.name, others, 1, MISSPELT)
    return field.nullable and field.name not in ESSENTIAL and not misspelt


def read_batches(
    path: Path,
    table: Table,
    *,
    batch_rows: int = 65_536,
    columns: list[str] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Iterator[pa.Table]:
    """Yield validated batches, cast to the schema. Raises InputError naming the row."""
    parquet = open_table(path, table, renamed)
    schema = pa.schema([table.schema.field(name) for name in columns or table.schema.names])
    names = {name: (renamed or {}).get(name, name) for name in schema.names}
    stored = [name for name in names.values() if name in parquet.schema_arrow.names]
    stored = stored or parquet.schema_arrow.names[:1]  # for the number of rows
    start = 0
    try:
        for batch in parquet.iter_batches(batch_rows, columns=stored):
            rows = _with_all_columns(batch, names, schema)
            _refuse_nulls(path, rows, schema, start)
            yield rows.cast(schema)
            start += rows.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read after row {start} ({error}); `{table.command}` writes it") from None


def _with_all_columns(batch: pa.RecordBatch, names: Mapping[str, str], schema: pa.Schema) -> pa.Table:
    columns = [
        batch[names[field.name]] if names[field.name] in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, names=schema.names)


def read_values(path: Path, table: Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of these columns, row by row."""
    for batch in read_batches(path, table, columns=list(columns)):
        yield from zip(*batch.to_pydict().values(), strict=True)


def read_columns(path: Path, table: Table, columns: list[str] | None = None) -> pa.Table:
    """The columns (default: all) of the whole table; an empty table has 0 rows."""
    schema = pa.schema([table.schema.field(name) for name in columns or table.schema.names])
    return pa.concat_tables([schema.empty_table(), *read_batches(path, table, columns=columns)])


def read_table(path: Path, table: Table) -> pa.Table:
    """The whole table, validated: schema, nulls, unique keys."""
    rows = read_columns(path, table)
    check_unique(path, rows, table.unique)
    return rows


def check_unique(path: Path, rows: pa.Table, keys: Iterable[str]) -> None:
    """Raises InputError naming the first key that occurs twice."""
    names = list(keys)
    if not names:
        return
    counts = rows.group_by(names).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if twice.num_rows:
        key = {name: twice[name][0].as_py() for name in names}
        raise InputError(f"{path}: key {key} occurs {twice['count_all'][0].as_py()} times, expected once")


class UniqueKeys:
    """Finds keys that occur twice, in 8 bytes per row: by hash first, then by the few suspects."""

    def __init__(self, path: Path) -> None:
        self.path, self._hashes = path, array("q")

    def add(self, keys: pa.ChunkedArray) -> None:
        # Python's own hash: fast, and equal within this process, which is enough here.
        self._hashes.extend(map(hash, keys.to_pylist()))

    def find_repeated(self, again: Callable[[], Iterator[pa.Table]]) -> set[str]:
        """Keys that occur more than once, always with the same content.

        `again` yields the rows once more, the key in the first column and the content in the
        others. Raises InputError naming a key with different contents.
        """
        ordered = np.sort(np.frombuffer(self._hashes, np.int64))
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        contents: dict[str, tuple[int, Mapping[str, object]]] = {}
        repeated, start = set[str](), 0
        for batch in again() if suspects else ():
            keys = batch.column(0).to_pylist()
            for row, key in enumerate(keys):
                if hash(key) not in suspects:
                    continue
                content = batch.slice(row, 1).to_pylist()[0]
                first, other = contents.setdefault(key, (start + row, content))
                if content != other:
                    differ = [name for name in content if content[name] != other[name]]
                    raise InputError(
                        f"{self.path}: {batch.column_names[0]} {key} occurs in rows {first} and "
                        f"{start + row} (0-based) with different {', '.join(differ)}: give one of "
                        "them another id"
                    )
                if first != start + row:
                    repeated.add(key)
            start += len(keys)
        return repeated


def _refuse_nulls(path: Path, rows: pa.Table, schema: pa.Schema, start: int) -> None:
    for field in schema:
        column = rows[field.name]
        if not field.nullable and column.null_count:
            row = start + pc.index(column.is_null(), True).as_py()
            raise InputError(f"{path}: column {field.name} is null in row {row} (0-based)")


def _is_compatible(stored: pa.DataType, expected: pa.DataType) -> bool:
    """Whether both are the same kind of value, of any width (pandas writes large_string)."""
    if stored.equals(expected) or pa.types.is_null(stored):
        return True
    if pa.types.is_dictionary(stored):
        return _is_compatible(stored.value_type, expected)
    # The expected kind first, then further kinds that are cast to it.
    kinds = (
        (pa.types.is_string, pa.types.is_large_string),
        (pa.types.is_integer,),
        (pa.types.is_floating, pa.types.is_integer),
        (pa.types.is_boolean,),
        (pa.types.is_timestamp,),
        (pa.types.is_list, pa.types.is_large_list),
    )
    return any(kind[0](expected) and any(k(stored) for k in kind) for kind in kinds)
