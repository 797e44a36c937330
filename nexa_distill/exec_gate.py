"""The exec gate: run answers and record the results as checks, without thresholds.

Reads   rule_filtered, or --src FILE... (contracts.OUTPUTS), and the SQLite files that rows name
        in `database` (`execution/databases.py`)
Writes  exec_checks (contracts.CHECKS, answers in input order),
        reports/exec/quality_report.{json,md}
Keeps   every answer whose task type is in `execution.tasks`; the others get no check. A check that
        could not be made has ok null, which never passes
Raises  InputMissing (66) for an absent or unsealed input or database, InputError (65) for a bad
        one, SandboxUnavailable (69) when Python answers cannot be isolated on this machine

| kind | exec.executes | exec.matches |
|---|---|---|
| sql | one SELECT runs on the row's database | its rows are those of `gold_sql` |
| python | the program loads | it passes `tests` |
| math | a final answer is found | it equals that of `reference` |
| json | the whole answer is JSON | it satisfies the task's schema (collection.response_schemas) |

exec.matches_perturbed (SQL) and exec.score: `execution/checks.py`. Isolation and limits:
`execution/sql.py`, `sandbox.py`, `math_and_json_checks.py` and `worker.py`.

    python -m nexa_distill.exec_gate --databases data/databases
"""

import itertools
import os
import sqlite3
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import CHECKS, TABLES, check_reasons
from nexa_distill.errors import InputError
from nexa_distill.execution.checks import Check, Job
from nexa_distill.execution.database_perturbation import write_perturbed_copies
from nexa_distill.execution.databases import database_folder, find_databases
from nexa_distill.execution.pool import WorkerPool
from nexa_distill.execution.sql import Limits
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import DistillConfig, Execution, load_with_options
from nexa_distill.storage.manifests import StageRun, load_manifest, sealed_hash, sha256_path
from nexa_distill.storage.tables import check_unique, read_batches, read_values, table_writer

SOURCE = TABLES["rule_filtered"]
KEYS = ("sample_id", "attempt")
GOLD_COLUMNS = {"sql": "gold_sql", "python": "tests", "math": "reference"}
COLUMNS = [*KEYS, "template_name", "teacher_output", "database", *GOLD_COLUMNS.values()]
BATCH_ROWS = 1024


@dataclass
class ExecSummary:
    """Counts of answers. `reasons`: answers by the reason of their first failed check."""

    total: int = 0
    executed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)

    def add_answer(self, checks: list[Check]) -> None:
        self.executed += 1
        self.made.update(c.check for c in checks)
        self.passed.update(c.check for c in checks if c.ok)
        against = [str(c.reason) for c in checks if not c.ok]
        self.reasons.update(against[:1])
        if not checks[0].ok:
            self.errors.update(against[:1])

    def ok_rate(self, name: str) -> float | None:
        return self.passed[name] / self.made[name] if self.made[name] else None


@dataclass
class ExecutionNeeds:
    """Counts of answers by kind; `databases`: name -> whether a gold query runs on it."""

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    databases: dict[str, bool] = field(default_factory=dict)


def settings(config: DistillConfig) -> dict[str, Any]:
    """The values that determine the checks, besides the answers and the databases."""
    kept = config.execution.model_dump(exclude={"workers", "databases", "tasks"})
    return {**kept, "tasks": _executed_tasks(config.execution), "schemas": _json_schemas(config)}


def _executed_tasks(execution: Execution) -> dict[str, str]:
    return {task: kind for task, kind in execution.tasks.items() if kind}


def _json_schemas(config: DistillConfig) -> dict[str, Any]:
    files = config.collection.response_schemas
    json_files = {t: files[t] for t, k in _executed_tasks(config.execution).items() if k == "json" and t in files}
    if not json_files:
        return {}
    from nexa_distill.text.json_schemas import load_schemas

    return dict(load_schemas(json_files).schemas)


def survey_answers(src: list[Path], tasks: Mapping[str, str]) -> ExecutionNeeds:
    """Count task types and databases. Raises InputError for an SQL row without a database."""
    needs = ExecutionNeeds()
    for path in src:
        for sample, task, name, gold in read_values(path, SOURCE, "sample_id", "template_name", "database", "gold_sql"):
            needs.rows += 1
            kind = tasks.get(task)
            if kind:
                needs.kinds[kind] += 1
            if kind == "sql" and name is None:
                raise InputError(
                    f"{path}: answer {sample} ({task}) names no database; fill the column "
                    f"`database`, or set execution.tasks.{task} to null"
                )
            if kind == "sql":
                needs.databases[name] = needs.databases.get(name, False) or gold is not None
    return needs


def _databases_path(config: DistillConfig) -> Path:
    """The folder of the databases; by default that of the raw data that canonicalize read."""
    manifest = load_manifest(config.storage.path_of("canonical"), config.storage)
    raw = Path(manifest["inputs"][0]["path"] if manifest else config.input.path)
    return database_folder(config.execution.databases, raw)


def _write_copies(databases: Mapping[str, Path], needs: ExecutionNeeds, folder: Path) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for name, path in databases.items():
        try:
            copies = write_perturbed_copies(path, folder, sha256_path(path)) if needs.databases[name] else []
        except sqlite3.Error as error:
            raise InputError(f"{path}: cannot be copied to {folder} and changed: {error}") from None
        paths[name] = [str(path.resolve()), *map(str, copies)]
    return paths


def _make_job(row: Mapping[str, Any], tasks: Mapping[str, str], schemas: Mapping[str, Any]) -> Job | None:
    task = row["template_name"]
    kind = tasks.get(task)
    if kind is None:
        return None
    known = row[GOLD_COLUMNS[kind]] if kind in GOLD_COLUMNS else (task if task in schemas else None)
    return Job(kind, row["teacher_output"], known, row["database"])


