"""The checks of an SQL answer, against the gold query and on changed databases.

An answer matches when it returns what the gold query returns (`result_sets.py`). A gold query that
returns nothing, or that does not run within the limits, decides nothing: ok is null. So does a gold
query that returns something on the real database and nothing on every changed one, unless the
answer is the gold query in another spelling, which matches wherever that does.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from nexa_distill.execution.checks import Check, Job, Rejected, check, failed
from nexa_distill.execution.database_perturbation import TIES
from nexa_distill.execution.job_timer import ANSWER, GOLD, Stopwatch
from nexa_distill.execution.result_sets import holds_nothing, same_result
from nexa_distill.execution.sql import Clock, Database, Limits, Rows
from nexa_distill.execution.sql_text import Shape, normal_form, shape

OPEN_DATABASES = 32
KNOWN_QUERIES = 64
SUPERLATIVE = re.compile(r"\b(?:max|min|order|limit)\b", re.IGNORECASE)


class Gold:
    """A gold query and what it returns, each result found out once, when it is asked for."""

    def __init__(
        self, query: str, databases: Sequence[Database], limits: Limits, watch: Stopwatch
    ) -> None:
        self._query, self._databases, self._seconds = query, databases, limits.timeout_seconds
        self._found, self._watch = dict[int, Rows | None](), watch
        self.detail: str | None = None

    def shape(self) -> Shape | None:
        """What its text says; null (and `detail`) when it cannot be read."""
        try:
            return shape(self._query)
        except ValueError as error:
            self.detail = str(error)
            return None

    def on(self, numbers: Sequence[int], clock: Clock) -> list[Rows | None]:
        """Its results on databases, 0 = the real one; null (and `detail`) where that is nothing.

        What it takes is not the time of the answer, whose `clock` stands meanwhile.
        """
        if unknown := [number for number in numbers if number not in self._found]:
            self._watch.start(GOLD)
            self._found |= {number: self._run(number) for number in unknown}
            self._watch.start(ANSWER, clock.used)
        return [self._found[number] for number in numbers]

    def _run(self, number: int) -> Rows | None:
        try:
            rows = self._databases[number].rows(self._query, Clock(self._seconds))
        except Rejected as why:
            self.detail = f"the known query fails: {why.detail}"
            return None
        if holds_nothing(rows):
            self.detail = "the known query returns nothing"
            return None
        return rows

    def superlative(self, answer: str) -> bool:
        """Whether one of the two asks for the most or the least, which may be several."""
        return SUPERLATIVE.search(self._query) is not None or SUPERLATIVE.search(answer) is not None

    def same_query(self, answer: str) -> bool:
        """Whether the answer is this query, spelled another way."""
        form = normal_form(answer)
        return form is not None and form == normal_form(self._query)


class SqlChecks:
    """Checks answers on `databases`: name -> the real file, then the changed ones."""

    def __init__(
        self, databases: Mapping[str, Sequence[str]], limits: Limits, watch: Stopwatch
    ) -> None:
        self._limits = limits
        self._open = lru_cache(OPEN_DATABASES)(lambda path: Database(Path(path), limits))
        self._paths = databases
        self._gold = lru_cache(KNOWN_QUERIES)(
            lambda place, query: Gold(query, self._databases(place), limits, watch)
        )

    def _databases(self, place: str) -> list[Database]:
        return [self._open(path) for path in self._paths[place]]

    def check(self, job: Job) -> list[Check]:
        """executes; matches where there is a gold query; matches_perturbed where that holds."""
        answer, place, known = job.answer or "", str(job.place), job.known is not None
        databases, clock = self._databases(place), Clock(self._limits.timeout_seconds)
        try:
            found = databases[0].rows(answer, clock)
        except Rejected as why:
            return failed(why.reason, why.detail, known=known)
        executes = check("executes", True)
        if job.known is None:
            return [executes]
        gold = self._gold(place, job.known)
        text, expected = gold.shape(), gold.on([0], clock)[0]
        if text is None or expected is None:
            return [executes, check("matches", None, "not_decidable", gold.detail)]
        if not same_result(found, expected, ordered=text.ordered):
            shown = f"{len(found)} rows, expected {len(expected)}: {found[:2]} for {expected[:2]}"
            return [executes, check("matches", False, "wrong_result", shown)]
        return [executes, check("matches", True), _elsewhere(answer, gold, text, databases, clock)]


def _elsewhere(
    answer: str, gold: Gold, text: Shape, databases: Sequence[Database], clock: Clock
) -> Check:
    """matches_perturbed: on each changed database on which the gold query returns something."""
    name, told = "matches_perturbed", False
    ties = not text.picks and gold.superlative(answer)
    numbers = [number for number in range(1, len(databases)) if number != TIES or ties]
    for number, expected in zip(numbers, gold.on(numbers, clock), strict=True):
        if expected is None:
            continue
        try:
            found = databases[number].rows(answer, clock)
        except Rejected as why:
            return check(name, False, why.reason, f"on a changed database: {why.detail}")
        if not same_result(found, expected, ordered=text.ordered):
            return check(name, False, "lucky_match", f"{found[:2]} for {expected[:2]}")
        told = True
    if told or gold.same_query(answer):
        return check(name, True)
    return check(name, None, "not_decidable", "no changed database tells")
