"""Load the gate results of one model's held-out answers."""

from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path

from nexa_distill import exec_gate
from nexa_distill.contracts import SCORE_REASONS, TABLES
from nexa_distill.errors import InputError
from nexa_distill.execution.sql_text import is_select
from nexa_distill.gates import GateFiles
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.atomic import Json
from nexa_distill.storage.manifests import load_manifest
from nexa_distill.storage.tables import read_table
from nexa_train.evaluation.metrics import ANSWER_TABLES, HeldOutResults


def gate_files(storage: Storage, model: str) -> GateFiles:
    """The files of the gate results of `teacher`, `before` or `after`."""
    return GateFiles(storage.path_of("evaluation") / model)


def load_results(config: DistillConfig, name: str, prompts: Sequence[Json], loss: Json | None) -> HeldOutResults:
    """The results of `teacher`, `before` or `after`. Raises InputError for missing gate results."""
    storage = config.storage
    sample_ids = {row["sample_id"] for row in prompts}
    files, key = gate_files(storage, name), ANSWER_TABLES[name]
    rows = partial(first_attempts, sample_ids=sample_ids)
    answers = {row["sample_id"]: row for row in rows(storage.path_of(key), key)}
    kept = rows(files.kept, "filtered_dataset")
    reasons: dict[str, list[str]] = {row["sample_id"]: [] for row in kept}
    for row in rows(files.rejections, "rejections"):
        # An answer with a better attempt has passed the gates too.
        reasons[row["sample_id"]] = [reason for reason in row["rejection_reasons"] if reason != "better_attempt_kept"]
    if reasons.keys() != answers.keys():
        raise InputError(
            f"{files.kept} and {files.rejections} judge {len(reasons)} of {len(answers)} answers; "
            "run `python scripts/python/evaluation/run_evaluation.py`"
        )
    # Judges and exec gate are optional.
    judged = rows(files.judge_checks, "judge_checks") if files.judge_checks.exists() else []
    judged = [row for row in judged if row["value"] is not None]
    scores = {check: [r["value"] for r in judged if r["check"] == check] for check in SCORE_REASONS}
    scores = {check: values for check, values in scores.items() if values}
    checks = rows(files.exec_checks, "exec_checks") if files.exec_checks.exists() else []
    return HeldOutResults(answers, reasons, loss, scores, _execution_checks(config, list(answers.values()), checks))


def first_attempts(path: Path, table: str, sample_ids: Set[str]) -> list[Json]:
    """The rows of a table for these samples, first attempts only. Raises InputMissing (66)."""
    rows = read_table(path, TABLES[table]).to_pylist()
    return [row for row in rows if row["sample_id"] in sample_ids and row["attempt"] == 0]


def _execution_checks(
    config: DistillConfig, answers: Sequence[Json], checks: Sequence[Json]
) -> dict[str, dict[str, bool | None]]:
    """Per sample the execution checks that apply to it, None for one that was not run."""
    kinds = {task: kind for task, kind in config.execution.tasks.items() if kind}
    results = {(row["sample_id"], row["check"]): row["ok"] for row in checks}
    executed: dict[str, dict[str, bool | None]] = {}
    for row in answers:
        key, kind = row["sample_id"], kinds.get(row["template_name"])
        if kind is None:
            continue
        column = exec_gate.GOLD_COLUMNS.get(kind)
        # Without a gold answer nothing can match.
        comparable = row[column] is not None if column else (key, "exec.matches") in results
        names = ("exec.executes", "exec.matches") if comparable else ("exec.executes",)
        executed[key] = {name: results.get((key, name)) for name in names}
        if kind == "sql":
            executed[key]["exec.parses"] = is_select(row["teacher_output"] or "")
        if kind == "sql" and comparable:
            # Changed databases are only tried after a match, so without one it is the same result.
            perturbed = results.get((key, "exec.matches_perturbed"), executed[key]["exec.matches"])
            executed[key]["exec.matches_perturbed"] = perturbed
    return executed


def gate_config_hashes(storage: Storage) -> list[str | None]:
    # Of the trained student's answers: two runs are compared only behind the same gates.
    files = gate_files(storage, "after")
    gates = (files.checks, files.exec_checks, files.judge_checks, files.kept)
    manifests = [load_manifest(path, storage) for path in gates]
    return [manifest["config_sha256"] if manifest else None for manifest in manifests]
