"""How a table is written, and checked when it is read. `manifests.py` seals what is written."""

import contextlib
import difflib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nexa_distill.contracts import Table
from nexa_distill.errors import InputError, InputMissing, did_you_mean
from nexa_distill.storage import failpoints
from nexa_distill.storage.atomic import replacing


class TableWriter:
    """Batches of one schema into the Parquet file that `table_writer` puts in place."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self.schema, self.rows = schema, 0
        self._parquet = pq.ParquetWriter(file, schema, compression="zstd", compression_level=1)

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Append rows as one row group; the columns are brought into the schema's order."""
        failpoints.hit("row_group")
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self._parquet.write_table(table.select(self.schema.names).cast(self.schema))
        self.rows += table.num_rows

    def close(self) -> None:
        """Write the Parquet footer."""
        self._parquet.close()


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Stream row groups into `path`; nothing is there until the block ends well."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = TableWriter(file, schema)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):  # the temporary file goes; the error stays
                writer.close()
            raise
        writer.close()


# Nullable, but a table without any of them is another table: answers, and verdicts of checks.
ESSENTIAL = ("teacher_output", "ok")
MISSPELT = 0.85  # difflib's ratio from which on a name is another's with a slip of the pen


def open_table(
    path: Path, table: Table, renamed: Mapping[str, str] | None = None, *, complete: bool = False
) -> pq.ParquetFile:
    """Open a Parquet file after checking that it has the table's columns and types.

    Extra columns are allowed. A nullable column may be absent (it is null then), unless `complete`;
    one that only seems to be misspelt is refused. `renamed` maps a column of the table to its name
    in this file. Raises InputMissing (66) or InputError (65) naming path and column.
    """
    if not path.exists():
        raise InputMissing(f"{path}: no such file; `{table.command}` writes {table.grain}s")
    if not path.is_file():
        raise InputError(f"{path}: expected a Parquet file, found a folder")
    try:
        # Buffering ahead would hold the whole file in memory by the end of a pass.
        parquet = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a complete Parquet file ({error}); `{table.command}` writes it"
        ) from None
    found = parquet.schema_arrow
    for wanted in table.schema:
        name = (renamed or {}).get(wanted.name, wanted.name)
        if name not in found.names:
            if not complete and name == wanted.name and _may_be_absent(wanted, found.names, table):
                continue
            raise InputError(
                f"{path}: column {name} is missing{did_you_mean(name, found.names)}; "
                f"found: {', '.join(found.names)}"
            )
        if not _compatible(found.field(name).type, wanted.type):
            raise InputError(
                f"{path}: column {name} is {found.field(name).type}, expected {wanted.type}"
            )
    return parquet


def _may_be_absent(wanted: pa.Field, found: list[str], table: Table) -> bool:
    others = [name.casefold() for name in found if name not in table.schema.names]
    misspelt = difflib.get_close_matches(wanted.name, others, 1, MISSPELT)
    return wanted.nullable and wanted.name not in ESSENTIAL and not misspelt


def read_batches(
    path: Path,
    table: Table,
    *,
    batch_rows: int = 65_536,
    columns: list[str] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Iterator[pa.Table]:
    """Validated batches, cast to the schema, in file order. Raises InputError naming the row."""
    parquet = open_table(path, table, renamed)
    wanted = pa.schema([table.schema.field(name) for name in columns or table.schema.names])
    names = {name: (renamed or {}).get(name, name) for name in wanted.names}
    stored = [name for name in names.values() if name in parquet.schema_arrow.names]
    stored = stored or parquet.schema_arrow.names[:1]  # to know how many rows there are
    start = 0
    try:
        for batch in parquet.iter_batches(batch_rows, columns=stored):
            rows = _with_all_columns(batch, names, wanted)
            _refuse_nulls(path, rows, wanted, start)
            yield rows.cast(wanted)
            start += rows.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: cannot be read after row {start} ({error}); `{table.command}` writes it"
        ) from None


def _with_all_columns(
    batch: pa.RecordBatch, names: Mapping[str, str], wanted: pa.Schema
) -> pa.Table:
    """The columns of `wanted`; null where the file has none."""
    columns = [
        batch[names[field.name]] if names[field.name] in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in wanted
    ]  # fmt: skip
    return pa.table(columns, names=wanted.names)


def read_table(path: Path, table: Table) -> pa.Table:
    """The whole table, validated: schema, nulls, unique keys. An empty table has 0 rows."""
    batches = list(read_batches(path, table))
    rows = pa.concat_tables(batches) if batches else table.schema.empty_table()
    check_unique(path, rows, table.unique)
    return rows


def check_unique(path: Path, rows: pa.Table, keys: Iterable[str]) -> None:
    """Raises InputError naming the first key that stands twice."""
    names = list(keys)
    if not names:
        return
    counts = rows.group_by(names).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if twice.num_rows:
        key = {name: twice[name][0].as_py() for name in names}
        raise InputError(
            f"{path}: key {key} stands {twice['count_all'][0].as_py()} times, expected once"
        )


class UniqueKeys:
    """Finds a key that stands twice, in 8 bytes per row: hashes first, then the few suspects."""

    def __init__(self, path: Path) -> None:
        self.path, self._hashes = path, array("q")

    def add(self, keys: pa.ChunkedArray) -> None:
        """The keys of some more rows, strings."""
        self._hashes.extend(map(hash, keys.to_pylist()))

    def repeated(self, again: Callable[[], Iterator[pa.Table]]) -> set[str]:
        """Keys that stand more than once, always with the same content.

        `again` yields the rows once more, the key in the first column and the content in the
        others. Raises InputError naming a key that stands there with different contents.
        """
        ordered = np.sort(np.frombuffer(self._hashes, np.int64))
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        seen: dict[str, tuple[int, Mapping[str, object]]] = {}
        found, start = set[str](), 0
        for batch in again() if suspects else ():
            keys = batch.column(0).to_pylist()
            for row, key in enumerate(keys):
                if hash(key) not in suspects:
                    continue
                content = batch.slice(row, 1).to_pylist()[0]
                first, other = seen.setdefault(key, (start + row, content))
                if content != other:
                    differ = [name for name in content if content[name] != other[name]]
                    raise InputError(
                        f"{self.path}: {batch.column_names[0]} {key} stands in rows {first} and "
                        f"{start + row} (0-based) with different {', '.join(differ)}: give one of "
                        "them another id"
                    )
                if first != start + row:
                    found.add(key)
            start += len(keys)
        return found


def _refuse_nulls(path: Path, rows: pa.Table, schema: pa.Schema, start: int) -> None:
    for wanted in schema:
        column = rows[wanted.name]
        if not wanted.nullable and column.null_count:
            row = start + pc.index(column.is_null(), True).as_py()
            raise InputError(f"{path}: column {wanted.name} is null in row {row} (0-based)")


def _compatible(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Same kind of value, whatever the width (pandas writes large_string where we say string)."""
    if found.equals(wanted) or pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return _compatible(found.value_type, wanted)
    kinds = (
        (pa.types.is_string, pa.types.is_large_string),
        (pa.types.is_integer,), (pa.types.is_floating, pa.types.is_integer),
        (pa.types.is_boolean,), (pa.types.is_timestamp,),
        (pa.types.is_list, pa.types.is_large_list),
    )  # fmt: skip
    return any(any(k(found) for k in kind) and kind[0](wanted) for kind in kinds)
