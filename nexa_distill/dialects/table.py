"""The table of dialects in docs/pipelines/PIPELINE_GUIDE.md, generated from this folder.

Run: python -m nexa_distill.dialects.table [--write]
"""

import sys
from pathlib import Path

from nexa_distill.dialects import DIALECTS, Dialect

GUIDE = Path(__file__).parents[2] / "docs/pipelines/PIPELINE_GUIDE.md"
BEGIN = "<!-- dialects: python -m nexa_distill.dialects.table --write -->"
END = "<!-- /dialects -->"
COLUMNS = ("`dialect:`", "servers", "request", "billed tokens", "words read from every server")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def dialect_table() -> str:
    return "\n".join([HEAD, *(_table_row(dialect) for dialect in DIALECTS.values())])


def _table_row(dialect: Dialect) -> str:
    hosts = f" (by host: {', '.join(dialect.hosts)})" if dialect.hosts else ""
    cells = [f"`{dialect.name}`", dialect.servers + hosts, dialect.describe_request(), dialect.billing]
    return f"| {' | '.join([*cells, _describe_words(dialect)])} |"


def _describe_words(dialect: Dialect) -> str:
    finishes = [f"`{word}` = {normal}" for word, normal in dialect.finish_reasons.items()]
    codes = dialect.error_statuses.items()
    retried = [f"`{code}`" for code, status in codes if status in (408, 409, 429) or status >= 500]
    parts = [", ".join(finishes), f"retried: {', '.join(retried)}" if retried else ""]
    parts += ["quota messages stop the run" if dialect.quota else ""]
    parts += ["loading messages are waited for" if dialect.loading else ""]
    return "; ".join(filter(None, parts)) or "none"


def replace_table(guide: str) -> str:
    before, _, rest = guide.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{dialect_table()}\n{END}{after}"


def main() -> None:
    if "--write" in sys.argv[1:]:
        GUIDE.write_text(replace_table(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(dialect_table())


if __name__ == "__main__":
    main()
