"""What execution says about one answer: its checks and its score.

    exec.executes            it runs, parses or holds a final answer
    exec.matches             its result is that of the known answer; only where there is one
    exec.matches_perturbed   SQL: also on changed databases; only where it matches on the real one
    exec.score               1.0 matches, 0.5 executes, otherwise 0

Of the first three, `value` is 1.0 or 0.0 with `ok`. The score decides nothing, so it is always ok;
where a match cannot be decided it is null, like the check it depends on. An answer that does not
execute does not match either, for the same reason.
"""

from typing import Any, NamedTuple

DETAIL_LENGTH = 300


class Job(NamedTuple):
    """One answer to execute.

    `known`: SQL: the gold query; maths: the reference; Python: the tests; JSON: the task type if it
    has a schema; null = there is nothing to compare with. `place`: the name of the SQL's database.
    """

    kind: str
    answer: str | None
    known: str | None = None
    place: str | None = None


class Check(NamedTuple):
    """A row of contracts.CHECKS without its key."""

    check: str
    ok: bool | None
    value: float | None = None
    reason: str | None = None
    detail: str | None = None


class Rejected(Exception):
    """Why something was not executed: a reason of contracts.REASONS, and evidence for a person."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def check(name: str, ok: bool | None, reason: str | None = None, detail: Any = None) -> Check:
    """A check; `reason` only counts where it is not ok, `detail` is cut to a readable length."""
    value = None if ok is None else float(ok)
    return Check(f"exec.{name}", ok, value, None if ok else reason, _shown(detail))


def _shown(detail: Any) -> str | None:
    if detail is None:
        return None
    text = str(detail).encode("utf-8", "replace").decode()
    return text if len(text) <= DETAIL_LENGTH else text[: DETAIL_LENGTH - 1] + "…"


def failed(reason: str, detail: Any = None, *, known: bool) -> list[Check]:
    """The checks of an answer that does not execute; `known`: it would have been compared."""
    names = ("executes", "matches") if known else ("executes",)
    return [check(name, False, reason, detail) for name in names]


def undecided(reason: str, detail: Any = None) -> list[Check]:
    """The checks of an answer that could not be looked at."""
    return [check("executes", None, reason, detail)]


def scored(checks: list[Check]) -> list[Check]:
    """The checks and, last, exec.score."""
    found = {c.check: c.ok for c in checks}
    executes = found.pop("exec.executes")
    if executes is None or (None in found.values() and False not in found.values()):
        value = None
    elif not executes:
        value = 0.0
    else:
        value = 1.0 if found and all(found.values()) else 0.5
    return [*checks, Check("exec.score", True, value)]
