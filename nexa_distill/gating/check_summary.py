"""Summarize the checks files per answer, as SampleGate needs them to decide.

Answers are numbered in the order in which they are read. Checks of other answers are ignored.
Memory: about 40 bytes per answer, and a few hundred per distinct combination of checks.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import NOT_APPLIED, OFF_IN_PRESET, TABLES
from nexa_distill.errors import InputError
from nexa_distill.storage.answer_index import AnswerIndex
from nexa_distill.storage.tables import read_batches
from nexa_distill.text.hashing import Indexes

CHECKED = TABLES["rules_checks"]
T = TypeVar("T", bound=Hashable)


class AnswerChecks(NamedTuple):
    """The checks of one answer."""

    reasons: tuple[str, ...] = ()  # of those that did not pass, in their order
    scores: tuple[tuple[str, float], ...] = ()  # (check, value) per judge that gave one
    judged: frozenset[str] = frozenset()  # the judges' checks that were made

    def with_check(self, row: Mapping[str, Any], judges: Collection[str]) -> "AnswerChecks":
        """Add one row of contracts.CHECKS. A judge's score is not compared with a threshold."""
        name, reasons, scores = row["check"], self.reasons, self.scores
        if name in judges and row["ok"] is not False and row["value"] is not None:
            scores = (*(score for score in scores if score[0] != name), (name, row["value"]))
        elif name in judges or not row["ok"]:
            reasons = (*reasons, row["reason"] or "check_missing")
        return AnswerChecks(reasons, scores, self.judged | ({name} & set(judges)))


class CheckOutcome(NamedTuple):
    """The checks of an answer; `missing`: a required check was not made."""

    seen: AnswerChecks
    missing: bool


