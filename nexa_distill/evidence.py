"""What the checks files say about each answer, in the form in which SampleGate decides.

Reads tables of contracts.CHECKS, a batch at a time. Rows of checks that passed are counted, not
kept, so memory grows with the answers and with what failed.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_distill.handoff import read_batches

CHECKED = TABLES["rules_checks"]
Key = tuple[str, int]  # sample_id, attempt


class Evidence:
    """Checks that did not pass and scores of judges (`notable`), and which were made at all.

    `required`: families or names; a family means each of its names that occurs in the files.
    `judged`: checks whose value is a score of a judge.
    """

    def __init__(
        self, paths: Sequence[Path], required: Sequence[str], judged: Collection[str]
    ) -> None:
        self.notable: dict[Key, list[dict[str, Any]]] = {}
        self.made: Counter[Key] = Counter()
        self.required: set[str] = set()
        self._judged = judged
        self._tally: dict[str, Counter[str]] = {}
        self._scores: list[float] = []
        self._absent = set(required)
        self.families: set[str] = set()
        if len({path.resolve() for path in paths}) < len(paths):
            # Made checks are counted: a second look at one file would stand in for a missing one.
            raise InputError(f"--checks names a file twice: {', '.join(map(str, paths))}")
        for path in paths:
            for rows in read_batches(path, CHECKED):
                self._add(rows, required)

    def _add(self, rows: pa.Table, required: Sequence[str]) -> None:
        names = rows["check"].unique().to_pylist()
        for name in names:
            family = name.split(".", 1)[0]
            self.families.add(family)
            covered = {name, family} & set(required)
            self._absent -= covered
            if covered:
                self.required.add(name)
        wanted = rows.filter(pc.is_in(rows["check"], pa.array(self.required, pa.string())))
        counted = wanted.group_by(["sample_id", "attempt"]).aggregate([([], "count_all")])
        for sample, attempt, count in zip(*(c.to_pylist() for c in counted.columns), strict=True):
            self.made[sample, attempt] += count
        for name in names:
            if name.startswith("exec."):
                self._count_execution(name, rows.filter(pc.equal(rows["check"], name)))
        passed = pc.fill_null(rows["ok"], False)
        judged = pc.is_in(rows["check"], pa.array(self._judged, pa.string()))
        for row in rows.filter(pc.or_(pc.invert(passed), judged)).to_pylist():
            self.notable.setdefault((row["sample_id"], row["attempt"]), []).append(row)
            if row["check"] in self._judged and row["value"] is not None:
                self._scores.append(row["value"])

    def _count_execution(self, name: str, rows: pa.Table) -> None:
        tally = self._tally.setdefault(name, Counter())
        tally.update("passed" if ok else "failed" for ok in rows["ok"].to_pylist())
        if name != "exec.executes":
            return
        failed = rows.filter(pc.invert(pc.fill_null(rows["ok"], False)))
        self._tally.setdefault("errors", Counter()).update(
            reason or "check_missing" for reason in failed["reason"].to_pylist()
        )

    def missing(self, key: Key) -> bool:
        """Whether a required check of this answer was not made."""
        return bool(self._absent) or self.made[key] < len(self.required)

    def exec_errors(self) -> dict[str, int] | None:
        """Failed executions by reason; None when nothing was executed."""
        return dict(self._tally["errors"]) if "errors" in self._tally else None

    def judge_scores(self) -> dict[str, float] | None:
        """Over all scores of judged checks, 0..1; None when nothing was judged."""
        if not self._scores:
            return None
        low, high, mean = min(self._scores), max(self._scores), fmean(self._scores)
        return {"min": low, "max": high, "mean": mean}

    def pass_rate(self, name: str) -> float | None:
        """Share of ok among the checks of this name, unmade ones included; None = not run."""
        counts = self._tally.get(name)
        return counts["passed"] / counts.total() if counts else None
