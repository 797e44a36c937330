"""Changed copies of a database, on which a query that was right by luck is wrong.

    numbers   the numbers of each column change places, texts stay
    texts     the texts of each column change places, numbers stay
    rows      a part of the rows is missing and numbers are scaled (times 1/4 to 4)
    mixed     for each text there are two further rows with it, the rest of which comes from other
              rows; numbers are scaled
    ties      each column of numbers has only its least, middle and greatest value; asked where MAX,
              MIN, ORDER BY or LIMIT occurs, unless the gold query itself picks by order

Schema, types, keys and the texts that occur stay, so that a query with a text in it still finds
rows; what each copy leaves alone keeps queries with several conditions decidable. Keys are declared
primary, unique and foreign keys, and columns whose name ends with "id"; a table in which each text
of some column stands once gets no further rows, for that may be its key. A text column that holds
only numbers counts as numbers. The copies depend on the database's content alone.

The idea of changed databases: Zhong, Yu, Klein, "Semantic Evaluation for Text-to-SQL with Distilled
Test Suites", EMNLP 2020. Not covered: a condition that holds for every text of its column
(`country = 'usa'` where all are) stays without effect, and so does the difference of `> 100` and
`>= 100`; rules of the data that the schema does not
declare are broken, and a query that relies on one is called lucky; virtual tables and tables
WITHOUT ROWID stay as they are.
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
MOST_ROWS = 20_000  # of a table that gets further ones
Values = Sequence[Any]


def perturbed(source: Path, folder: Path, digest: str) -> list[Path]:
    """Write the copies of `source` into `folder`; `digest` is the hash of its content."""
    made = []
    for variant in VARIANTS:
        path = folder / f"{digest[:16]}-{variant}.sqlite"
        with sqlite3.connect(path, isolation_level=None) as copy:
            with sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True) as original:
                original.backup(copy)
            original.close()
            _change(copy, variant, digest)
        copy.close()
        made.append(path)
    return made


def _change(copy: sqlite3.Connection, variant: str, digest: str) -> None:
    copy.execute("PRAGMA ignore_check_constraints=ON")
    copy.execute("BEGIN")
    for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        copy.execute(f"DROP TRIGGER {_quoted(name)}")
    tables = _tables(copy)
    referenced = {row[2].lower() for t in tables for row in _pragma(copy, "foreign_key_list", t)}
    for place, table in enumerate(tables):
        draw = random.Random(f"{digest}|{variant}|{table}")  # noqa: S311 - not a secret
        _change_columns(copy, table, variant, draw)
        if variant == "rows" and table.lower() not in referenced:
            _drop_rows(copy, table, 0.2 + 0.07 * (place % 7), draw)
        if variant == "mixed" and (added := _further_rows(copy, table, draw)):
            _insert(copy, table, added)
    copy.execute("COMMIT")


def _tables(copy: sqlite3.Connection) -> list[str]:
    """Ordinary tables with a rowid."""
    listed = copy.execute("PRAGMA table_list").fetchall()
    return sorted(
        name
        for base, name, kind, _columns, without_rowid, _strict in listed
        if base == "main"
        and kind == "table"
        and not without_rowid
        and not name.startswith("sqlite_")
    )


def _change_columns(
    copy: sqlite3.Connection, table: str, variant: str, draw: random.Random
) -> None:
    foreign = {row[3] for row in _pragma(copy, "foreign_key_list", table)}
    fixed = _keys(copy, table) | {c for c in _columns(copy, table) if c.lower().endswith("id")}
    for column in _columns(copy, table):
        read = f"SELECT _rowid_, {_quoted(column)} FROM {_quoted(table)} ORDER BY _rowid_"  # noqa: S608
        stored = copy.execute(read).fetchall()
        values = [value for _, value in stored]
        numeric = _is_numeric(values)
        change = _changes(variant, numeric=numeric)
        if variant == "texts" and column in foreign and column not in _keys(copy, table):
            change = _rotated
        elif column in fixed or column in foreign:
            change = None
        if change is not None and len(values) > 1:
            write = f"UPDATE {_quoted(table)} SET {_quoted(column)} = ? WHERE _rowid_ = ?"  # noqa: S608
            changed = change(values, draw)
            copy.executemany(write, zip(changed, (rowid for rowid, _ in stored), strict=True))


def _changes(variant: str, *, numeric: bool) -> Callable[[Values, random.Random], Values] | None:
    if numeric:
        return {"numbers": _rotated, "rows": _scaled, "mixed": _scaled, "ties": _tied}.get(variant)
    return _rotated if variant == "texts" else None


def _columns(copy: sqlite3.Connection, table: str) -> list[str]:
    """But for generated ones."""
    return [row[1] for row in _pragma(copy, "table_xinfo", table) if not row[6]]


def _keys(copy: sqlite3.Connection, table: str) -> set[str]:
    keys = {row[1] for row in _pragma(copy, "table_xinfo", table) if row[5]}
    for index in _pragma(copy, "index_list", table):
        if index[2]:
            keys |= {row[2] for row in _pragma(copy, "index_info", index[1])}
    return keys


def _pragma(copy: sqlite3.Connection, name: str, argument: str) -> list[tuple[Any, ...]]:
    return copy.execute(f"PRAGMA {name}({_quoted(argument)})").fetchall()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_numeric(values: Values) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(v, int | float) or (isinstance(v, str) and NUMBER.match(v)) for v in present
    )


def _rotated(values: Values, draw: random.Random) -> Values:
    """Each value in the place of another one: no row keeps its own."""
    order = list(range(len(values)))
    draw.shuffle(order)
    changed = list(values)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        changed[here] = values[there]
    return changed


def _scaled(values: Values, draw: random.Random) -> Values:
    return [_like(v, float(v) * 4 ** draw.uniform(-1, 1)) if v is not None else v for v in values]


def _like(value: Any, number: float) -> Any:
    """The number in the form of the value: whole, with a point, or as text."""
    if isinstance(value, float):
        return number
    if isinstance(value, int):
        return round(number)
    return str(number if "." in value else round(number))


def _tied(values: Values, draw: random.Random) -> Values:
    present = sorted((v for v in values if v is not None), key=float)
    few = (present[0], present[len(present) // 2], present[-1])
    return [draw.choice(few) if v is not None else v for v in values]


def _drop_rows(copy: sqlite3.Connection, table: str, share: float, draw: random.Random) -> None:
    rows = [row for (row,) in copy.execute(f"SELECT _rowid_ FROM {_quoted(table)}")]  # noqa: S608
    gone = draw.sample(rows, round(len(rows) * share))
    copy.executemany(f"DELETE FROM {_quoted(table)} WHERE _rowid_ = ?", [(row,) for row in gone])  # noqa: S608


def _further_rows(copy: sqlite3.Connection, table: str, draw: random.Random) -> list[Values]:
    """None for a table with a key other than one whole number, and for a large one."""
    names, keys = _columns(copy, table), _keys(copy, table)
    listed = ", ".join(map(_quoted, names))
    rows = copy.execute(f"SELECT {listed} FROM {_quoted(table)} ORDER BY _rowid_").fetchall()  # noqa: S608
    if not 1 < len(rows) <= MOST_ROWS or len(keys) > 1:
        return []
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    if any(not isinstance(value, int) for key in keys for value in columns[key]):
        return []
    texts = {
        n: dict.fromkeys(v) for n, v in columns.items() if n not in keys and not _is_numeric(v)
    }
    if any(len(different) == len(rows) for different in texts.values()):
        return []
    added: list[Values] = []
    for kept, different in texts.items():
        for value in 2 * list(different) if len(different) > 1 else ():
            row = {name: draw.choice(values) for name, values in columns.items()} | {kept: value}
            row |= {key: max(columns[key]) + 1 + len(added) for key in keys}
            added.append(list(row.values()))
    return added


def _insert(copy: sqlite3.Connection, table: str, rows: list[Values]) -> None:
    names = _columns(copy, table)
    listed, marks = ", ".join(map(_quoted, names)), ", ".join("?" * len(names))
    copy.executemany(f"INSERT INTO {_quoted(table)} ({listed}) VALUES ({marks})", rows)  # noqa: S608
