"""Facts from the text of a query: whether it orders its rows, and its normal form.

The exec gate parses only known queries with ORDER BY or LIMIT, and answers that no database decides; the
evaluation parses every answer.
"""

import re
from dataclasses import dataclass

MENTIONS = re.compile(r"\border\s+by\b|\blimit\b", re.IGNORECASE)


@dataclass(frozen=True)
class QueryShape:
    """`ordered`: the rows of the result have an order. `picks`: ORDER BY or LIMIT occurs."""

    ordered: bool
    picks: bool


def read_shape(query: str) -> QueryShape:
    """The shape of a query. Raises ValueError if sqlglot cannot parse it."""
    # Parsing takes milliseconds, and most queries run in a tenth of one: only these are parsed.
    if not MENTIONS.search(query):
        return QueryShape(ordered=False, picks=False)
    parsed = _parse_query(query)
    from sqlglot import expressions as exp

    picks = parsed.find(exp.Order, exp.Limit) is not None
    return QueryShape(ordered=parsed.args.get("order") is not None, picks=picks)


def normal_form(query: str) -> str | None:
    """The query in one spelling, without comments; None if sqlglot cannot parse it.

    Normalized: spaces, case of keywords and unquoted names, `<>` and `!=`. Aliases are not: equal
    queries may have different normal forms.
    """
    from sqlglot.optimizer.normalize_identifiers import normalize_identifiers

    try:
        parsed = normalize_identifiers(_parse_query(query), dialect="sqlite")
    except ValueError:
        return None
    return str(parsed.sql(dialect="sqlite", comments=False))


def is_select(query: str) -> bool:
    """Whether sqlglot reads the text as one SELECT, WITH or compound query of SQLite."""
    from sqlglot import expressions as exp

    try:
        return isinstance(_parse_query(query), exp.Query)
    except ValueError:
        return False


def _parse_query(query: str):  # type: ignore[no-untyped-def]
    import sqlglot

    try:
        return sqlglot.parse_one(query, read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        raise ValueError(f"sqlglot cannot read the known query: {error}") from None
