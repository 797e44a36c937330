"""Plan the repairs: which samples to ask again, in which round, for which reasons.

Round r is attempt `collection.samples - 1 + r`. It contains the samples of which no earlier answer
passes and whose last answer has a repairable reason. The plan of a round depends only on the gate
results of earlier rounds, which later rounds do not change: planning again after the gates gives
the same plan, so no repair is requested twice.
"""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.annotation.annotations import Annotation, latest_decisions
from nexa_distill.annotation.decisions import FIRST_EDIT_ATTEMPT, Edit, Key, ValidDecisions, load_valid_decisions
from nexa_distill.contracts import CHECK_TABLES, REASONS, SCORE_REASONS, TABLES
from nexa_distill.errors import InputMissing
from nexa_distill.repair.prompts import JUDGE_REASONS, Fault
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.manifests import answers_file, load_manifest, sealed_hash
from nexa_distill.storage.tables import read_batches, read_values
from nexa_distill.text.hashing import compact_json, sha256_text

REJECTED_BY_PERSON = "rejected_by_person"
ReasonsByAttempt = dict[str, dict[int, list[str]]]  # sample -> attempt -> reasons; none = it passes


class PlannedRepair(NamedTuple):
    """One repair. `of`: the rejected attempt; `said`: comments of annotators on it."""

    sample_id: str
    round: int
    of: int
    reasons: tuple[str, ...]
    said: str


@dataclass(frozen=True)
class Plan:
    """The repairs to request from models, and the edits of annotators."""

    wanted: list[PlannedRepair]
    edits: list[tuple[str, Edit]]

    @property
    def plan_digest(self) -> str:
        """Hash of the plan, independent of the time of decisions and their order in the log."""
        edits = [[s, e.attempt, e.of, e.by.annotator, e.by.edited_output] for s, e in self.edits]
        return sha256_text(compact_json([sorted(self.wanted), sorted(edits, key=compact_json)]))

    def by_round(self) -> dict[int, dict[str, PlannedRepair]]:
        rounds: dict[int, dict[str, PlannedRepair]] = {}
        for repair in self.wanted:
            rounds.setdefault(repair.round, {})[repair.sample_id] = repair
        return rounds


def make_plan(config: DistillConfig, src: Path | None = None, unrecorded: Iterable[Annotation] = ()) -> Plan:
    """Plan from the rejections (`src` or storage's), the kept answers and the human decisions.

    `unrecorded`: decisions to add to those of the log.
    Raises InputMissing (66) if the gates have not run on the current answers.
    """
    src = src or config.storage.path_of("rejections")
    # From unfinished gate results, repairs would be requested that nobody needs.
    for path in (src, config.storage.path_of("filtered_dataset")):
        sealed_hash(path, config.storage)
    _refuse_other_answers(src, config.storage)
    people = load_valid_decisions(config, unrecorded)
    edits = [(sample, edit) for sample, of_sample in people.edits.items() for edit in of_sample]
    # The answers are from a file, perhaps written by people: no model replaces them.
    if config.answers.path or answers_file(config.storage):
        return Plan([], edits)
    rounds = _RoundPlanner(config, people, _load_reasons(config.storage, src, {key[0] for key in people.by}))
    return Plan(list(rounds.plan_repairs()), edits)


def plan_from_decisions(config: DistillConfig, decisions: Iterable[Annotation]) -> Plan:
    """One repair of each answer that these decisions reject, whatever the gates decided."""
    decided = ValidDecisions(latest_decisions(decisions))
    keys = [key for key in decided.by if decided.is_accepted(key) is False]
    src, against = config.storage.path_of("rejections"), ReasonsByAttempt()
    # Without results of the gates, the model is told the decisions alone.
    if src.exists() and config.storage.path_of("filtered_dataset").exists():
        against = _load_reasons(config.storage, src, {sample for sample, _ in keys})
    wanted = dict[str, PlannedRepair]()
    for sample, attempt in sorted(keys):
        # An edit has no round of its own: its repair is the first.
        before = 0 if attempt >= FIRST_EDIT_ATTEMPT else max(0, attempt - config.collection.samples + 1)
        reasons = _repairable_reasons(against.get(sample, {}).get(attempt, []))
        told = tuple(dict.fromkeys([*reasons, REJECTED_BY_PERSON]))
        wanted[sample] = PlannedRepair(sample, before + 1, attempt, told, decided.comment_text((sample, attempt)))
    return Plan(list(wanted.values()), [])