class CheckSummary:
    """The checks of each answer, and the counts of all checks.

    `required`: families or names; a family means each of its names that occurs in the files.
    `judges`: checks whose value is a judge's score.
    """

    def __init__(
        self, answers: AnswerIndex, paths: Sequence[Path], required: Sequence[str], judges: Collection[str]
    ) -> None:
        self._answers, self._judges = answers, judges
        # The checks of most answers are the same, so each distinct combination is stored once.
        self._seen, self._made = _Interner(AnswerChecks()), _Interner(frozenset[str]())
        self._seen_of = np.zeros(len(answers), np.uint32)
        self._made_of = np.zeros(len(answers), np.uint32)
        self._required, self._absent = set[str](), set(required)
        self._tally: dict[str, Counter[str]] = {}
        # By rule, the number of answers per language to which it was not applied.
        self.not_applied: dict[str, Counter[str]] = {}
        self._scores = Counter[float]()
        self.families: set[str] = set()
        if len({path.resolve() for path in paths}) < len(paths):
            # Rates would count some answers twice.
            raise InputError(f"--checks names a file twice: {', '.join(map(str, paths))}")
        for path in paths:
            for rows in read_batches(path, CHECKED):
                self._add_rows(rows, required)

    def _add_rows(self, rows: pa.Table, required: Sequence[str]) -> None:
        for name in rows["check"].unique().to_pylist():
            family = name.split(".", 1)[0]
            self.families.add(family)
            if covered := {name, family} & set(required):
                self._absent -= covered
                self._required.add(name)
        # Checks of answers that are not in the index have position -1.
        positions = self._answers.find_positions(rows)
        rows, positions = rows.filter(pa.array(positions >= 0)), positions[positions >= 0]
        checks = rows["check"].combine_chunks().dictionary_encode()
        codes = checks.indices.to_numpy()
        for code, name in enumerate(checks.dictionary.to_pylist()):
            if name in self._required:
                self._note_made(name, positions[codes == code])
            if name.startswith("exec."):
                self._count_execution(name, rows.filter(pa.array(codes == code)))
        not_applied = pc.fill_null(pc.equal(rows["reason"], NOT_APPLIED), False)
        self._count_not_applied(rows.filter(not_applied))
        passed = pc.or_(pc.fill_null(rows["ok"], False), not_applied)
        is_judge = pc.is_in(rows["check"], pa.array(self._judges, pa.string()))
        # Only failures and scores are read row by row; most checks pass.
        notable = pc.or_(pc.invert(passed), is_judge)
        self._note_results(rows.filter(notable), positions[notable.to_numpy()])

    def _count_not_applied(self, rows: pa.Table) -> None:
        is_off = pc.fill_null(pc.starts_with(rows["detail"].cast(pa.string()), OFF_IN_PRESET), False)
        rows = rows.filter(pc.invert(is_off))  # that is no lack of a list
        counts = rows.group_by(["check", "detail"]).aggregate([([], "count_all")])
        for row in counts.to_pylist():
            languages = self.not_applied.setdefault(row["check"], Counter())
            languages[row["detail"] or "und"] += row["count_all"]

    def _note_made(self, name: str, positions: Indexes) -> None:
        # One lookup per distinct set of checks instead of one per answer.
        before, place = np.unique(self._made_of[positions], return_inverse=True)
        after = [self._made(self._made.values[number] | {name}) for number in before.tolist()]
        self._made_of[positions] = np.array(after, np.uint32)[place]

    def _note_results(self, rows: pa.Table, positions: Indexes) -> None:
        read = rows.select(["check", "ok", "value", "reason"]).to_pylist()
        for row, position in zip(read, positions.tolist(), strict=True):
            seen = self._seen.values[self._seen_of[position]]
            self._seen_of[position] = self._seen(seen.with_check(row, self._judges))
            if row["check"] in self._judges and row["value"] is not None:
                self._scores[row["value"]] += 1

    def _count_execution(self, name: str, rows: pa.Table) -> None:
        tally = self._tally.setdefault(name, Counter())
        tally.update("passed" if ok else "failed" for ok in rows["ok"].to_pylist())
        if name != "exec.executes":
            return
        failed = rows.filter(pc.invert(pc.fill_null(rows["ok"], False)))
        self._tally.setdefault("errors", Counter()).update(
            reason or "check_missing" for reason in failed["reason"].to_pylist()
        )

    def distinct_outcomes(self) -> tuple[list[CheckOutcome], Indexes]:
        """(the distinct cases, the case number of each answer)."""
        # Both numbers in one integer, so that `unique` finds the distinct pairs.
        both = self._seen_of.astype(np.uint64) << np.uint64(32) | self._made_of
        codes, place = np.unique(both, return_inverse=True)
        # A required check that occurs in no file is missing for every answer.
        lacking = [bool(self._absent) or not self._required <= m for m in self._made.values]
        cases = [CheckOutcome(self._seen.values[code >> 32], lacking[code & 0xFFFFFFFF]) for code in codes.tolist()]
        return cases, place

    def measured_figures(self) -> dict[str, Any]:
        """Execution's shares of ok (null ones included) and errors, the judges' scores; None = not run."""
        return {
            "exec_pass_rate": self._pass_rate("exec.executes"),
            "gold_match_rate": self._pass_rate("exec.matches"),
            "judge_scores": self._judge_scores(),
            "exec_error_counts": dict(self._tally["errors"]) if "errors" in self._tally else None,
        }

    def _judge_scores(self) -> dict[str, float] | None:
        if not self._scores:
            return None
        mean = sum(score * count for score, count in self._scores.items()) / self._scores.total()
        return {"min": min(self._scores), "max": max(self._scores), "mean": mean}

    def _pass_rate(self, name: str) -> float | None:
        counts = self._tally.get(name)
        return counts["passed"] / counts.total() if counts else None


class _Interner(Generic[T]):
    """Stores each distinct value once; the number of a value is its index in `values`."""

    def __init__(self, first: T) -> None:
        self.values, self._numbers = [first], {first: 0}

    def __call__(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number
