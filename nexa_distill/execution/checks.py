"""The checks of an executed answer, and its score.

exec.executes            it runs, parses or has a final answer
exec.matches             its result equals that of the known answer, if there is one
exec.matches_perturbed   SQL: also on changed databases, if it matches on the real one
exec.score               1.0 matches, 0.5 executes, otherwise 0; null if undecided; always ok
"""

from typing import Any, NamedTuple

DETAIL_LENGTH = 300


class Job(NamedTuple):
    """One answer to execute."""

    kind: str
    answer: str | None
    # SQL: the gold query; maths: the reference; Python: the tests; JSON: the task type, if it has a schema.
    known: str | None = None
    place: str | None = None  # name of the SQL database


class Check(NamedTuple):
    """A row of contracts.CHECKS without its key."""

    check: str
    ok: bool | None
    value: float | None = None
    reason: str | None = None
    detail: str | None = None


class ExecutionRejected(Exception):
    """Not executed: a reason of contracts.REASONS, and human-readable evidence."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def make_check(name: str, ok: bool | None, reason: str | None = None, detail: Any = None) -> Check:
    """A check; `reason` is dropped if it is ok, `detail` is cut to `DETAIL_LENGTH`."""
    value = None if ok is None else float(ok)
    return Check(f"exec.{name}", ok, value, None if ok else reason, _shorten_detail(detail))


def _shorten_detail(detail: Any) -> str | None:
    if detail is None:
        return None
    # A lone surrogate in a program's output cannot be written.
    text = str(detail).encode("utf-8", "replace").decode()
    return text if len(text) <= DETAIL_LENGTH else text[: DETAIL_LENGTH - 1] + "…"


def failed_checks(job: Job, reason: str, detail: Any = None) -> list[Check]:
    """The checks of an answer that does not execute; if there is a known answer, it does not match either."""
    names = ("executes",) if job.known is None else ("executes", "matches")
    return [make_check(name, False, reason, detail) for name in names]


def undecided_checks(reason: str, detail: Any = None) -> list[Check]:
    return [make_check("executes", None, reason, detail)]


def with_score(checks: list[Check]) -> list[Check]:
    matches = {c.check: c.ok for c in checks}
    executes = matches.pop("exec.executes")
    # An undecided comparison leaves the score open, unless another one has failed.
    if executes is None or (None in matches.values() and False not in matches.values()):
        value = None
    elif not executes:
        value = 0.0
    else:
        value = 1.0 if matches and all(matches.values()) else 0.5
    return [*checks, Check("exec.score", True, value)]
