"""The form of a query, without what it is about."""

import sqlglot
from sqlglot import expressions as exp


def query_skeleton(sql: str) -> str:
    """The query with `?` for every literal and `x` for every table and column, without aliases.

    Two queries with one skeleton differ only in what they look up, not in how. Functions,
    operators, and directions of an order stay.
    """
    tree = sqlglot.parse_one(sql, read="sqlite")
    return str(tree.transform(_strip_node).sql(dialect="sqlite"))


def _strip_node(node: exp.Expression) -> exp.Expression:
    if isinstance(node, exp.Alias):
        return _strip_node(node.this)
    if isinstance(node, exp.Literal):
        return exp.Placeholder()
    if isinstance(node, exp.Column):
        # `book.title` and `title` are one form.
        return node if isinstance(node.this, exp.Star) else exp.column("x")
    return exp.to_table("x") if isinstance(node, exp.Table) else node
