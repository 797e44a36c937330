"""Perturbed copies of a database, which expose a query that matches by chance.

    numbers   the numbers of each column change places, texts stay
    texts     the texts of each column change places, numbers stay
    rows      some rows are missing and numbers are scaled (times 1/4 to 4)
    mixed     two further rows per text, filled from other rows; numbers are scaled
    ties      each numeric column has only its least, middle and greatest value; used for MAX, MIN,
              ORDER BY or LIMIT, unless the gold query itself picks by order

Schema, types, keys and the set of texts stay, so that a query with a text constant still finds
rows. Keys are declared primary, unique and foreign keys, and columns whose name ends with "id". The
copies depend only on the database's content. Source: Zhong, Yu, Klein, "Semantic Evaluation for
Text-to-SQL with Distilled Test Suites", EMNLP 2020.

Not covered: a condition that is true of every row (`country = 'usa'`), `> 100` against `>= 100`,
rules of the data that the schema does not declare (a query that relies on one counts as chance),
virtual tables and tables WITHOUT ROWID.
"""

import random
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VARIANTS = ("numbers", "texts", "rows", "mixed", "ties")
TIES = 1 + VARIANTS.index("ties")  # its place after the real database
NUMBER = re.compile(r"\s*-?\d+(?:\.\d+)?\s*\Z")
MAX_ROWS = 20_000  # of a table to which rows are added
Values = Sequence[Any]


def write_perturbed_copies(source: Path, folder: Path, digest: str) -> list[Path]:
    """Write the copies of `source` into `folder`; `digest` is the hash of its content."""
    paths = []
    for variant in VARIANTS:
        path = folder / f"{digest[:16]}-{variant}.sqlite"
        with sqlite3.connect(path, isolation_level=None) as copy:
            with sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True) as original:
                original.backup(copy)
            original.close()
            _perturb_copy(copy, variant, digest)
        copy.close()
        paths.append(path)
    return paths


def _perturb_copy(copy: sqlite3.Connection, variant: str, digest: str) -> None:
    # Checks and triggers could refuse or repeat the changes.
    copy.execute("PRAGMA ignore_check_constraints=ON")
    copy.execute("BEGIN")
    for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        copy.execute(f"DROP TRIGGER {_quote_name(name)}")
    tables = _list_tables(copy)
    referenced = {row[2].lower() for t in tables for row in _query_pragma(copy, "foreign_key_list", t)}
    for place, table in enumerate(tables):
        # A seed for each table, so that the copies depend on the content alone.
        draw = random.Random(f"{digest}|{variant}|{table}")  # noqa: S311 - not a secret
        _change_columns(copy, table, variant, draw)
        # Rows that others refer to stay, or every join would lose rows. Shares differ, so that counts do.
        if variant == "rows" and table.lower() not in referenced:
            _drop_rows(copy, table, 0.2 + 0.07 * (place % 7), draw)
        if variant == "mixed" and (added := _further_rows(copy, table, draw)):
            _insert_rows(copy, table, added)
    copy.execute("COMMIT")


def _list_tables(copy: sqlite3.Connection) -> list[str]:
    # Rows are changed by their rowid.
    listed = copy.execute("PRAGMA table_list").fetchall()
    return sorted(
        name
        for base, name, kind, _columns, without_rowid, _strict in listed
        if base == "main" and kind == "table" and not without_rowid and not name.startswith("sqlite_")
    )


def _change_columns(copy: sqlite3.Connection, table: str, variant: str, draw: random.Random) -> None:
    foreign = {row[3] for row in _query_pragma(copy, "foreign_key_list", table)}
    fixed = _key_columns(copy, table) | {c for c in _list_columns(copy, table) if c.lower().endswith("id")}
    for column in _list_columns(copy, table):
        read = f"SELECT _rowid_, {_quote_name(column)} FROM {_quote_name(table)} ORDER BY _rowid_"  # noqa: S608
        stored = copy.execute(read).fetchall()
        values = [value for _, value in stored]
        numeric = _is_numeric(values)
        change = _choose_change(variant, numeric=numeric)
        if variant == "texts" and column in foreign and column not in _key_columns(copy, table):
            # A foreign key that changes places still refers to rows that exist.
            change = _rotate_values
        elif column in fixed or column in foreign:
            change = None
        if change is not None and len(values) > 1:
            write = f"UPDATE {_quote_name(table)} SET {_quote_name(column)} = ? WHERE _rowid_ = ?"  # noqa: S608
            changed = change(values, draw)
            copy.executemany(write, zip(changed, (rowid for rowid, _ in stored), strict=True))