def _refuse_other_answers(src: Path, storage: Storage) -> None:
    answers = storage.path_of("collected_dataset")
    gated, current = load_manifest(src, storage), load_manifest(answers, storage)
    if gated and current and current["sha256"] not in [i["sha256"] for i in gated["inputs"]]:
        raise InputMissing(
            f"{src}: was not made from the answers in {answers}; run "
            "`python scripts/python/data_processing/run_filtering.py`"
        )


def _load_reasons(storage: Storage, src: Path, decided: Collection[str]) -> ReasonsByAttempt:
    """The reasons against each answer, for samples with a rejected or decided answer."""
    by_sample: ReasonsByAttempt = defaultdict(dict)
    for sample, attempt, reasons in read_values(src, TABLES["rejections"], "sample_id", "attempt", "rejection_reasons"):
        by_sample[sample][attempt] = reasons
    kept = storage.path_of("filtered_dataset")
    for sample, attempt in read_values(kept, TABLES["filtered_dataset"], "sample_id", "attempt"):
        if sample in by_sample or sample in decided:
            by_sample[sample][attempt] = []
    return by_sample


def _repairable_reasons(reasons: Iterable[str]) -> list[str]:
    return [reason for reason in reasons if reason in REASONS and REASONS[reason].instruction]


class _RoundPlanner:
    def __init__(self, config: DistillConfig, people: ValidDecisions, against: ReasonsByAttempt) -> None:
        self.rounds, self.samples = config.regeneration.rounds, config.collection.samples
        self.repairs_cut_reasoning = config.regeneration.reasoning_max_tokens is not None
        self.people, self.against = people, against
        self.unanswered = set(_load_unanswered(config.storage.path_of("regen_dataset")))
        for (sample, attempt), _ in people.by.items():
            self._apply_decision(sample, attempt)

    def _apply_decision(self, sample: str, attempt: int) -> None:
        # A decision counts at once, before the gates run again.
        accepted = self.people.is_accepted((sample, attempt))
        if accepted is not True and attempt in self.against[sample]:
            reason = REJECTED_BY_PERSON if accepted is False else "annotators_disagree"
            reasons = self.against[sample][attempt]
            self.against[sample][attempt] = list(dict.fromkeys([*reasons, reason]))

    def _is_repairable(self, reasons: list[str]) -> bool:
        # With the same token limit, the reasoning would be cut again.
        if "reasoning_cut" in reasons and not self.repairs_cut_reasoning and REJECTED_BY_PERSON not in reasons:
            return False
        return bool(_repairable_reasons(reasons))

    def plan_repairs(self) -> Iterator[PlannedRepair]:
        samples: Iterable[str] = self.against
        for round_ in itertools.count(1):
            repairs = [r for sample in samples if (r := self.plan_repair(sample, round_))]
            yield from repairs
            # A sample without a repair in this round has none in the next.
            samples = [repair.sample_id for repair in repairs]
            if not samples:
                return

    def plan_repair(self, sample: str, round_: int) -> PlannedRepair | None:
        answers, edits = self.against[sample], self.people.edits.get(sample, [])
        before = self.samples - 2 + round_
        # The gates have not seen the answer of the round before: the plan ends there.
        if round_ > 1 and before not in answers and (sample, before) not in self.unanswered:
            return None
        # An edit belongs to the round of the answer that it replaces.
        by_attempt = {edit.attempt: edit for edit in edits}
        earlier = {a: n for a in answers if (n := _round_of_attempt(a, self.samples, by_attempt)) < round_}
        pending = (e for e in edits if _round_of_attempt(e.attempt, self.samples, by_attempt) < round_)
        if not earlier or any(edit.attempt not in answers for edit in pending):
            return None
        # An earlier answer passes, whether it is kept or a better one is.
        if any(set(answers[a]) <= {"better_attempt_kept"} for a in earlier):
            return None
        last = [a for a in earlier if earlier[a] == max(earlier.values())]
        # Beyond the configured rounds only an annotator's `regenerate` asks again.
        if round_ > self.rounds and not any(self.people.should_regenerate((sample, a)) for a in last):
            return None
        mendable = [a for a in sorted(last) if self._is_repairable(answers[a])]
        if not mendable:
            return None
        of = mendable[-1]
        reasons = tuple(_repairable_reasons(answers[of]))
        return PlannedRepair(sample, round_, of, reasons, self.people.comment_text((sample, of)))


