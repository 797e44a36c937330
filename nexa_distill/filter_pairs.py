"""Rule checks of the teacher's answers.

Reads   collected_dataset, and regen_dataset if it exists (contracts.OUTPUTS)
Writes  rules_checks (contracts.CHECKS, one row per rule and answer, answers in input order),
        rule_filtered (the answers that pass every rule), reports/rules/quality_report.{json,md}
Keeps   an answer whose every check is ok; a check that could not be made is a rejection
Raises  InputMissing (66) for an absent or unsealed input, InputError (65) for a bad one

    python -m nexa_distill.filter_pairs --config configs/filters.yaml

With `--dst` outside the storage the checks and the report are written beside it.
`--config` is the filters file, or the pipeline's (its `filters:` key then names the filters file).
The rules are described in `nexa_distill/gating/rules.py`.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import OFF_IN_PRESET, OUTPUTS, TABLES, check_reasons
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.gating.check_table import WRITTEN_CHECKS, checks_table, passing_rows
from nexa_distill.gating.rules import BATCH_ROWS, COLUMNS, RuleResult, Rules
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.filters import FilterConfig, PresetName
from nexa_distill.settings.pipeline import DistillConfig, load_config, with_flags
from nexa_distill.settings.tasks import TaskFilters
from nexa_distill.settings.yaml_loading import read_yaml
from nexa_distill.storage.answer_index import AnswerIndex
from nexa_distill.storage.manifests import StageRun, valid_regenerations
from nexa_distill.storage.tables import TableWriter, open_table, read_batches, table_writer
from nexa_distill.storage.thread_pool import map_in_order
from nexa_distill.text.words import VERSION

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_FILTERS = Path("configs/filters.yaml")
SOURCE = TABLES["collected_dataset"]


@dataclass
class RuleSummary:
    """Counts of answers; `reasons` counts each rejected answer under its first reason."""

    total: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    # Rule -> number of answers by language that the rule has no list for.
    not_applied: dict[str, Counter[str]] = field(default_factory=dict)


def settings(config: DistillConfig) -> dict[str, Any]:
    """The values that determine the checks: every rule, nothing of SampleGate."""
    filters = TaskFilters(config)
    rules = {preset: _rule_settings(values) for preset, values in filters.by_preset.items()}
    return {"presets": rules, "tasks": filters.relevant_settings}


def _rule_settings(filters: FilterConfig) -> dict[str, Any]:
    rules = filters.model_dump(exclude={"preset", "sample_gate", "quality_gates", "regression_gate"})
    return {**rules, "words": VERSION}


def apply_filters(df: "pd.DataFrame", config: FilterConfig) -> "pd.DataFrame":
    """The rows of `df` that pass every rule, with their index and all columns.

    Needs the columns `teacher_output`, `finish_reason` and `template_name`; a frame without
    `answer_flag` has no flagged answers. Raises InputError.
    """
    rules, kept = Rules(config), []
    for name in COLUMNS[:3]:
        if name not in df.columns:
            raise InputError(
                f"column {name} is missing{did_you_mean(name, map(str, df.columns))}; "
                f"the rules need {', '.join(COLUMNS[:3])}"
            )
    for start in range(0, len(df), BATCH_ROWS):
        texts = df.reindex(columns=list(COLUMNS)).iloc[start : start + BATCH_ROWS]
        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        rows = pa.Table.from_pandas(texts, schema=schema, preserve_index=False)
        kept.append(passing_rows(rules.measure_batch(rows)))
    return df[np.concatenate(kept)] if kept else df


def _count_batch(summary: RuleSummary, measured: Sequence[RuleResult]) -> None:
    open_rows = np.ones(len(measured[0].ok), np.bool_)
    summary.total += len(open_rows)
    for m in measured:
        missing, failed = open_rows & ~m.known & ~m.passed_rows, open_rows & m.known & ~m.ok
        languages = [why for why in m.not_applied.values() if not why.startswith(OFF_IN_PRESET)]
        if languages:
            summary.not_applied.setdefault(m.check, Counter()).update(languages)
        summary.reasons += Counter(check_missing=int(missing.sum())) + m.count_reasons(failed)
        # Only the first reason of an answer is counted.
        open_rows &= m.passed_rows
    summary.kept += int(open_rows.sum())


@dataclass(frozen=True)
class BatchResult:
    """One batch, done: what goes to each file, and the results of each part with the same rules."""

    measured: list[list[RuleResult]]
    checks: pa.Table
    kept: pa.Table


class TaskRules:
    """The rules by preset, and the preset of each task type."""

    def __init__(self, filters: Mapping[str, FilterConfig], preset_of: Callable[[str], str]) -> None:
        self._rules = {preset: Rules(values) for preset, values in filters.items()}
        self._preset_of = preset_of
        nothing = pa.table({name: pa.array([], pa.string()) for name in COLUMNS})
        checks = {preset: rules.measure_batch(nothing) for preset, rules in self._rules.items()}
        every = {check.check: check.reason for made in checks.values() for check in made}
        # SampleGate expects each check of every answer, so those that a preset does not make are noted.
        self._off = {
            preset: {name: reason for name, reason in every.items() if name not in {check.check for check in made}}
            for preset, made in checks.items()
        }

    def measure_part(self, preset: str, rows: pa.Table) -> list[RuleResult]:
        """The checks of rows with one preset, and a `not_applied` one for each rule that it lacks."""
        count = rows.num_rows
        detail = dict.fromkeys(range(count), f"{OFF_IN_PRESET}{preset}")
        ok, known = np.ones(count, np.bool_), np.zeros(count, np.bool_)
        off = [RuleResult(name, why, ok, known, None, detail, {}, detail) for name, why in self._off[preset].items()]
        return [*self._rules[preset].measure_batch(rows), *off]

    def split_batch(self, rows: pa.Table) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """The rows with the same preset, by their positions in the batch."""
        groups: dict[str, list[str]] = {}
        for task in rows["template_name"].unique().to_pylist():
            groups.setdefault(self._preset_of(task), []).append(task)
        for preset, tasks in groups.items():
            is_own = pc.is_in(rows["template_name"], pa.array(tasks))
            yield preset, np.flatnonzero(is_own.to_numpy())


def _check_batch(rules: TaskRules, rows: pa.Table) -> BatchResult:
    try:
        # Arrow does not check UTF-8 when it reads, and the rules cut texts by bytes.
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        first, last = rows["sample_id"][0], rows["sample_id"][-1]
        raise InputError(f"answers from sample_id {first} to {last}: not UTF-8: {error}") from None
    passing, measured = np.zeros(rows.num_rows, np.bool_), list[list[RuleResult]]()
    tables, places = list[pa.Table](), list[npt.NDArray[np.int64]]()
    for preset, positions in rules.split_batch(rows):
        part = rows if len(positions) == rows.num_rows else rows.take(pa.array(positions))
        measured.append(rules.measure_part(preset, part))
        passing[positions] = passing_rows(measured[-1])
        tables.append(checks_table(part, measured[-1]))
        places.append(np.repeat(positions, len(measured[-1])))
    checks = tables[0]
    if len(tables) > 1:  # back to the order of the answers
        order = np.argsort(np.concatenate(places), kind="stable")
        checks = pa.concat_tables(tables).unify_dictionaries().take(pa.array(order))
    return BatchResult(measured, checks, rows.filter(pa.array(passing)))


def _write_results(rules: TaskRules, src: list[Path], checks: TableWriter, kept: TableWriter) -> RuleSummary:
    summary = RuleSummary()
    total = sum(open_table(path, SOURCE).metadata.num_rows for path in src)
    if not total:
        raise InputError(f"{', '.join(map(str, src))}: 0 answers; run `{SOURCE.command}` first")
    AnswerIndex(src)  # raises for a duplicate answer
    batches = (b for path in src for b in read_batches(path, SOURCE, batch_rows=BATCH_ROWS))
    with Progress("rules", total) as progress:
        for done in map_in_order(partial(_check_batch, rules), batches):
            checks.write(done.checks)
            kept.write(done.kept)
            for measured in done.measured:
                _count_batch(summary, measured)
                progress.add(len(measured[0].ok), f"{summary.kept} kept")
    if summary.total != total or summary.kept + summary.reasons.total() != total:
        raise RuntimeError(f"rows lost: {total} read, {summary}")
    return summary


def run(
    config: DistillConfig,
    *,
    filters: FilterConfig | None = None,
    src: list[Path] | None = None,
    dst: Path | None = None,
    checks: Path | None = None,
    report: Path | None = None,
) -> RuleSummary | None:
    """Check `src` (default: the storage's answers) and write the results; None = up to date.

    `filters` are those of every answer; by default the file that the pipeline's `filters:` names,
    with the preset of each answer's task.
    """
    storage = config.storage
    src = src or answer_files(config)
    checks = checks or storage.path_beside(dst, "checks.parquet", storage.path_of("rules_checks"))
    usual = storage.path_of("reports") / "rules" / "quality_report.json"
    report = report or storage.path_beside(dst, "report.json", usual)
    dst = dst or storage.path_of("rule_filtered")
    values = _rule_settings(filters) if filters else settings(config)
    stage = StageRun("rules", storage, inputs=src, settings=values)
    if stage.is_current(checks, dst) and report.exists():
        print(f"rules: {dst} is up to date")
        return None
    rules = _build_rules(config, filters, src)
    with table_writer(dst, OUTPUTS) as kept_out, table_writer(checks, WRITTEN_CHECKS) as checks_out:
        summary = _write_results(rules, src, checks_out, kept_out)
    check_reasons(list(summary.reasons))
    stage_reports.write_quality_report(
        report,
        stage="rules",
        total=summary.total,
        reject_reason_counts=summary.reasons,
        not_applied=summary.not_applied,
    )
    for path in (checks, dst):
        stage.seal_output(path, rows_in=summary.total, rejected=summary.total - summary.kept)
    print(f"rules: {summary.kept} of {summary.total} answers pass; report: {report}")
    return summary


def _build_rules(config: DistillConfig, filters: FilterConfig | None, src: Sequence[Path]) -> TaskRules:
    if filters:
        return TaskRules({"": filters}, lambda _: "")
    by_task, presets = TaskFilters(config), set[PresetName]()
    for path in src:
        for batch in read_batches(path, SOURCE, columns=["template_name"]):
            presets |= {by_task.preset_of(task) for task in batch["template_name"].unique().to_pylist()}
    return TaskRules({preset: by_task.by_preset[preset] for preset in sorted(presets)}, by_task.preset_of)


def answer_files(config: DistillConfig) -> list[Path]:
    return [config.storage.path_of("collected_dataset"), *valid_regenerations(config.storage)]


def run_filtering(args: argparse.Namespace) -> RuleSummary | None:
    """Filter by the command's options; those that `args` leaves out are the configuration's."""
    args = _build_parser().complete_options(args)
    if read_yaml(args.config).keys() & DistillConfig.model_fields.keys():
        config = load_config(args.config)
    else:
        config = with_flags(load_config(args.pipeline_config), {"filters": str(args.config)})
    return run(config, src=args.src, dst=args.dst, checks=args.checks, report=args.report)


def _build_parser() -> cli.Parser:
    parser = cli.build_parser(__doc__, config=DEFAULT_FILTERS)
    parser.add_argument("--pipeline-config", type=Path, default=cli.DEFAULT_CONFIG, metavar="FILE")
    parser.add_argument("--src", type=Path, nargs="+", help="answers (contracts.OUTPUTS)")
    parser.add_argument("--dst", type=Path, help="answers that pass")
    parser.add_argument("--checks", type=Path, help="measurements (contracts.CHECKS)")
    parser.add_argument("--report", type=Path, help="quality report (JSON; Markdown beside it)")
    return parser


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; without arguments everything comes from the configuration."""
    return _build_parser().parse_args(argv)


def main() -> None:
    run_filtering(arguments())


if __name__ == "__main__":
    cli.run(main)
