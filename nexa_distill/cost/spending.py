"""Spending of each paid stage: requests, tokens, dollars, wall time of all its runs."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from nexa_distill.errors import StorageFailed
from nexa_distill.journal.journal import PROCESS_DIED, ReadOnlyJournal
from nexa_distill.settings.pipeline import Storage

Figures = dict[str, Any]

FIRST_STAGES = ("teacher", "regenerate", "judge")
# LEFT JOIN: attempts without usage count too. A sum with NULL is NULL: count(a + b) counts rows with both.
_TOTALS_BY_OUTCOME = (
    "SELECT o.outcome, count(*), sum(u.prompt_tokens), sum(u.completion_tokens), "
    "count(u.prompt_tokens + u.completion_tokens), sum(u.cost_usd), count(u.cost_usd), "
    "sum(a.most_usd) FROM outcomes o JOIN attempts a ON a.id = o.attempt_id "
    "LEFT JOIN usage u ON u.attempt_id = a.id GROUP BY o.outcome"
)
_UNDER_WAY = "SELECT count(*) FROM unended WHERE batch IN (SELECT id FROM open_batches)"
_LAST_OUTCOME = (
    "SELECT max(o.ended_at) FROM attempts a JOIN outcomes o ON o.attempt_id = a.id "
    "WHERE a.run = ? AND o.ended_at < ? AND coalesce(o.error, '') <> ?"
)


class _OutcomeTotals(NamedTuple):
    """Sums over the attempts of one outcome."""

    attempts: int = 0
    prompt: int | None = None
    completion: int | None = None
    counted: int = 0  # attempts with token counts
    usd: float | None = None
    priced: int = 0  # attempts with a cost
    most_usd: float | None = None


def load_spending(storage: Storage) -> tuple[dict[str, Figures], list[str]]:
    """Figures by stage, in pipeline order, and a line about each unreadable journal."""
    stages, unread = dict[str, Figures](), []
    paths = {path.stem: path for path in sorted(storage.path_of("journal").glob("*.sqlite"))}
    order = [name for name in FIRST_STAGES if name in paths]
    for name in dict.fromkeys([*order, *paths]):
        try:
            with ReadOnlyJournal(paths[name]) as journal:
                stages[name] = stage_spending(journal)
        except StorageFailed as error:
            unread.append(f"{name} is left out. {error}")
    return stages, unread


def stage_spending(journal: ReadOnlyJournal) -> Figures:
    """Figures of all runs; None = not measured. `under_way`: requests in open batches."""
    by = {outcome: _OutcomeTotals(*row) for outcome, *row in journal.read_rows(_TOTALS_BY_OUTCOME)}
    answered, refused, uncertain = (by.get(name, _OutcomeTotals()) for name in ("answered", "rejected", "uncertain"))
    # Attempts without an outcome: their process died, perhaps after the provider had answered.
    died, seconds = journal.unended_usage(), _wall_seconds(journal)
    perhaps = (uncertain.most_usd or 0.0) + died.usd
    doubtful = uncertain.attempts + died.requests
    return {
        "requests_sent": answered.attempts + refused.attempts + doubtful,
        "answered": answered.attempts,
        "refused": refused.attempts,
        "uncertain": doubtful,
        "under_way": journal.read_rows(_UNDER_WAY).fetchone()[0],
        "uncertain_usd_at_most": perhaps if perhaps or answered.priced else None,
        "prompt_tokens": answered.prompt,
        "completion_tokens": answered.completion,
        "answers_without_token_counts": answered.attempts - answered.counted,
        "usd": answered.usd,
        "answers_without_price": answered.attempts - answered.priced,
        "seconds": seconds,
        "answers_per_second": safe_ratio(answered.attempts or None, seconds),
    }


def _wall_seconds(journal: ReadOnlyJournal) -> float | None:
    runs = "SELECT id, started_at, ended_at, lead(started_at) OVER (ORDER BY id) FROM runs"
    lasted = list[float | None]()
    for id_, started, ended, following in journal.read_rows(runs).fetchall():
        # A killed run counts until its last outcome.
        if ended is None:
            (ended,) = journal.read_rows(_LAST_OUTCOME, id_, following or math.inf, PROCESS_DIED).fetchone()
        # Not negative: the clock may have been set back meanwhile.
        lasted.append(None if ended is None else max(0.0, ended - started))
    seconds: float | None = sum_known(lasted)
    return seconds


def safe_ratio(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def sum_known(values: Iterable[Any]) -> Any:
    """Sum of the values that are not None; None if all are."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None


def sum_complete(values: Iterable[Any]) -> Any:
    """Sum of all values; None if one of them is None, or there are none."""
    numbers = list(values)
    return None if not numbers or None in numbers else sum(numbers)
