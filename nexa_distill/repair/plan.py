"""What is asked again: of which samples, in which round, and for what reason.

Round r is attempt `collection.samples - 1 + r`. It asks about the samples of which no answer of an
earlier round passes and against whose last answer there is more than doubt. What is planned for a
round is decided by what the gates said of the rounds before it, which later rounds do not change:
so the same plan comes out again after its answers have been through the gates, and what has been
asked once is up to date. A round whose answers no gate has seen yet ends the plan.

Rounds beyond `regeneration.rounds` are planned only where a person says `regenerate` about the
answer before. An edit counts in the round of the answer that it replaces: where it passes, nothing
more is asked, and until the gates have seen it, nothing is asked either.
"""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.annotation.annotations import Annotation
from nexa_distill.annotation.decisions import EDITS_FROM, Edit, Key, Standing, standing
from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputMissing
from nexa_distill.repair.prompts import INSTRUCTIONS, JUDGED, Fault
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.manifests import load_manifest, sealed_hash
from nexa_distill.storage.tables import read_batches
from nexa_distill.text.hashing import compact_json, sha256_text

CHECK_FILES = ("rules_checks", "exec_checks", "judge_checks")
PERSON = "rejected_by_person"
Against = dict[str, dict[int, list[str]]]  # sample -> attempt -> reasons; none = it passes


class Wanted(NamedTuple):
    """One repair. `of`: the rejected attempt that the reasons are about; `said`: by people."""

    sample_id: str
    round: int
    of: int
    reasons: tuple[str, ...]
    said: str


@dataclass(frozen=True)
class Plan:
    """What models are asked, and what people wrote themselves."""

    wanted: list[Wanted]
    edits: list[tuple[str, Edit]]

    @property
    def digest(self) -> str:
        """What makes two plans the same: not when a decision was made, nor by which log line."""
        edits = [[s, e.attempt, e.of, e.by.annotator, e.by.edited_output] for s, e in self.edits]
        return sha256_text(compact_json([sorted(self.wanted), sorted(edits, key=compact_json)]))

    def by_round(self) -> dict[int, dict[str, Wanted]]:
        """Round -> sample -> its repair."""
        found: dict[int, dict[str, Wanted]] = {}
        for one in self.wanted:
            found.setdefault(one.round, {})[one.sample_id] = one
        return found


def make_plan(config: DistillConfig, src: Path | None = None) -> Plan:
    """From the rejections (`src` or storage's), the kept answers and the decisions of people.

    Raises InputMissing (66) when the gates have not judged the answers that are there now.
    """
    src = src or config.storage.path("rejections")
    for path in (src, config.storage.path("filtered_dataset")):
        sealed_hash(path, config.storage)
    _refuse_other_answers(src, config.storage)
    people = standing(config)
    edits = [(sample, edit) for sample, found in people.edits.items() for edit in found]
    if config.answers.path:
        return Plan([], edits)
    rounds = _Rounds(config, people, _against(config.storage, src, {key[0] for key in people.by}))
    return Plan(list(rounds.plan()), edits)


def plan_of(config: DistillConfig, given: Iterable[Annotation]) -> Plan:
    """One repair of each answer that these decisions are against, whatever the gates said."""
    decided = Standing()
    for one in given:
        decided.by.setdefault(one.key, []).append(one)
    keys = [key for key in decided.by if decided.accepted(key) is False]
    src, against = config.storage.path("rejections"), Against()
    if src.exists() and config.storage.path("filtered_dataset").exists():
        against = _against(config.storage, src, {sample for sample, _ in keys})
    wanted = dict[str, Wanted]()
    for sample, attempt in sorted(keys):
        before = 0 if attempt >= EDITS_FROM else max(0, attempt - config.collection.samples + 1)
        reasons = _mendable(against.get(sample, {}).get(attempt, []))
        told = tuple(dict.fromkeys([*reasons, PERSON]))
        wanted[sample] = Wanted(sample, before + 1, attempt, told, decided.words((sample, attempt)))
    return Plan(list(wanted.values()), [])


