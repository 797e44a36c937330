"""A small database for tests of the exec gate, and the public one where it is at hand."""

import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from nexa_distill.execution.checks import Check, Job
from nexa_distill.execution.database_perturbation import write_perturbed_copies
from nexa_distill.execution.job_timer import TIMER_FORMAT, JobTimer
from nexa_distill.execution.sql import Limits
from nexa_distill.execution.sql_checks import SqlChecks
from nexa_distill.storage.manifests import sha256_path
from tests.support.answers import REPOSITORY

LIMITS = Limits(
    timeout_seconds=2.0, memory_mb=256, max_sql_steps=2_000_000, max_rows=1000,
    max_output_bytes=200_000,
)  # fmt: skip
GEOQUERY = REPOSITORY.parent / "shared/data/geoquery"
SHOPS = ("north", "south", "east", "west", "harbour", "station")
GOODS = ("tea", "rice", "salt", "oil", "soap", "rope", "lamp", "nails", "paper", "glass")


def make_shops(path: Path) -> Path:
    """Shops, goods and sales: 6, 10 and 80 rows; a text column of numbers; a null; a view."""
    with sqlite3.connect(path) as base:
        base.executescript(
            """
            CREATE TABLE shop
                (shop_id INTEGER PRIMARY KEY, name TEXT UNIQUE, town TEXT, opened TEXT);
            CREATE TABLE goods (name TEXT, price REAL, stock INT);
            CREATE TABLE sale (shop_id INT REFERENCES shop, goods TEXT, pieces INT, paid REAL);
            CREATE VIEW large_sale AS SELECT * FROM sale WHERE pieces > 15;
            """
        )
        for i, name in enumerate(SHOPS):
            town = ("Aar", "Bree", "Aar", "Cley", "Bree", "Aar")[i]
            base.execute("INSERT INTO shop VALUES (?,?,?,?)", (i + 1, name, town, str(1900 + 7 * i)))
        for i, name in enumerate(GOODS):
            stock = None if name == "rope" else 5 + 13 * i % 47
            base.execute("INSERT INTO goods VALUES (?,?,?)", (name, 0.5 + 1.25 * (i * 7 % 10), stock))
        for i in range(80):
            row = (1 + i * 5 % 6, GOODS[i * 3 % 10], 1 + i * 11 % 19, 0.25 * (1 + i * 17 % 83))
            base.execute("INSERT INTO sale VALUES (?,?,?,?)", row)
    base.close()
    return path


def checks(folder: Path, database: Path, limits: Limits = LIMITS, *, changed: bool = True) -> SqlChecks:
    """The checks on one database, which rows call `shops`."""
    copies = write_perturbed_copies(database, folder, sha256_path(database)) if changed else []
    paths = [str(path) for path in (database, *copies)]
    with tempfile.TemporaryFile() as shared:
        shared.truncate(TIMER_FORMAT.size)
        return SqlChecks({"shops": paths}, limits, JobTimer(shared.fileno()))


def verdict(checker: SqlChecks, answer: str, gold: str | None = None) -> list[Check]:
    """The checks of one answer."""
    return checker.check_answer(Job("sql", answer, gold, "shops"))


def said(found: Sequence[Check]) -> str:
    """The last check in short: `matches_perturbed` or `matches: wrong_result`."""
    last = found[-1]
    name = last.check.removeprefix("exec.")
    return name if last.ok else f"{name}: {last.reason}"


def geography() -> Path:
    """GeoQuery's database; skips the test where it is not at hand."""
    path = GEOQUERY / "geography.sqlite"
    if not path.is_file():
        pytest.skip(f"{path} is not there: GeoQuery's data stands beside the checkout, if at all")
    return path
