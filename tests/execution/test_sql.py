"""SQL answers: what counts as a query, what matches, what is luck."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from nexa_distill.execution.database_perturbation import VARIANTS, write_perturbed_copies
from nexa_distill.execution.sql import Database, Limits
from nexa_distill.execution.sql_checks import SqlChecks
from nexa_distill.execution.sql_text import normal_form, read_shape
from nexa_distill.storage.manifests import sha256_path
from tests.support.databases import LIMITS, checks, make_shops, said, verdict

TEAS = "SELECT name FROM goods WHERE price > 5"


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> SqlChecks:
    folder = tmp_path_factory.mktemp("shops")
    return checks(folder, make_shops(folder / "shops.sqlite"))


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        (TEAS, None, "executes"),
        (TEAS + ";", TEAS, "matches_perturbed"),
        (f"-- the dear ones\n/* yes */ {TEAS}; -- done", TEAS, "matches_perturbed"),
        ("select NAME as n from GOODS g where not g.price <= 5.0", TEAS, "matches_perturbed"),
        (f"WITH dear AS ({TEAS}) SELECT * FROM dear", TEAS, "matches_perturbed"),
        ("SELECT goods FROM large_sale", "SELECT goods FROM sale WHERE pieces > 15",
         "matches_perturbed"),
        ("SELECT count(*) FROM (SELECT 1 FROM goods)", "SELECT count(*) FROM goods",
         "matches_perturbed"),
        ("SELECT price, name FROM goods", "SELECT name, price FROM goods", "matches: wrong_result"),
        (TEAS + " UNION ALL " + TEAS, TEAS, "matches: wrong_result"),
        (TEAS + " AND 0", TEAS, "matches: wrong_result"),
        (f"SELECT * FROM ({TEAS}) ORDER BY 1 DESC", TEAS + " ORDER BY name",
         "matches: wrong_result"),
        (f"SELECT * FROM ({TEAS}) ORDER BY 1", TEAS + " ORDER BY name", "matches_perturbed"),
        (TEAS + " ORDER BY name DESC", TEAS, "matches_perturbed"),
        (TEAS, "SELECT name FROM goods WHERE name = 'gold'", "matches: not_decidable"),
        ("SELECT name FROM goods WHERE 0", "SELECT name FROM goods WHERE 0",
         "matches: not_decidable"),
        ("SELECT max(price) FROM goods WHERE 0", "SELECT max(price) FROM goods WHERE 0",
         "matches: not_decidable"),
        (TEAS, "SELECT nothing FROM nowhere", "matches: not_decidable"),
        (TEAS, "SELECT name FROM goods WHERE price > 5 LIMIT LIMIT", "matches: not_decidable"),
        (TEAS, "DELETE FROM goods", "matches: not_decidable"),
        ("SELECT nme FROM goods", TEAS, "matches: not_executable"),
        ("SELEC name FROM goods", TEAS, "matches: not_a_query"),
        ("", TEAS, "matches: not_a_query"),
    ],
)  # fmt: skip
def test_an_answer_matches_when_it_returns_what_the_gold_query_returns(
    shops: SqlChecks, answer: str, gold: str | None, expected: str
) -> None:
    assert said(verdict(shops, answer, gold)) == expected


LUCKY = [
    ("SELECT town FROM shop WHERE name = 'west'", "SELECT 'Cley'"),
    ("SELECT count(*) FROM goods", "SELECT 10"),
    ("SELECT max(price) FROM goods", "SELECT price FROM goods WHERE name = 'nails'"),
    ("SELECT count(*) FROM shop", "SELECT count(*) FROM shop WHERE opened < '1950'"),
    ("SELECT opened FROM shop WHERE name = 'north'", "SELECT min(opened) FROM shop"),
    ("SELECT name FROM goods WHERE price > 3", "SELECT name FROM goods WHERE price > 3.5"),
    ("SELECT name FROM goods WHERE price = (SELECT max(price) FROM goods)",
     "SELECT name FROM goods ORDER BY price DESC LIMIT 1"),
    ("SELECT count(*) FROM sale WHERE pieces > 0", "SELECT count(*) FROM sale"),
    ("SELECT count(DISTINCT goods) FROM sale", "SELECT count(*) FROM goods"),
    ("SELECT sum(pieces) FROM sale", "SELECT 792"),
    ("SELECT name FROM goods WHERE stock IS NULL", "SELECT 'rope'"),
    ("SELECT count(*) FROM sale WHERE goods = 'tea'",
     "SELECT count(*) FROM sale WHERE goods = 'oil'"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), LUCKY)
def test_a_match_by_luck_is_unmasked_by_a_changed_database(shops: SqlChecks, gold: str, answer: str) -> None:
    found = verdict(shops, answer, gold)
    assert [c.ok for c in found] == [True, True, False], found
    assert found[-1].reason == "lucky_match"


def test_the_same_query_matches_where_no_changed_database_tells(tmp_path: Path) -> None:
    path = tmp_path / "one.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT UNIQUE)")
        base.execute("INSERT INTO t VALUES (1, 'x')")
    base.close()
    gold = "SELECT b FROM t WHERE b = (SELECT b FROM t)"
    # Every copy holds the one row as it is, or not at all.
    assert said(verdict(checks(tmp_path, path), gold.lower(), gold)) == "matches_perturbed"


def test_what_no_changed_database_tells_is_not_decidable(tmp_path: Path) -> None:
    path = tmp_path / "shops.sqlite"
    checker = checks(tmp_path, make_shops(path), changed=False)
    assert said(verdict(checker, "SELECT name FROM goods WHERE 5 < price", TEAS)) == (
        "matches_perturbed: not_decidable"
    )
    assert said(verdict(checker, TEAS.replace("price >", "price  >"), TEAS)) == "matches_perturbed"


def test_an_answer_that_fails_only_on_changed_data_says_so(tmp_path: Path) -> None:
    checker = checks(tmp_path, make_shops(tmp_path / "shops.sqlite"))
    bomb = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"
    answer = f"SELECT CASE WHEN count(*) = 10 THEN 10 ELSE ({bomb}) END FROM goods"
    found = verdict(checker, answer, "SELECT count(*) FROM goods")
    assert said(found) == "matches_perturbed: execution_timeout"


# Changed databases.


def test_a_changed_database_depends_on_the_content_alone(tmp_path: Path) -> None:
    source = make_shops(tmp_path / "shops.sqlite")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (
        [sha256_path(p) for p in write_perturbed_copies(source, tmp_path / name, "00")] for name in ("a", "b")
    )
    assert first == second
    assert len({sha256_path(source), *first}) == len(VARIANTS) + 1


def test_a_changed_database_keeps_schema_types_keys_and_texts(tmp_path: Path) -> None:
    source = make_shops(tmp_path / "shops.sqlite")
    with sqlite3.connect(source) as base:
        schema = base.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        shops = base.execute("SELECT shop_id, name FROM shop").fetchall()
    for path in write_perturbed_copies(source, tmp_path, "00"):
        with sqlite3.connect(path) as copy:
            assert copy.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == schema
            assert copy.execute("SELECT shop_id, name FROM shop").fetchall() == shops
            assert copy.execute("PRAGMA foreign_key_check").fetchall() == []
            goods = {g for (g,) in copy.execute("SELECT goods FROM sale")}
            assert goods == {"tea", "rice", "salt", "oil", "soap", "rope", "lamp", "nails",
                             "paper", "glass"}  # fmt: skip
            types = "SELECT DISTINCT typeof(pieces), typeof(paid) FROM sale"
            assert copy.execute(types).fetchall() == [("integer", "real")]
            opened = copy.execute("SELECT DISTINCT typeof(opened) FROM shop").fetchall()
            assert opened == [("text",)]


def test_triggers_generated_columns_and_tables_without_rowid_do_not_disturb(tmp_path: Path) -> None:
    source = tmp_path / "odd.sqlite"
    with sqlite3.connect(source) as base:
        base.executescript(
            """
            CREATE TABLE "a ""b" (x INT CHECK (x < 5), y INT GENERATED ALWAYS AS (x * 2));
            INSERT INTO "a ""b" (x) VALUES (1), (2), (3), (4);
            CREATE TABLE k (x TEXT PRIMARY KEY, y INT) WITHOUT ROWID;
            INSERT INTO k VALUES ('p', 1), ('q', 2);
            CREATE TRIGGER t AFTER UPDATE ON "a ""b" BEGIN SELECT RAISE(ABORT, 'no'); END;
            CREATE TABLE empty (x);
            """
        )
    base.close()
    for path in write_perturbed_copies(source, tmp_path, "00"):
        with sqlite3.connect(path) as copy:
            assert copy.execute("SELECT count(*) FROM k").fetchone() == (2,)
            assert copy.execute('SELECT count(*) FROM "a ""b" WHERE y <> x * 2').fetchone() == (0,)


# The text of a query.


@pytest.mark.parametrize(
    ("query", "ordered", "picks"),
    [
        ("SELECT a FROM t", False, False),
        ("SELECT a FROM t ORDER BY a", True, True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 1)", False, True),
        ("SELECT a FROM t LIMIT 3", False, True),
        ("SELECT a FROM t WHERE b = 'order by'", False, False),
        ("SELECT a FROM t UNION SELECT a FROM u ORDER BY a", True, True),
        ("WITH x AS (SELECT a FROM t ORDER BY a) SELECT * FROM x", False, True),
    ],
)
def test_only_an_order_of_the_whole_result_counts(query: str, *, ordered: bool, picks: bool) -> None:
    found = read_shape(query)
    assert (found.ordered, found.picks) == (ordered, picks)


def test_a_normal_form_forgets_spelling_and_not_meaning() -> None:
    form = normal_form("select  Name from Goods where Price<>5 -- why\n")
    assert form == normal_form("SELECT name FROM goods WHERE price != 5;")
    assert form != normal_form("SELECT name FROM goods WHERE price != 6")
    assert normal_form("SELECT 'Name'") != normal_form("SELECT 'name'")
    assert normal_form("SELEC FROM") is None


FOREVER = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"


@pytest.mark.parametrize(
    ("limits", "limit"), [(LIMITS, "steps"), (replace(LIMITS, timeout_seconds=0.2, max_sql_steps=10**12), "time")]
)
def test_an_endless_query_is_stopped_by_steps_and_by_time(tmp_path: Path, limits: Limits, limit: str) -> None:
    checker = checks(tmp_path, make_shops(tmp_path / "shops.sqlite"), limits, changed=False)
    (found,) = verdict(checker, FOREVER)
    assert (found.reason, found.detail) == (
        "execution_timeout", f"stopped at its limit of {limit}",
    )  # fmt: skip


def test_a_file_is_opened_for_reading_alone(tmp_path: Path) -> None:
    database = Database(make_shops(tmp_path / "shops.sqlite"), LIMITS)
    database._connection.set_authorizer(None)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database._connection.execute("DELETE FROM goods")


def test_a_database_is_never_changed(tmp_path: Path) -> None:
    source = make_shops(tmp_path / "shops.sqlite")
    before = sha256_path(source)
    checker = checks(tmp_path, source, LIMITS)
    for answer in ("DELETE FROM goods", "WITH x AS (SELECT 1) DELETE FROM goods", TEAS):
        verdict(checker, answer, TEAS)
    assert sha256_path(source) == before
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".sqlite"] * (len(VARIANTS) + 1)