def _round_of_attempt(attempt: int, samples: int, edits: dict[int, Edit]) -> int:
    """The round of an attempt; an edit that no longer applies sorts after all rounds."""
    while attempt >= FIRST_EDIT_ATTEMPT:
        if attempt not in edits:
            return attempt
        attempt = edits[attempt].of
    return max(0, attempt - samples + 1)


def unanswered_path(dst: Path) -> Path:
    return dst.with_name(f"{dst.stem}.unanswered.parquet")


def _load_unanswered(repairs: Path) -> Iterator[Key]:
    path, columns = unanswered_path(repairs), ("sample_id", "attempt", "rejection_reason")
    # An unreadable answer may still become one: the next run reads it again.
    for sample, attempt, reason in read_values(path, TABLES["unanswered"], *columns) if path.exists() else ():
        if reason != "unreadable_answer":
            yield sample, attempt


def load_faults(config: DistillConfig, wanted: Iterable[PlannedRepair]) -> dict[Key, list[Fault]]:
    by_key = {(repair.sample_id, repair.of): repair for repair in wanted}
    details: dict[tuple[str, int, str], str] = {}
    for key in CHECK_TABLES:
        path = config.storage.path_of(key)
        if path.exists():
            details |= {(*at, reason): text for at, reason, text in _load_evidence(path, by_key.keys())}
    return {
        key: [
            Fault(r, repair.said or None if r == REJECTED_BY_PERSON else details.get((*key, r))) for r in repair.reasons
        ]
        for key, repair in by_key.items()
    }


def _load_evidence(path: Path, keys: Collection[Key]) -> Iterator[tuple[Key, str, str]]:
    columns = ["sample_id", "attempt", "check", "ok", "reason", "detail"]
    ids = pa.array(sorted({sample for sample, _ in keys}), pa.string())
    # A judge's score has no reason in the checks: SampleGate gives it one, by a threshold.
    names = pa.array(list(SCORE_REASONS))
    for rows in read_batches(path, TABLES["rules_checks"], columns=columns):
        failed = pc.or_(pc.invert(pc.fill_null(rows["ok"], False)), pc.is_in(rows["check"], names))
        has_detail = pc.and_(pc.is_in(rows["sample_id"], ids), rows["detail"].is_valid())
        for row in rows.filter(pc.and_(failed, has_detail)).to_pylist():
            at, reason = (row["sample_id"], row["attempt"]), SCORE_REASONS.get(row["check"], row["reason"])
            # The row of all judges has the evidence of the strictest one.
            by_one_judge = reason in JUDGE_REASONS and row["check"].count(".") > 1
            if at in keys and reason and not by_one_judge:
                yield at, reason, row["detail"]


def load_rejected_texts(config: DistillConfig, wanted: Iterable[PlannedRepair]) -> dict[Key, str]:
    length, texts = config.regeneration.answer_chars, dict[Key, str]()
    keys = {(repair.sample_id, repair.of) for repair in wanted}
    if not length:
        return texts
    columns = ("sample_id", "attempt", "teacher_output")
    for key in ("rejections", "filtered_dataset"):
        path = config.storage.path_of(key)
        for sample, attempt, text in read_values(path, TABLES[key], *columns) if path.exists() else ():
            if (sample, attempt) in keys and text:
                texts[sample, attempt] = text[:length]
    return texts