def _refuse_other_answers(src: Path, storage: Storage) -> None:
    answers = storage.path("collected_dataset")
    made, now = load_manifest(src, storage), load_manifest(answers, storage)
    if made and now and now["sha256"] not in [item["sha256"] for item in made["inputs"]]:
        raise InputMissing(
            f"{src}: is not about the answers in {answers}; run "
            "`python scripts/python/data_processing/run_filtering.py`"
        )


def _against(storage: Storage, src: Path, decided: Collection[str]) -> Against:
    """Of the samples with a rejected or decided answer: the reasons against each answer."""
    found: Against = defaultdict(dict)
    columns = ["sample_id", "attempt", "rejection_reasons"]
    for batch in read_batches(src, TABLES["rejections"], columns=columns):
        for sample, attempt, reasons in zip(*batch.to_pydict().values(), strict=True):
            found[sample][attempt] = reasons
    kept = TABLES["filtered_dataset"]
    for batch in read_batches(
        storage.path("filtered_dataset"), kept, columns=["sample_id", "attempt"]
    ):
        for sample, attempt in zip(*batch.to_pydict().values(), strict=True):
            if sample in found or sample in decided:
                found[sample][attempt] = []
    return found


def _mendable(reasons: Iterable[str]) -> list[str]:
    return [reason for reason in reasons if reason in INSTRUCTIONS]


class _Rounds:
    """Plans round after round."""

    def __init__(self, config: DistillConfig, people: Standing, against: Against) -> None:
        self.rounds, self.samples = config.regeneration.rounds, config.collection.samples
        self.repairs_cut_reasoning = config.regeneration.reasoning_max_tokens is not None
        self.people, self.against = people, against
        self.unanswered = set(_unanswered(config.storage.path("regen_dataset")))
        for (sample, attempt), _ in people.by.items():
            self._decide(sample, attempt)

    def _decide(self, sample: str, attempt: int) -> None:
        """A decision counts from when it is made, also before the gates are run again."""
        accepted = self.people.accepted((sample, attempt))
        if accepted is not True and attempt in self.against[sample]:
            reason = PERSON if accepted is False else "annotators_disagree"
            found = self.against[sample][attempt]
            self.against[sample][attempt] = list(dict.fromkeys([*found, reason]))

    def _is_mendable(self, reasons: list[str]) -> bool:
        """With the same limit, an answer that its reasoning cut would be cut again."""
        if "reasoning_cut" in reasons and not self.repairs_cut_reasoning and PERSON not in reasons:
            return False
        return bool(_mendable(reasons))

    def plan(self) -> Iterator[Wanted]:
        samples: Iterable[str] = self.against
        for round_ in itertools.count(1):
            found = [one for sample in samples if (one := self.wanted(sample, round_))]
            yield from found
            samples = [one.sample_id for one in found]
            if not samples:
                return

    def wanted(self, sample: str, round_: int) -> Wanted | None:
        """The sample's repair of this round, if there is to be one."""
        answers, edits = self.against[sample], self.people.edits.get(sample, [])
        before = self.samples - 2 + round_
        if round_ > 1 and before not in answers and (sample, before) not in self.unanswered:
            return None
        places = {edit.attempt: edit for edit in edits}
        earlier = {a: n for a in answers if (n := _round(a, self.samples, places)) < round_}
        pending = (e for e in edits if _round(e.attempt, self.samples, places) < round_)
        if not earlier or any(edit.attempt not in answers for edit in pending):
            return None
        if any(set(answers[a]) <= {"better_attempt_kept"} for a in earlier):
            return None
        last = [a for a in earlier if earlier[a] == max(earlier.values())]
        if round_ > self.rounds and not any(self.people.asked_again((sample, a)) for a in last):
            return None
        mendable = [a for a in sorted(last) if self._is_mendable(answers[a])]
        if not mendable:
            return None
        of = mendable[-1]
        reasons = tuple(_mendable(answers[of]))
        return Wanted(sample, round_, of, reasons, self.people.words((sample, of)))


