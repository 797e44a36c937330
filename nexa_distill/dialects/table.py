"""The table of dialects in docs/pipelines/PIPELINE_GUIDE.md, made from this folder.

Run: python -m nexa_distill.dialects.table [--write]
"""

import sys
from pathlib import Path

from nexa_distill.dialects import DIALECTS, Dialect

GUIDE = Path(__file__).parents[2] / "docs/pipelines/PIPELINE_GUIDE.md"
BEGIN = "<!-- dialects: python -m nexa_distill.dialects.table --write -->"
END = "<!-- /dialects -->"
COLUMNS = (
    "`dialect:`",
    "servers",
    "what is sent",
    "what is billed",
    "its words, read of every server",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def table() -> str:
    """One row per dialect."""
    return "\n".join([HEAD, *(_row(dialect) for dialect in DIALECTS.values())])


def _row(dialect: Dialect) -> str:
    hosts = f" (by host: {', '.join(dialect.hosts)})" if dialect.hosts else ""
    cells = [f"`{dialect.name}`", dialect.servers + hosts, dialect.sent(), dialect.billing]
    return f"| {' | '.join([*cells, _words(dialect)])} |"


def _words(dialect: Dialect) -> str:
    """Finish reasons, what is retried and what stops the run by their codes, quota, loading."""
    finishes = [f"`{word}` = {normal}" for word, normal in dialect.finish_reasons.items()]
    codes = dialect.error_statuses.items()
    retried = [f"`{code}`" for code, status in codes if status in (408, 409, 429) or status >= 500]
    parts = [", ".join(finishes), f"retried: {', '.join(retried)}" if retried else ""]
    parts += ["stops at its words for a used-up quota" if dialect.quota else ""]
    parts += ["waits for its words for loading" if dialect.loading else ""]
    return "; ".join(filter(None, parts)) or "none"


def with_table(guide: str) -> str:
    """The guide's text with the table of today between its marks."""
    before, _, rest = guide.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Print the table, or write it into the guide."""
    if "--write" in sys.argv[1:]:
        GUIDE.write_text(with_table(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
