"""Markdown from untrusted text: nothing in it may act as markup."""

import re

LONGEST_NAME = 120  # characters of a name from data


def as_code(text: object) -> str:
    """A name from data as inline code, safe also in a table."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    plain = plain if len(plain) <= LONGEST_NAME else f"{plain[: LONGEST_NAME - 1]}…"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if "`" in plain else ""
    return f"{fence}{space}{plain.replace('|', chr(92) + '|')}{space}{fence}" if plain else "(none)"
