"""The database: 12 branches, 60 authors, 300 books, 320 members, 2,400 loans, 260 events.

All names are invented. Every draw comes from one seed, so the rows are the same everywhere; the
bytes of the file depend on the version of SQLite.
"""

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

SEED = 11
SCHEMA = """\
CREATE TABLE branch (id, name, town, opened, seats);
CREATE TABLE author (id, name, country, born);
CREATE TABLE book (id, title, author_id, genre, year, pages);
CREATE TABLE member (id, name, town, plan, joined);
CREATE TABLE loan (id, book_id, branch_id, member_id, day, days, fine);
CREATE TABLE event (id, branch_id, kind, day, visitors);"""
# The types, which the prompts leave out: tokens cost time.
TYPES = {"id": "INTEGER PRIMARY KEY", "fine": "REAL"} | dict.fromkeys(
    ("name", "town", "country", "title", "genre", "plan", "day", "kind"), "TEXT"
)
TABLES = {line.split()[2]: line[line.index("(") + 1 : line.index(")")].split(", ") for line in SCHEMA.splitlines()}

TOWNS = ("Elmford", "Greyport", "Hollin", "Marsten", "Oakby", "Ravensea")
BRANCHES = (
    "Mill Lane", "Old Quay", "Station Square", "Castle Hill", "Long Meadow", "Harbour View",
    "Market Cross", "North Gate", "Green Park", "Abbey Road", "Canal Side", "West End",
)  # fmt: skip
COUNTRIES = ("Norway", "Kenya", "Chile", "Japan", "Ireland", "India", "Canada", "Greece")
GENRES = ("crime", "poetry", "history", "science", "travel", "fantasy", "romance", "cooking")
PLANS = ("basic", "family", "student", "senior")
KINDS = ("concert", "workshop", "quiz", "lecture", "reading")
FIRST = (
    "Ada", "Bruno", "Clara", "Dario", "Edith", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Leon",
    "Mila", "Nils", "Olga", "Pablo", "Rosa", "Sven", "Tara", "Viktor",
)  # fmt: skip
LAST = (
    "Abel", "Brandt", "Costa", "Dunne", "Egan", "Falk", "Gould", "Hale", "Ivers", "Jansen", "Kemp", "Lund",
    "Marsh", "Novak", "Ortiz", "Pryce", "Quist", "Rowe", "Stone", "Vance",
)  # fmt: skip
ADJECTIVES = (
    "Silent", "Golden", "Broken", "Hidden", "Distant", "Crimson", "Patient", "Hollow", "Winter", "Seventh",
    "Restless", "Quiet", "Burning", "Paper", "Northern", "Borrowed", "Salted", "Wandering", "Last", "Glass",
)  # fmt: skip
NOUNS = (
    "Harbour", "Garden", "River", "Kitchen", "Lantern", "Mountain", "Letter", "Island", "Orchard", "Clock",
    "Bridge", "Forest", "Mirror", "Voyage", "Tower",
)  # fmt: skip
FIRST_DAY = date(2023, 1, 2)
PERIOD = 730  # days of loans and events
OVERDUE = 21  # days; from here a late return costs a fine

Row = tuple[Any, ...]


def write_database(path: Path) -> None:
    """Replace `path` by the database."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as base:
        for table, columns in TABLES.items():
            base.execute(f"CREATE TABLE {table} ({', '.join(map(_define_column, columns))})")
        for table, rows in generate_rows().items():
            marks = ", ".join("?" * len(TABLES[table]))
            base.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        base.commit()
        base.execute("VACUUM")


def read_rows(path: Path) -> dict[str, list[Row]]:
    """Table -> its rows, by id."""
    with closing(sqlite3.connect(path)) as base:
        return {table: base.execute(f"SELECT * FROM {table} ORDER BY id").fetchall() for table in TABLES}


def _define_column(name: str) -> str:
    if name.endswith("_id"):
        return f"{name} INTEGER REFERENCES {name.removesuffix('_id')}"
    return f"{name} {TYPES.get(name, 'INTEGER')}"


def generate_rows() -> dict[str, list[Row]]:
    """Table -> its rows, ids from 1."""
    draw = random.Random(SEED)
    people = [f"{first} {last}" for first in FIRST for last in LAST]
    draw.shuffle(people)
    titles = [f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    draw.shuffle(titles)
    # Different numbers, so that a superlative has one answer.
    pages, seats = draw.sample(range(90, 720), 300), draw.sample(range(20, 160), 12)
    branches = [(name, TOWNS[i % len(TOWNS)], draw.randrange(1902, 2016), seats[i]) for i, name in enumerate(BRANCHES)]
    authors = [(name, draw.choice(COUNTRIES), draw.randrange(1931, 1992)) for name in people[:60]]
    books = [
        (title, draw.randint(1, 60), draw.choice(GENRES), draw.randrange(1968, 2024), length)
        for title, length in zip(titles, pages, strict=True)
    ]
    members = [
        (name, draw.choice(TOWNS), draw.choices(PLANS, (5, 3, 3, 2))[0], draw.randrange(2008, 2025))
        for name in people[60:380]
    ]
    tables: dict[str, Sequence[Row]] = {"branch": branches, "author": authors, "book": books, "member": members}
    tables |= {"loan": list(_draw_loans(draw)), "event": list(_draw_events(draw))}
    return {table: [(i, *row) for i, row in enumerate(rows, 1)] for table, rows in tables.items()}


def _draw_loans(draw: random.Random) -> Iterator[Row]:
    for _ in range(2400):
        start, days = draw.randrange(PERIOD), draw.randint(2, 35)
        # A book that is still out has no days and no fine.
        returned = start + days <= PERIOD
        fine = max(days - OVERDUE, 0) * 0.5 if returned else None
        # Few members borrow much, and some borrow nothing.
        member = 1 + int(300 * draw.random() ** 1.7)
        book, branch = draw.randint(1, 285), draw.randint(1, 12)
        yield book, branch, member, _day_text(start), days if returned else None, fine


def _draw_events(draw: random.Random) -> Iterator[Row]:
    visitors = draw.sample(range(5, 400), 260)
    for number in visitors:
        # One branch has no events.
        yield draw.randint(1, 11), draw.choice(KINDS), _day_text(draw.randrange(PERIOD)), number


def _day_text(offset: int) -> str:
    return (FIRST_DAY + timedelta(days=offset)).isoformat()
