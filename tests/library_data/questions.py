"""The questions: every sentence of `forms.yaml`, its slots filled from the database.

The first sentence of a form is asked with `DRAWS` different values, each other one once. The test has two
halves: forms of query that training has too, with other words and values, and forms that it has not.
"""

import random
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.library_data import database
from tests.library_data.skeleton import query_skeleton

FORMS = Path(__file__).with_name("forms.yaml")
SEEN, UNSEEN = "seen query form", "new query form"  # the domains: what the report compares
DRAWS = 2
# Where the last sentences of forms belong, in turn: 5 of 17 to test, 3 to val.
TURNS = ("test", "train", "val", "train") * 3 + ("test", "train", "train", "train", "test")
TRIES = 200  # draws until a query returns something
SLOT = re.compile(r"\{(\w+)\}")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
Values = Mapping[str, Sequence[Any]]
Row = dict[str, str]


class Sentence(NamedTuple):
    """One wording of a query, both with slots, and where it belongs."""

    number: str  # of its form and its place there: 07b
    ask: str
    sql: str
    split: str
    domain: str


def write_questions() -> list[Row]:
    """All rows of `questions.jsonl`. Raises ValueError for a form that breaks a rule of the data."""
    forms = yaml.safe_load(FORMS.read_text(encoding="utf-8"))
    _refuse_shared_skeletons(forms)
    tables = database.generate_rows()
    values, draw = _slot_values(tables), random.Random(database.SEED)
    rows: list[Row] = []
    with closing(sqlite3.connect(":memory:")) as base:
        _fill_database(base, tables)
        for sentence in _sentences(forms):
            rows += _rows_of(sentence, values, base, draw)
    # Mixed, so that the first N rows have all splits and forms.
    draw.shuffle(rows)
    return rows


def _refuse_shared_skeletons(forms: Sequence[Mapping[str, Any]]) -> None:
    trained = {query_skeleton(form["sql"]) for form in forms if not form.get("unseen")}
    for form in forms:
        if form.get("unseen") and query_skeleton(form["sql"]) in trained:
            raise ValueError(f"{FORMS}: {form['sql']} is unseen, and another form has its skeleton")


def _sentences(forms: Sequence[Mapping[str, Any]]) -> Iterator[Sentence]:
    skeletons: list[str] = [query_skeleton(form["sql"]) for form in forms]
    several = 0
    for place, form in enumerate(forms):
        last = len(form["ask"]) - 1
        # Held out is the last wording of a form whose skeleton training has in other forms or wordings too.
        holds_out = last >= 2 or skeletons.count(skeletons[place]) > 1
        for number, ask in enumerate(form["ask"]):
            split, domain = "train", SEEN
            if form.get("unseen"):
                split, domain = "test", UNSEEN
            elif number == last and holds_out:
                split = TURNS[several % len(TURNS)]
            yield Sentence(f"{place:03}{'abcd'[number]}", ask, form["sql"], split, domain)
        several += holds_out


def _rows_of(sentence: Sentence, values: Values, base: sqlite3.Connection, draw: random.Random) -> Iterator[Row]:
    is_first = sentence.number.endswith("a") and SLOT.search(sentence.sql)
    draws = DRAWS if is_first and sentence.split == "train" else 1
    asked = set[str]()
    for number in range(draws):
        for _ in range(TRIES):
            slots = _draw_slots(sentence.sql + sentence.ask, values, draw)
            ask, sql = sentence.ask.format(**slots), sentence.sql.format(**slots)
            if ask not in asked and _returns_something(base, sql):
                break
        else:
            raise ValueError(f"{FORMS}: {sentence.sql} returns nothing for {TRIES} draws of its slots")
        asked.add(ask)
        yield {
            "task_id": f"library-{sentence.number}{number + 1}",
            "instruction": ask,
            "schema": database.SCHEMA,
            "gold_sql": sql,
            "database": "library",
            "domain": sentence.domain,
            "split": sentence.split,
        }


def _draw_slots(text: str, values: Values, draw: random.Random) -> dict[str, Any]:
    slots: dict[str, Any] = {}
    for name in sorted(name for name in values if f"{{{name}" in text):
        pair = draw.sample(values[name], 2)
        # Of two values of a kind the smaller one comes first, as BETWEEN needs it.
        slots[name], slots[f"{name}2"] = sorted(pair) if f"{{{name}2}}" in text else pair
    if "month" in slots:
        slots["month_number"] = f"{MONTHS.index(slots['month']) + 1:02}"
    return slots


def _slot_values(tables: Mapping[str, Sequence[tuple[Any, ...]]]) -> Values:
    """Slot -> the values that it may have."""
    loans = tables["loan"]
    books = {row[0]: row[1] for row in tables["book"]}
    members = {row[0]: row[1] for row in tables["member"]}
    days = sorted({row[4] for row in loans})
    return {
        "genre": database.GENRES,
        "town": database.TOWNS,
        "country": database.COUNTRIES,
        "plan": database.PLANS,
        "kind": database.KINDS,
        "branch": database.BRANCHES,
        "eventful": database.BRANCHES[:11],
        "word": database.NOUNS,
        "first": database.FIRST,
        "last": database.LAST,
        "title": sorted(books.values()),
        "lent": sorted({books[row[1]] for row in loans}),
        "author": sorted(row[1] for row in tables["author"]),
        "member": sorted(members.values()),
        "borrower": sorted({members[row[3]] for row in loans}),
        "loanday": days,
        "day": days[::7],
        "yearmonth": sorted({day[:7] for day in days}),
        "loanyear": (2023, 2024),
        "month": MONTHS,
        "author_id": range(1, 61),
        "branch_id": range(1, 13),
        "born": range(1940, 1986),
        "opened": range(1920, 2010),
        "joined": range(2010, 2024),
        "year": range(1975, 2019),
        "pages": range(150, 601, 10),
        "seats": range(40, 140, 5),
        "days": range(5, 34),
        "visitors": range(50, 361, 10),
        "mean": range(180, 221, 5),
        "length": range(390, 451, 5),
        "total": range(9800, 10801, 100),
        "oldest": range(1932, 1942),
        "short": range(100, 160, 5),
        "late": days[-50::3],
        "fine": (1, 2, 3, 4, 5, 6),
        "few": range(3, 9),
        "some": range(30, 42),
        "n": range(2, 9),
    }


def _fill_database(base: sqlite3.Connection, tables: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
    base.executescript(database.SCHEMA)
    for table, rows in tables.items():
        base.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _returns_something(base: sqlite3.Connection, sql: str) -> bool:
    rows = base.execute(sql).fetchall()
    return any(cell not in (None, 0) for row in rows for cell in row)