def _round(attempt: int, samples: int, edits: dict[int, Edit]) -> int:
    """The round of an attempt; an edit that stands no more has none, and comes after all."""
    while attempt >= EDITS_FROM:
        if attempt not in edits:
            return attempt
        attempt = edits[attempt].of
    return max(0, attempt - samples + 1)


def unanswered_path(dst: Path) -> Path:
    """Beside the repairs: what was asked and brought no answer."""
    return dst.with_name(f"{dst.stem}.unanswered.parquet")


def _unanswered(repairs: Path) -> Iterator[Key]:
    """Repairs that brought no answer; one that could not be read may still be one."""
    path, columns = unanswered_path(repairs), ["sample_id", "attempt", "rejection_reason"]
    if path.exists():
        for batch in read_batches(path, TABLES["unanswered"], columns=columns):
            for sample, attempt, reason in zip(*batch.to_pydict().values(), strict=True):
                if reason != "unreadable_answer":
                    yield sample, attempt


def faults_of(config: DistillConfig, wanted: Iterable[Wanted]) -> dict[Key, list[Fault]]:
    """Rejected answer -> its reasons, each with the evidence of the check that gave it."""
    by_key = {(one.sample_id, one.of): one for one in wanted}
    details: dict[tuple[str, int, str], str] = {}
    for key in CHECK_FILES:
        path = config.storage.path(key)
        if path.exists():
            details |= {(*at, reason): text for at, reason, text in _details(path, by_key.keys())}
    return {
        key: [
            Fault(r, one.said or None if r == PERSON else details.get((*key, r)))
            for r in one.reasons
        ]
        for key, one in by_key.items()
    }


def _details(path: Path, keys: Collection[Key]) -> Iterator[tuple[Key, str, str]]:
    """(answer, reason, evidence) of what was found against these answers.

    A score of a judge has no reason of its own: SampleGate gives it one, by a threshold.
    """
    columns = ["sample_id", "attempt", "check", "ok", "reason", "detail"]
    ids = pa.array(sorted({sample for sample, _ in keys}), pa.string())
    scores = {"judge.factuality": "low_factuality", "judge.reasoning": "low_reasoning"}
    names = pa.array(list(scores))
    for rows in read_batches(path, TABLES["rules_checks"], columns=columns):
        failed = pc.or_(pc.invert(pc.fill_null(rows["ok"], False)), pc.is_in(rows["check"], names))
        wanted = pc.and_(pc.is_in(rows["sample_id"], ids), rows["detail"].is_valid())
        for row in rows.filter(pc.and_(failed, wanted)).to_pylist():
            at, reason = (row["sample_id"], row["attempt"]), scores.get(row["check"], row["reason"])
            by_one_judge = reason in JUDGED and row["check"].count(".") > 1
            if at in keys and reason and not by_one_judge:
                yield at, reason, row["detail"]


def texts_of(config: DistillConfig, wanted: Iterable[Wanted]) -> dict[Key, str]:
    """Rejected answer -> its start, `regeneration.answer_chars` long."""
    most, found = config.regeneration.answer_chars, dict[Key, str]()
    keys = {(one.sample_id, one.of) for one in wanted}
    if not most:
        return found
    columns = ["sample_id", "attempt", "teacher_output"]
    for key in ("rejections", "filtered_dataset"):
        path = config.storage.path(key)
        for rows in read_batches(path, TABLES[key], columns=columns) if path.exists() else ():
            for sample, attempt, text in zip(*rows.to_pydict().values(), strict=True):
                if (sample, attempt) in keys and text:
                    found[sample, attempt] = text[:most]
    return found
