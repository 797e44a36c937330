"""The stages of a session in their order, and the loop of repair: the one list that scripts,
`pipeline.DistillationPipeline` and the launcher run.

Stages do not import each other; this composes them. Each does nothing when its output is up to
date, so the same call continues after any stop.
"""

from dataclasses import dataclass
from pathlib import Path

from nexa_distill import (
    canonicalize,
    collect_teacher,
    dedup,
    exec_gate,
    filter_pairs,
    judge,
    person_checks,
    regenerate_bad,
    sample_gate,
    to_sft,
)
from nexa_distill.annotation.decisions import decisions_of, record
from nexa_distill.deduplication.warnings import require_both_sides
from nexa_distill.repair import report as repair_report
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.manifests import refuse_lost_decisions, repairs, sealed_hash


@dataclass(frozen=True)
class GateFiles:
    """Where the results about some other answers go; each is written by the gate it is named by."""

    checks: Path
    exec_checks: Path
    passed_rules: Path
    judge_checks: Path
    kept: Path
    rejections: Path
    rules_report: Path
    exec_report: Path
    judge_report: Path
    gate_report: Path


def collect(config: DistillConfig) -> None:
    """Raw rows to teacher answers. Raises InputError before anything is paid where a side of the
    split is empty or the teacher is a model that its server has not.
    """
    config.refuse_models_not_served()
    canonicalize.run(config)
    dedup.run(config)
    require_both_sides(config)
    collect_teacher.run(config)


def pass_gates(config: DistillConfig) -> None:
    """The storage's answers and repairs: rules, execution, judges, people, SampleGate."""
    filter_pairs.run(config)
    exec_gate.run(config)
    judge.run(config)
    person_checks.run(config)
    sample_gate.run(config)


def apply_decisions(config: DistillConfig) -> None:
    """What annotators decided since the gates ran: their checks, and SampleGate once more.

    Raises InputMissing (66) when the file of decisions that were applied is gone.
    """
    if config.storage.path("annotations").exists():
        person_checks.run(config)
        sample_gate.run(config)
    else:
        refuse_lost_decisions(config.storage, to_sft.GATES)


def examine(config: DistillConfig, answers: Path, files: GateFiles) -> None:
    """The same of other answers, on which no person has decided."""
    filter_pairs.run(
        config,
        src=[answers],
        dst=files.passed_rules,
        checks=files.checks,
        report=files.rules_report,
    )
    exec_gate.run(
        config, src=[files.passed_rules], checks=files.exec_checks, report=files.exec_report
    )
    judge.run(
        config,
        src=files.passed_rules,
        execution=files.exec_checks,
        checks=files.judge_checks,
        report=files.judge_report,
    )
    sample_gate.run(
        config,
        src=[answers],
        checks=[files.checks, files.exec_checks, files.judge_checks],
        dst=files.kept,
        rejections=files.rejections,
        report=files.gate_report,
    )


def repair(config: DistillConfig, annotations: Path | None = None) -> None:
    """Ask again and pass the gates until there is nothing new to ask, then report.

    `annotations`: decisions of people to be recorded first. It ends: a round is asked only after
    the one before it was judged, and rounds are bounded.
    """
    if annotations:
        given = decisions_of(annotations, config.storage.path("rejections"))
        print(f"repair: {record(config, given)} new decisions of {annotations} recorded")
    pass_gates(config)
    while _asked_something(config):
        pass_gates(config)
    repair_report.write(config)


def _asked_something(config: DistillConfig) -> bool:
    before = _repaired(config.storage)
    regenerate_bad.run(config)
    return before != _repaired(config.storage)


def _repaired(storage: Storage) -> list[str]:
    """The hash of the repairs that count now; the same bytes may be repairs of other answers."""
    return [sealed_hash(path, storage) for path in repairs(storage)]
