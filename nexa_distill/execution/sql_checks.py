"""The checks of an SQL answer, against the gold query and on perturbed databases.

An answer matches if its result equals that of the gold query (`result_sets.py`). If the gold query
has an empty result or does not run within the limits, the match is undecided (ok is null).
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from nexa_distill.execution.checks import Check, ExecutionRejected, Job, failed_checks, make_check
from nexa_distill.execution.database_perturbation import TIES
from nexa_distill.execution.job_timer import ANSWER, GOLD, JobTimer
from nexa_distill.execution.result_sets import is_empty_result, is_same_result
from nexa_distill.execution.sql import Clock, Database, Limits, Rows
from nexa_distill.execution.sql_text import QueryShape, normal_form, read_shape

OPEN_DATABASES = 32
KNOWN_QUERIES = 64
SUPERLATIVE = re.compile(r"\b(?:max|min|order|limit)\b", re.IGNORECASE)


class GoldQuery:
    """A gold query and its results, each computed once, on first use."""

    def __init__(self, query: str, databases: Sequence[Database], limits: Limits, watch: JobTimer) -> None:
        self._query, self._databases, self._seconds = query, databases, limits.timeout_seconds
        self._results, self._watch = dict[int, Rows | None](), watch
        self.detail: str | None = None

    def query_shape(self) -> QueryShape | None:
        """The shape of its text; None (and `detail`) if it cannot be parsed."""
        try:
            return read_shape(self._query)
        except ValueError as error:
            self.detail = str(error)
            return None

    def results_on(self, numbers: Sequence[int], clock: Clock) -> list[Rows | None]:
        """Its results on databases, 0 = the real one; None (and `detail`) for an empty one."""
        if unknown := [number for number in numbers if number not in self._results]:
            # This time is not charged to the answer.
            self._watch.start(GOLD)
            self._results |= {number: self._run_on(number) for number in unknown}
            self._watch.start(ANSWER, clock.used)
        return [self._results[number] for number in numbers]

    def _run_on(self, number: int) -> Rows | None:
        try:
            rows = self._databases[number].fetch_rows(self._query, Clock(self._seconds))
        except ExecutionRejected as why:
            self.detail = f"the known query fails: {why.detail}"
            return None
        if is_empty_result(rows):
            self.detail = "the known query returns nothing"
            return None
        return rows

    def has_superlative(self, answer: str) -> bool:
        return SUPERLATIVE.search(self._query) is not None or SUPERLATIVE.search(answer) is not None

    def is_same_query(self, answer: str) -> bool:
        form = normal_form(answer)
        return form is not None and form == normal_form(self._query)


class SqlChecks:
    """Checks answers on `databases`: name -> the real file, then the perturbed ones."""

    def __init__(self, databases: Mapping[str, Sequence[str]], limits: Limits, watch: JobTimer) -> None:
        self._limits = limits
        self._open = lru_cache(OPEN_DATABASES)(lambda path: Database(Path(path), limits))
        self._paths = databases
        self._gold = lru_cache(KNOWN_QUERIES)(
            lambda place, query: GoldQuery(query, self._open_databases(place), limits, watch)
        )

    def _open_databases(self, place: str) -> list[Database]:
        return [self._open(path) for path in self._paths[place]]

    def check_answer(self, job: Job) -> list[Check]:
        """executes; matches if there is a gold query; matches_perturbed if that matches."""
        answer, place = job.answer or "", str(job.place)
        databases, clock = self._open_databases(place), Clock(self._limits.timeout_seconds)
        try:
            rows = databases[0].fetch_rows(answer, clock)
        except ExecutionRejected as why:
            return failed_checks(job, why.reason, why.detail)
        executes = make_check("executes", True)
        if job.known is None:
            return [executes]
        gold = self._gold(place, job.known)
        text, expected = gold.query_shape(), gold.results_on([0], clock)[0]
        if text is None or expected is None:
            return [executes, make_check("matches", None, "not_decidable", gold.detail)]
        if not is_same_result(rows, expected, ordered=text.ordered):
            shown = f"{len(rows)} rows, expected {len(expected)}: {rows[:2]} for {expected[:2]}"
            return [executes, make_check("matches", False, "wrong_result", shown)]
        return [executes, make_check("matches", True), _check_perturbed(answer, gold, text, databases, clock)]


def _check_perturbed(
    answer: str, gold: GoldQuery, text: QueryShape, databases: Sequence[Database], clock: Clock
) -> Check:
    """matches_perturbed: on each perturbed database on which the gold query has a result."""
    name, is_decided = "matches_perturbed", False
    # If the gold query itself picks by order, ties give it several right results.
    ties = not text.picks and gold.has_superlative(answer)
    numbers = [number for number in range(1, len(databases)) if number != TIES or ties]
    for number, expected in zip(numbers, gold.results_on(numbers, clock), strict=True):
        if expected is None:
            continue
        try:
            rows = databases[number].fetch_rows(answer, clock)
        except ExecutionRejected as why:
            return make_check(name, False, why.reason, f"on a changed database: {why.detail}")
        if not is_same_result(rows, expected, ordered=text.ordered):
            return make_check(name, False, "lucky_match", f"{rows[:2]} for {expected[:2]}")
        is_decided = True
    # The gold query in another spelling matches everywhere, also without a result.
    if is_decided or gold.is_same_query(answer):
        return make_check(name, True)
    return make_check(name, None, "not_decidable", "the known query is empty on all changed databases")
