"""The exec gate: what running an answer says about it. Measurements only, no thresholds.

Reads   rule_filtered, or --src FILE... (contracts.OUTPUTS), and the SQLite files that rows name
        in `database` (`execution/databases.py`)
Writes  exec_checks (contracts.CHECKS, answers in input order),
        reports/exec/quality_report.{json,md}
Keeps   every answer whose task type is in `execution.tasks`; the others get no check. A check that
        could not be made has ok null, which never passes; what did not run says why
Raises  InputMissing (66) for an absent or unsealed input or database, InputError (65) for a bad
        one, SandboxUnavailable (69) when Python answers cannot be isolated on this machine

| kind | exec.executes | exec.matches |
|---|---|---|
| sql | one SELECT runs on the row's database | its rows are those of `gold_sql` |
| python | the program loads | it passes `tests` |
| math | a final answer is found | it equals that of `reference` |
| json | the whole answer is JSON | it satisfies the task's schema (collection.response_schemas) |

exec.matches_perturbed (SQL) and exec.score are said in `execution/checks.py`, what holds each
kind in `execution/sql.py`, `sandbox.py`, `math_and_json_checks.py` and `worker.py`.

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
from nexa_distill.execution.database_perturbation import perturbed
from nexa_distill.execution.databases import database_folder, find_databases
from nexa_distill.execution.pool import Pool
from nexa_distill.execution.sql import Limits
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import DistillConfig, Execution, load_config, with_flags
from nexa_distill.storage.manifests import StageRun, load_manifest, sealed_hash, sha256_path
from nexa_distill.storage.tables import check_unique, read_batches, table_writer

SOURCE = TABLES["rule_filtered"]
KEYS = ("sample_id", "attempt")
KNOWN = {"sql": "gold_sql", "python": "tests", "math": "reference"}
COLUMNS = [*KEYS, "template_name", "teacher_output", "database", *KNOWN.values()]
BATCH_ROWS = 1024


@dataclass
class ExecSummary:
    """Counts of answers. `reasons`: those with a check that is not ok, under the first of them."""

    total: int = 0
    executed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)

    def add(self, checks: list[Check]) -> None:
        """Count one answer."""
        self.executed += 1
        self.made.update(c.check for c in checks)
        self.passed.update(c.check for c in checks if c.ok)
        against = [str(c.reason) for c in checks if not c.ok]
        self.reasons.update(against[:1])
        if not checks[0].ok:
            self.errors.update(against[:1])

    def rate(self, name: str) -> float | None:
        """Share of ok among the checks of this name; None = there is none."""
        return self.passed[name] / self.made[name] if self.made[name] else None


@dataclass
class Needs:
    """What the answers need to be executed; `databases`: name -> whether a gold query is on it."""

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    databases: dict[str, bool] = field(default_factory=dict)


def settings(config: DistillConfig) -> dict[str, Any]:
    """What decides the checks, next to the answers and the databases."""
    kept = config.execution.model_dump(exclude={"workers", "databases", "tasks"})
    return {**kept, "tasks": _tasks(config.execution), "schemas": _schemas(config)}


def _tasks(execution: Execution) -> dict[str, str]:
    return {task: kind for task, kind in execution.tasks.items() if kind}


def _schemas(config: DistillConfig) -> dict[str, Any]:
    """The schemas of the task types whose answers are JSON."""
    files = config.collection.response_schemas
    wanted = {
        t: files[t] for t, k in _tasks(config.execution).items() if k == "json" and t in files
    }
    if not wanted:
        return {}
    from nexa_distill.text.json_schemas import load_schemas

    return dict(load_schemas(wanted).schemas)


def survey(src: list[Path], tasks: Mapping[str, str]) -> Needs:
    """One look at the task types and databases. Raises InputError for an SQL row without one."""
    found = Needs()
    for path in src:
        columns = ["sample_id", "template_name", "database", "gold_sql"]
        for rows in read_batches(path, SOURCE, columns=columns):
            found.rows += rows.num_rows
            for sample, task, name, gold in zip(*rows.to_pydict().values(), strict=True):
                kind = tasks.get(task)
                if kind is None:
                    continue
                found.kinds[kind] += 1
                if kind == "sql" and name is None:
                    raise InputError(
                        f"{path}: answer {sample} ({task}) names no database; fill the column "
                        f"`database`, or set execution.tasks.{task} to null"
                    )
                if kind == "sql":
                    found.databases[name] = found.databases.get(name, False) or gold is not None
    return found


def _folder(config: DistillConfig) -> Path:
    """Where the databases are; null = beside the raw data that was read."""
    read = load_manifest(config.storage.path("canonical"), config.storage)
    raw = Path(read["inputs"][0]["path"] if read else config.input.path)
    return database_folder(config.execution.databases, raw)


def _copies(found: Mapping[str, Path], needs: Needs, folder: Path) -> dict[str, list[str]]:
    """Name -> the database and, where gold queries are on it, its changed copies."""
    made: dict[str, list[str]] = {}
    for name, path in found.items():
        try:
            copies = perturbed(path, folder, sha256_path(path)) if needs.databases[name] else []
        except sqlite3.Error as error:
            raise InputError(f"{path}: cannot be copied to {folder} and changed: {error}") from None
        made[name] = [str(path.resolve()), *map(str, copies)]
    return made


def _job(
    row: Mapping[str, Any], tasks: Mapping[str, str], schemas: Mapping[str, Any]
) -> Job | None:
    task = row["template_name"]
    kind = tasks.get(task)
    if kind is None:
        return None
    known = row[KNOWN[kind]] if kind in KNOWN else (task if task in schemas else None)
    return Job(kind, row["teacher_output"], known, row["database"])


def _checked(
    pool: Pool, src: list[Path], config: DistillConfig, schemas: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], list[Check]]]:
    """Each executed answer's key and checks, in input order."""
    keys, tasks = deque[dict[str, Any]](), _tasks(config.execution)

    def jobs() -> Iterator[Job]:
        for path in src:
            for rows in read_batches(path, SOURCE, batch_rows=BATCH_ROWS, columns=COLUMNS):
                for row in rows.to_pylist():
                    job = _job(row, tasks, schemas)
                    if job:
                        keys.append({name: row[name] for name in KEYS})
                        yield job

    for checks in pool.map(jobs()):
        yield keys.popleft(), checks


