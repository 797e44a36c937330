"""What the gates said of one model's answers to the held-out prompts, read from their files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexa_distill import exec_gate
from nexa_distill.contracts import TABLES, Table
from nexa_distill.errors import InputError
from nexa_distill.gates import GateFiles
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.manifests import load_manifest
from nexa_distill.storage.tables import read_table
from nexa_train.evaluation.metrics import ANSWERS, EXECUTED, Exam

Json = dict[str, Any]
JUDGED = ("judge.factuality", "judge.reasoning")


def gate_files(storage: Storage, model: str) -> GateFiles:
    """Where the gates' results about `teacher`, `before` or `after` are."""
    folder = storage.path("evaluation") / model
    return GateFiles(
        checks=folder / "rules.parquet",
        exec_checks=folder / "exec.parquet",
        passed_rules=folder / "passed_rules.parquet",
        judge_checks=folder / "judge.parquet",
        kept=folder / "kept.parquet",
        rejections=folder / "rejections.parquet",
        rules_report=folder / "rules" / "quality_report.json",
        exec_report=folder / "exec" / "quality_report.json",
        judge_report=folder / "judge" / "quality_report.json",
        gate_report=folder / "sample_gate" / "gate_report.json",
    )


def read_exam(config: DistillConfig, name: str, prompts: Sequence[Json], loss: Json | None) -> Exam:
    """The exam of `teacher`, `before` or `after`. Raises InputError for answers not judged yet."""
    storage = config.storage
    wanted = {row["sample_id"] for row in prompts}
    files, key = gate_files(storage, name), ANSWERS[name]

    def rows(path: Path, table: Table) -> list[Json]:
        found: list[Json] = read_table(path, table).to_pylist()
        return [row for row in found if row["sample_id"] in wanted and row["attempt"] == 0]

    answers = {row["sample_id"]: row for row in rows(storage.path(key), TABLES[key])}
    reasons: dict[str, list[str]] = {
        row["sample_id"]: [] for row in rows(files.kept, TABLES["filtered_dataset"])
    }
    for row in rows(files.rejections, TABLES["rejections"]):
        reasons[row["sample_id"]] = [
            reason for reason in row["rejection_reasons"] if reason != "better_attempt_kept"
        ]  # an answer that passes has passed, kept or not
    if reasons.keys() != answers.keys():
        raise InputError(
            f"{files.kept} and {files.rejections} judge {len(reasons)} of {len(answers)} answers; "
            "run `python scripts/python/evaluation/run_evaluation.py`"
        )
    judged = rows(files.judge_checks, TABLES["judge_checks"]) if files.judge_checks.exists() else []
    scores = {
        check: [
            row["value"] for row in judged if row["check"] == check and row["value"] is not None
        ]
        for check in JUDGED
    }
    ran = rows(files.exec_checks, TABLES["exec_checks"]) if files.exec_checks.exists() else []
    return Exam(
        answers, reasons, loss, {name: found for name, found in scores.items() if found},
        _executed(config, [row for row in prompts if row["sample_id"] in answers], ran),
    )  # fmt: skip


def _executed(
    config: DistillConfig, prompts: Sequence[Json], checks: Sequence[Json]
) -> dict[str, dict[str, bool | None]]:
    """By sample the checks that execution would make of an answer to it, null if it did not.

    A query that matches on this database and not on a changed copy of it does not match.
    """
    kinds = {task: kind for task, kind in config.execution.tasks.items() if kind}
    made = {(row["sample_id"], row["check"]): row["ok"] for row in checks}
    found: dict[str, dict[str, bool | None]] = {}
    for row in prompts:
        key, kind = row["sample_id"], kinds.get(row["template_name"])
        if kind is None:
            continue
        known = exec_gate.KNOWN.get(kind)
        comparable = row[known] is not None if known else (key, "exec.matches") in made
        names = EXECUTED if comparable else EXECUTED[:1]
        found[key] = {name: made.get((key, name)) for name in names}
        if made.get((key, "exec.matches_perturbed"), True) is not True:
            found[key]["exec.matches"] = made[key, "exec.matches_perturbed"]
    return found


def gates_settings(storage: Storage) -> list[str | None]:
    """What decided the verdicts on the trained student: the settings' hash of each gate."""
    files = gate_files(storage, "after")
    gates = (files.checks, files.exec_checks, files.judge_checks, files.kept)
    manifests = [load_manifest(path, storage) for path in gates]
    return [manifest["config_sha256"] if manifest else None for manifest in manifests]