def _choose_change(variant: str, *, numeric: bool) -> Callable[[Values, random.Random], Values] | None:
    if numeric:
        return {"numbers": _rotate_values, "rows": _scale_values, "mixed": _scale_values, "ties": _tie_values}.get(
            variant
        )
    return _rotate_values if variant == "texts" else None


def _list_columns(copy: sqlite3.Connection, table: str) -> list[str]:
    # row[6]: generated or hidden, so it cannot be written.
    return [row[1] for row in _query_pragma(copy, "table_xinfo", table) if not row[6]]


def _key_columns(copy: sqlite3.Connection, table: str) -> set[str]:
    # row[5]: its place in the primary key; index[2]: the index is unique.
    keys = {row[1] for row in _query_pragma(copy, "table_xinfo", table) if row[5]}
    for index in _query_pragma(copy, "index_list", table):
        if index[2]:
            keys |= {row[2] for row in _query_pragma(copy, "index_info", index[1])}
    return keys


def _query_pragma(copy: sqlite3.Connection, name: str, argument: str) -> list[tuple[Any, ...]]:
    return copy.execute(f"PRAGMA {name}({_quote_name(argument)})").fetchall()


def _quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_numeric(values: Values) -> bool:
    # A text column that contains only numbers counts as numeric.
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(v, int | float) or (isinstance(v, str) and NUMBER.match(v)) for v in present
    )


def _rotate_values(values: Values, draw: random.Random) -> Values:
    order = list(range(len(values)))
    draw.shuffle(order)
    changed = list(values)
    # One cycle through all positions: no value keeps its own.
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        changed[here] = values[there]
    return changed


def _scale_values(values: Values, draw: random.Random) -> Values:
    return [_match_form(v, float(v) * 4 ** draw.uniform(-1, 1)) if v is not None else v for v in values]


def _match_form(value: Any, number: float) -> Any:
    if isinstance(value, float):
        return number
    if isinstance(value, int):
        return round(number)
    # A number in a text keeps its form, with a point or without.
    return str(number if "." in value else round(number))


def _tie_values(values: Values, draw: random.Random) -> Values:
    present = sorted((v for v in values if v is not None), key=float)
    few = (present[0], present[len(present) // 2], present[-1])
    return [draw.choice(few) if v is not None else v for v in values]


def _drop_rows(copy: sqlite3.Connection, table: str, share: float, draw: random.Random) -> None:
    rows = [row for (row,) in copy.execute(f"SELECT _rowid_ FROM {_quote_name(table)}")]  # noqa: S608
    gone = draw.sample(rows, round(len(rows) * share))
    copy.executemany(f"DELETE FROM {_quote_name(table)} WHERE _rowid_ = ?", [(row,) for row in gone])  # noqa: S608


def _further_rows(copy: sqlite3.Connection, table: str, draw: random.Random) -> list[Values]:
    """Further rows; none for a large table or one whose key is not a single integer."""
    names, keys = _list_columns(copy, table), _key_columns(copy, table)
    listed = ", ".join(map(_quote_name, names))
    rows = copy.execute(f"SELECT {listed} FROM {_quote_name(table)} ORDER BY _rowid_").fetchall()  # noqa: S608
    if not 1 < len(rows) <= MAX_ROWS or len(keys) > 1:
        return []
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    if any(not isinstance(value, int) for key in keys for value in columns[key]):
        return []
    texts = {n: dict.fromkeys(v) for n, v in columns.items() if n not in keys and not _is_numeric(v)}
    # A text column without duplicates may be an undeclared key.
    if any(len(different) == len(rows) for different in texts.values()):
        return []
    added: list[Values] = []
    for kept, different in texts.items():
        for value in 2 * list(different) if len(different) > 1 else ():
            row = {name: draw.choice(values) for name, values in columns.items()} | {kept: value}
            row |= {key: max(columns[key]) + 1 + len(added) for key in keys}
            added.append(list(row.values()))
    return added


def _insert_rows(copy: sqlite3.Connection, table: str, rows: list[Values]) -> None:
    names = _list_columns(copy, table)
    listed, marks = ", ".join(map(_quote_name, names)), ", ".join("?" * len(names))
    copy.executemany(f"INSERT INTO {_quote_name(table)} ({listed}) VALUES ({marks})", rows)  # noqa: S608