def _check_answers(
    pool: WorkerPool, src: list[Path], config: DistillConfig, schemas: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], list[Check]]]:
    """Each executed answer's key and checks, in input order."""
    keys, tasks = deque[dict[str, Any]](), _executed_tasks(config.execution)

    def read_jobs() -> Iterator[Job]:
        for path in src:
            for rows in read_batches(path, SOURCE, batch_rows=BATCH_ROWS, columns=COLUMNS):
                for row in rows.to_pylist():
                    job = _make_job(row, tasks, schemas)
                    if job:
                        # The pool reads jobs ahead: their keys wait here for the checks.
                        keys.append({name: row[name] for name in KEYS})
                        yield job

    for checks in pool.map_jobs(read_jobs()):
        yield keys.popleft(), checks


def _write_checks(dst: Path, results: Iterator[tuple[dict[str, Any], list[Check]]], total: int) -> ExecSummary:
    summary, keys = ExecSummary(), list[pa.Table]()
    with table_writer(dst, CHECKS) as out, Progress("exec", total) as progress:
        counted = _count_results(results, summary, progress)
        while part := list(itertools.islice(counted, BATCH_ROWS)):
            rows = [key | c._asdict() for key, checks in part for c in checks]
            out.write(pa.Table.from_pylist(rows, schema=CHECKS))
            keys.append(pa.Table.from_pylist([key for key, _ in part]))
    if summary.executed != total:
        raise RuntimeError(f"answers lost: {total} to execute, {summary}")
    if keys:
        # Two results of one answer could contradict each other.
        check_unique(dst, pa.concat_tables(keys), KEYS)
    return summary


def _count_results(
    results: Iterator[tuple[dict[str, Any], list[Check]]], summary: ExecSummary, progress: Progress
) -> Iterator[tuple[dict[str, Any], list[Check]]]:
    for key, checks in results:
        summary.add_answer(checks)
        progress.add(1, f"{summary.executed - summary.reasons.total()} without a failure")
        yield key, checks


def _execute_answers(
    config: DistillConfig, needs: ExecutionNeeds, src: list[Path], databases: Mapping[str, Path], dst: Path
) -> ExecSummary:
    execution, schemas = config.execution, _json_schemas(config)
    own = Limits(**execution.model_dump(include=set(Limits.__dataclass_fields__)))
    # Before any answer runs: without isolation, no program may.
    if needs.kinds["python"]:
        from nexa_distill.execution import sandbox

        sandbox.require_sandbox(own)
    with TemporaryDirectory(prefix="nexa-exec-") as folder:
        setting = {
            "limits": own.__dict__,
            "kinds": list(needs.kinds),
            "schemas": schemas,
            "databases": _write_copies(databases, needs, Path(folder)),
        }
        with WorkerPool(setting, execution.workers or os.cpu_count() or 1) as pool:
            return _write_checks(dst, _check_answers(pool, src, config, schemas), needs.kinds.total())


def run(
    config: DistillConfig, *, src: list[Path] | None = None, checks: Path | None = None, report: Path | None = None
) -> ExecSummary | None:
    """Execute the answers of `src` (default: those that pass the rules); None = up to date."""
    storage = config.storage
    usual = storage.path_of("reports") / "exec" / "quality_report.json"
    report = report or storage.path_beside(checks, "report.json", usual)
    src, checks = (src or [storage.path_of("rule_filtered")], checks or storage.path_of("exec_checks"))
    for path in src:
        sealed_hash(path, storage)
    needs = survey_answers(src, _executed_tasks(config.execution))
    databases = find_databases(needs.databases, _databases_path(config))
    inputs = [*src, *databases.values()]
    stage = StageRun("exec", storage, inputs=inputs, settings=settings(config))
    if stage.is_current(checks) and report.exists():
        print(f"exec: {checks} is up to date")
        return None
    if needs.kinds:
        summary = _execute_answers(config, needs, src, databases, checks)
    else:
        summary = _write_checks(checks, iter(()), 0)
    summary.total = needs.rows
    check_reasons(list(summary.reasons))
    stage_reports.write_quality_report(
        report,
        stage="exec",
        total=summary.executed,
        reject_reason_counts=summary.reasons,
        exec_pass_rate=summary.ok_rate("exec.executes"),
        gold_match_rate=summary.ok_rate("exec.matches"),
        exec_error_counts=summary.errors if summary.executed else None,
    )
    stage.seal_output(checks, rows_in=summary.total, rejected=summary.reasons.total())
    print(f"exec: {_summary_text(summary)}; report: {report}")
    return summary


def _summary_text(summary: ExecSummary) -> str:
    if not summary.executed:
        return f"nothing to execute among {summary.total} answers (execution.tasks)"
    lucky = summary.made["exec.matches_perturbed"] - summary.passed["exec.matches_perturbed"]
    parts = [
        f"{summary.passed['exec.executes']} of {summary.executed} answers execute",
        f"{summary.passed['exec.matches']} of {summary.made['exec.matches']} match",
        f"{lucky} of them not on changed data" if lucky else "",
    ]
    return ", ".join(part for part in parts if part)


def main() -> None:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--src", type=Path, nargs="+", help="answers (contracts.OUTPUTS)")
    parser.add_argument("--checks", type=Path, help="measurements (contracts.CHECKS)")
    parser.add_argument(
        "--databases", dest="execution.databases", metavar="DIR", help="SQLite files that the rows name"
    )
    parser.add_argument("--report", type=Path, help="quality report (JSON; Markdown beside it)")
    args = parser.parse_args()
    run(load_with_options(args), src=args.src, checks=args.checks, report=args.report)


if __name__ == "__main__":
    cli.run(main)
