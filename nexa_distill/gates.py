"""Run the stages of a session in order, and the repair loop.

Used by the scripts, `pipeline.DistillationPipeline` and the launcher: stages do not import each
other. A stage whose output is up to date does nothing, so the same call continues after any stop.
"""

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
from nexa_distill.annotation.decisions import load_decisions, record_decisions
from nexa_distill.deduplication.warnings import require_both_sides
from nexa_distill.raw_data.input_reading import describe_answers, settle_input
from nexa_distill.repair import report as repair_report
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.atomic import write_text
from nexa_distill.storage.manifests import refuse_lost_decisions, sealed_hash, valid_regenerations


class GateFiles:
    """The results of the gates for answers outside the storage, all in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checks, self.exec_checks = folder / "rules.parquet", folder / "exec.parquet"
        self.judge_checks, self.passed_rules = folder / "judge.parquet", folder / "passed_rules.parquet"
        self.kept, self.rejections = folder / "kept.parquet", folder / "rejections.parquet"

    def report_of(self, gate: str) -> Path:
        return self.folder / gate / "quality_report.json"


def run_data_gen(config: DistillConfig, *, dry_run: bool = False) -> None:
    """Raw rows to teacher answers, which the raw data itself may contain.

    `dry_run` makes the prompts and prints the requests and their cost.

    Raises InputError before any cost if a split is empty or the server does not serve the model.
    """
    config = settle_input(config)
    if line := describe_answers(config):
        print(line)
    config.refuse_models_not_served()
    canonicalize.run(config)
    dedup.run(config)
    if not dry_run:
        require_both_sides(config)
    collect_teacher.run(config, dry_run=dry_run)


def run_gates(config: DistillConfig) -> None:
    # From cheap to expensive: what one gate rejects, the next ones do not look at.
    filter_pairs.run(config)
    exec_gate.run(config)
    judge.run(config)
    person_checks.run(config)
    sample_gate.run(config)


def apply_decisions(config: DistillConfig) -> None:
    """Apply human decisions made since the gates ran: their checks, then SampleGate.

    Raises InputMissing (66) if the file with already applied decisions is missing.
    """
    if config.storage.path_of("annotations").exists():
        person_checks.run(config)
        sample_gate.run(config)
    else:
        refuse_lost_decisions(config.storage, to_sft.GATES)


def run_gates_on(config: DistillConfig, answers: Path, files: GateFiles) -> None:
    """Run all gates on other answers, which have no human decisions."""
    filter_pairs.run(
        config, src=[answers], dst=files.passed_rules, checks=files.checks, report=files.report_of("rules")
    )
    exec_gate.run(config, src=[files.passed_rules], checks=files.exec_checks, report=files.report_of("exec"))
    judge.run(
        config,
        src=files.passed_rules,
        execution=files.exec_checks,
        checks=files.judge_checks,
        report=files.report_of("judge"),
    )
    sample_gate.run(
        config,
        src=[answers],
        checks=[files.checks, files.exec_checks, files.judge_checks],
        dst=files.kept,
        rejections=files.rejections,
        report=files.folder / "sample_gate" / "gate_report.json",
    )


def copy_report(config: DistillConfig, path: Path) -> None:
    """Copy SampleGate's report to `path` (JSON), with .md and .html beside it."""
    report = sample_gate.report_path(config)
    for ending in (".json", ".md", ".html"):
        write_text(path.with_suffix(ending), report.with_suffix(ending).read_text(encoding="utf-8"))


def estimate_repairs(config: DistillConfig, annotations: Path | None = None) -> None:
    """Print the requests of the next repair round and their cost. Records and sends nothing.

    Raises InputMissing (66) if the gates have not run on the current answers.
    """
    regenerate_bad.run(config, annotations=annotations, dry_run=True)


def run_repair_loop(config: DistillConfig, annotations: Path | None = None) -> None:
    """Repair rejected answers and run the gates until there is nothing to repair, then report.

    `annotations`: a file of human decisions to record first.
    """
    if annotations:
        decisions = load_decisions(annotations, config.storage.path_of("rejections"))
        print(f"repair: recorded {record_decisions(config, decisions)} new decisions of {annotations}")
    run_gates(config)
    # It ends: a round is planned only after the gates have seen the one before, and the number of
    # rounds is limited.
    while _run_repair_round(config):
        run_gates(config)
    repair_report.write_report(config)


def _run_repair_round(config: DistillConfig) -> bool:
    before = _repair_hashes(config.storage)
    regenerate_bad.run(config)
    return before != _repair_hashes(config.storage)


def _repair_hashes(storage: Storage) -> list[str]:
    return [sealed_hash(path, storage) for path in valid_regenerations(storage)]