def _write(
    dst: Path, results: Iterator[tuple[dict[str, Any], list[Check]]], total: int
) -> ExecSummary:
    summary, keys = ExecSummary(), list[pa.Table]()
    with table_writer(dst, CHECKS) as out, Progress("exec", total) as progress:
        counted = _counted(results, summary, progress)
        while part := list(itertools.islice(counted, BATCH_ROWS)):
            rows = [key | c._asdict() for key, checks in part for c in checks]
            out.write(pa.Table.from_pylist(rows, schema=CHECKS))
            keys.append(pa.Table.from_pylist([key for key, _ in part]))
    if summary.executed != total:
        raise RuntimeError(f"answers lost: {total} to execute, {summary}")
    if keys:
        check_unique(dst, pa.concat_tables(keys), KEYS)
    return summary


def _counted(
    results: Iterator[tuple[dict[str, Any], list[Check]]], summary: ExecSummary, progress: Progress
) -> Iterator[tuple[dict[str, Any], list[Check]]]:
    for key, checks in results:
        summary.add(checks)
        progress.add(1, f"{summary.executed - summary.reasons.total()} without a failure")
        yield key, checks


def _execute(
    config: DistillConfig, needs: Needs, src: list[Path], found: Mapping[str, Path], dst: Path
) -> ExecSummary:
    """Run everything that is to be run, and write what came of it."""
    execution, schemas = config.execution, _schemas(config)
    own = Limits(**execution.model_dump(include=set(Limits.__dataclass_fields__)))
    if needs.kinds["python"]:
        from nexa_distill.execution import sandbox

        sandbox.require(own)
    with TemporaryDirectory(prefix="nexa-exec-") as folder:
        setting = {
            "limits": own.__dict__,
            "kinds": list(needs.kinds),
            "schemas": schemas,
            "databases": _copies(found, needs, Path(folder)),
        }
        with Pool(setting, execution.workers or os.cpu_count() or 1) as pool:
            return _write(dst, _checked(pool, src, config, schemas), needs.kinds.total())


def run(
    config: DistillConfig,
    *,
    src: list[Path] | None = None,
    checks: Path | None = None,
    report: Path | None = None,
) -> ExecSummary | None:
    """Execute the answers of `src` (default: those that pass the rules); None = up to date."""
    storage = config.storage
    usual = storage.path("reports") / "exec" / "quality_report.json"
    report = report or storage.beside(checks, "report.json", usual)
    src, checks = src or [storage.path("rule_filtered")], checks or storage.path("exec_checks")
    for path in src:
        sealed_hash(path, storage)
    needs = survey(src, _tasks(config.execution))
    found = find_databases(needs.databases, _folder(config))
    inputs = [*src, *found.values()]
    stage = StageRun("exec", storage, inputs=inputs, settings=settings(config))
    if stage.is_current(checks) and report.exists():
        print(f"exec: {checks} is up to date")
        return None
    if needs.kinds:
        summary = _execute(config, needs, src, found, checks)
    else:
        summary = _write(checks, iter(()), 0)
    summary.total = needs.rows
    check_reasons(list(summary.reasons))
    stage_reports.quality_report(
        report,
        stage="exec",
        total=summary.executed,
        reject_reason_counts=summary.reasons,
        exec_pass_rate=summary.rate("exec.executes"),
        gold_match_rate=summary.rate("exec.matches"),
        exec_error_counts=summary.errors if summary.executed else None,
    )
    stage.seal(checks, rows_in=summary.total, rejected=summary.reasons.total())
    print(f"exec: {_said(summary)}; report: {report}")
    return summary


def _said(summary: ExecSummary) -> str:
    if not summary.executed:
        return f"nothing to execute among {summary.total} answers (execution.tasks)"
    lucky = summary.made["exec.matches_perturbed"] - summary.passed["exec.matches_perturbed"]
    parts = [
        f"{summary.passed['exec.executes']} of {summary.executed} answers execute",
        f"{summary.passed['exec.matches']} of {summary.made['exec.matches']} match",
        f"{lucky} of them not on changed data" if lucky else "",
    ]
    return ", ".join(part for part in parts if part)


def main() -> int:
    """Run the stage."""
    parser = cli.parser(__doc__)
    parser.add_argument("--src", type=Path, nargs="+", help="answers (contracts.OUTPUTS)")
    parser.add_argument("--checks", type=Path, help="measurements (contracts.CHECKS)")
    parser.add_argument("--databases", metavar="DIR", help="SQLite files that the rows name")
    parser.add_argument("--report", type=Path, help="quality report (JSON; Markdown beside it)")
    args = parser.parse_args()
    config = with_flags(load_config(args.config), {"execution": {"databases": args.databases}})
    run(config, src=args.src, checks=args.checks, report=args.report)
    return 0


if __name__ == "__main__":
    cli.run(main)
