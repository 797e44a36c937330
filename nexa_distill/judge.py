"""Judges: models that score the teacher's answers by rubrics.

Reads   rule_filtered (contracts.OUTPUTS: the answers that pass the rules), exec_checks if they
        exist (answers that failed there are not judged), the rubric files
Writes  judge_checks (contracts.CHECKS: judge.factuality and judge.reasoning, 0..1, judge.safety;
        of all judges together and of each), judge_canaries (contracts.CANARIES: the same for
        answers that must not pass), reports/judge/quality_report.{json,md}
Keeps   every judged answer. A judge that fails, or does not reply with one JSON object, gives no
        score: ok and value are null, which never passes
Raises  InputMissing (66), InputError (65), and as the teacher's gateway: ProviderUnusable (69),
        StorageFailed (74), Locked (75), BudgetReached (77)

Every raw reply is in `storage.journal`/judge.sqlite: another threshold sends no request, and a new
judge, rubric or answer only the new ones. Without judges (`judging.judges` is empty) the tables are
empty and reports contain "not run". Not covered: batch mode, images, tools.

Run: python -m nexa_distill.judge [--provider NAME --judge MODEL] [--estimate]
     python -m nexa_distill.judge calibrate [--annotations FILE]    compare judges with annotators
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.collection.capabilities import schema_warning
from nexa_distill.console import cli
from nexa_distill.contracts import CANARIES, CHECKS, TABLES, Row, check_reasons
from nexa_distill.cost.estimate_text import print_estimate
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal.journal import Journal
from nexa_distill.judging.aggregation import Panel, aggregate_checks, empty_answer_checks
from nexa_distill.judging.canaries import canaries_path
from nexa_distill.judging.candidates import Candidates, load_candidates
from nexa_distill.judging.clients import build_panel, judge_config, with_judge_options
from nexa_distill.judging.model_families import family_warnings
from nexa_distill.judging.rubrics import judge_options, load_rubrics
from nexa_distill.judging.statistics import JudgeSummary
from nexa_distill.judging.verdict_parser import UNREADABLE
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.manifests import StageRun, refuse_stale
from nexa_distill.storage.tables import read_batches, table_writer

NOT_RUN = "judge: not run (judging.judges names no judge)"


def settings(config: DistillConfig) -> dict[str, Any]:
    """The values that determine the verdicts, besides the answers and the journal."""
    judging, asking = config.judging, judge_config(config)
    if not judging.judges:
        return {"judges": []}
    return {
        "judges": [
            [judge.model, judge_options(judge, asking) | config.providers[judge.provider].dialect_changes]
            for judge in judging.judges
        ],
        "rubrics": {rubric.name: rubric.text for rubric in load_rubrics(config)},
        "canary_prompts": judging.canary_prompts,
        "on_uncertain": config.collection.on_uncertain,
    }


def run(
    config: DistillConfig,
    *,
    src: Path | None = None,
    execution: Path | None = None,
    checks: Path | None = None,
    report: Path | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
) -> JudgeSummary | None:
    """Judge every answer of `src` that passes `execution`; None if there was nothing to do.

    `execution`: the exec gate's checks of `src`; without `src` those of the storage.
    """
    storage = config.storage
    execution = execution if src else fresh_exec_checks(config)
    src, checks = src or storage.path_of("rule_filtered"), checks or storage.path_of("judge_checks")
    usual = storage.path_of("reports") / "judge" / "quality_report.json"
    report = report or storage.path_beside(checks, "report.json", usual)
    canaries = canaries_path(checks, storage)
    inputs = [src, *([execution] if execution else [])]
    stage = StageRun("judge", storage, inputs=inputs, settings=settings(config))
    current = stage.is_current(canaries, checks) and report.exists() and not _has_unreadable(checks)
    if current and not retry_failed:
        print(f"judge: {checks} is up to date" if config.judging.judges else NOT_RUN)
        return None
    candidates = load_candidates(src, config.judging.canary_prompts, execution)
    panel = build_panel(config, candidates, retry_failed=retry_failed)
    warnings = list(_collect_warnings(panel, candidates))
    print("\n".join(f"judge: {line}" for line in warnings), end="\n" if warnings else "")
    if dry_run:
        for judge in panel.judges:
            print_estimate(judge)
        if not panel.judges:
            print(NOT_RUN)
        return None
    summary = _judge_answers(panel, candidates, stage, checks, canaries)
    summary.warnings = warnings
    summary.write_report(report, {r.name: r.version for r in panel.rubrics} if panel.judges else {})
    rows, rejected = summary.answers, summary.reasons.total()
    stage.seal_output(canaries, rows_in=len(candidates.canaries) if panel.judges else 0, rejected=0)
    stage.seal_output(checks, rows_in=rows, rejected=rejected, cost_usd=summary.total_usd)
    _print_summary(summary, candidates, checks, report)
    return summary


def fresh_exec_checks(config: DistillConfig) -> Path | None:
    """The storage's exec checks, if the exec gate was run. Raises InputMissing (66) if stale."""
    path = config.storage.path_of("exec_checks")
    if not path.exists():
        return None
    refuse_stale(path, config.storage)
    return path


def _collect_warnings(panel: Panel, candidates: Candidates) -> Iterator[str]:
    names = [judge.model for judge in panel.judges]
    for line in family_warnings(names, candidates.teachers):
        yield f"warning: {line}"
    needed = "its verdicts must be one JSON object each"
    for judge in panel.judges:
        if warning := schema_warning(judge.config, judge.provider_name, judge.model, needed):
            yield warning


def _judge_answers(panel: Panel, candidates: Candidates, stage: StageRun, checks: Path, canaries: Path) -> JudgeSummary:
    if not panel.judges:
        for path, schema in ((checks, CHECKS), (canaries, CANARIES)):
            with table_writer(path, schema) as out:
                out.write(schema.empty_table())
        return JudgeSummary({})
    for judge in panel.judges:
        # All of them first: no judge is paid if another cannot be asked.
        judge.refuse_unpayable()
    with panel.judges[0].open_journal(stage.id) as journal:
        requests = sum(judge.ask_missing(journal) for judge in panel.judges)
        summary = _write_tables(panel, candidates, journal, checks, canaries)
    summary.requests = requests
    return summary


def _write_tables(panel: Panel, candidates: Candidates, journal: Journal, checks: Path, canaries: Path) -> JudgeSummary:
    summary = JudgeSummary.for_panel(panel)
    with table_writer(checks, CHECKS) as answers_out, table_writer(canaries, CANARIES) as canaries_out:
        for batch in candidates.answer_batches():
            rows: list[Row] = []
            for row, verdicts in zip(batch, panel.read_verdicts(batch, journal), strict=True):
                row_checks = list(aggregate_checks(verdicts) if verdicts else empty_answer_checks())
                summary.add_answer(verdicts, row_checks, row.get("canary"))
                key = {name: row.get(name) for name in ("sample_id", "attempt", "canary")}
                rows += [key | check for check in row_checks]
            out = canaries_out if batch is candidates.canaries else answers_out
            out.write(pa.Table.from_pylist(rows, schema=out.schema))
        check_reasons(list(summary.reasons))
        # Inside the writers, so that tables without a verdict replace nothing.
        _require_verdicts(panel, summary)
    return summary


def _require_verdicts(panel: Panel, summary: JudgeSummary) -> None:
    for judge in panel.judges:
        stats = summary.judges[judge.model]
        # Not one readable verdict is a wrong setting, and no opinion on the answers.
        total, silent = stats.verdicts.total(), stats.verdicts["judge_unanswered"]
        if total and silent == total:
            refused = stats.silence.startswith("request_refused")
            hint = ". If it knows no JSON schemas, give it extra_body: {response_format: null}"
            raise ProviderUnusable(
                f"judge {judge.model} of provider {judge.provider_name} answered none of {total} "
                f"requests; last error: {stats.silence[:300]}{hint if refused else ''}. Correct "
                "judging.judges or its provider, then run again with --retry-failed"
            )
        unreadable = stats.verdicts["judge_unparseable"]
        if total and unreadable + silent == total:
            raise ProviderUnusable(
                f"judge {judge.model} of provider {judge.provider_name}: none of {unreadable} "
                f"verdicts can be read; the last: {stats.unreadable[:200]!r}. {UNREADABLE}"
            )


def _has_unreadable(checks: Path) -> bool:
    # Due to a bug that may be fixed by now: such a reply is read again, at no cost.
    return any(
        pc.any(pc.equal(batch["reason"], "unreadable_answer")).as_py()
        for batch in read_batches(checks, TABLES["judge_checks"], columns=["reason"])
    )


def _print_summary(summary: JudgeSummary, candidates: Candidates, checks: Path, report: Path) -> None:
    if not summary.judges:
        print(NOT_RUN)
        return
    cost = "unpriced" if summary.total_usd is None else f"${summary.total_usd:.4f}"
    print(
        f"judge: {summary.answers} answers and {len(candidates.canaries)} canaries judged by "
        f"{', '.join(summary.judges)} ({summary.requests} requests now, {cost} in all) -> {checks}"
    )
    if refused := int(candidates.refused.sum()):
        print(f"judge: {refused} answers not judged (rejected by the exec gate)")
    for reason, count in summary.reasons.most_common():
        print(f"judge: {count} answers without a clean verdict: {reason}")
    print(f"judge: report: {report}")


def main() -> None:
    parser = cli.build_parser(__doc__)
    add = parser.add_argument
    add("--src", type=Path, metavar="FILE", help="answers (default: storage.rule_filtered)")
    add("--exec-checks", type=Path, metavar="FILE", help="of --src: what failed is not judged")
    add("--checks", type=Path, metavar="FILE", help="default: storage.judge_checks")
    add("--report", type=Path, metavar="FILE", help="JSON; Markdown beside it")
    add("--provider", dest="judge_provider", metavar="NAME", help="a key of providers: in the configuration")
    add("--base-url", metavar="URL", help="another address for this provider")
    add("--judge", metavar="MODEL", help="this judge alone (default: judging.judges)")
    cli.add_sending_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="calibrate")
    calibrate = commands.add_parser(
        "calibrate",
        help="compare the judges with annotators",
        description="Cohen's kappa of each judge with the human decisions, and the effect of each "
        "threshold. Reads the stored scores; sends no request.",
    )
    for name, text in (
        ("--annotations", "decisions, JSONL (default: storage.annotations)"),
        ("--checks", "default: storage.judge_checks"),
        ("--report", "JSON; Markdown and HTML beside it"),
        ("--config", "settings"),
    ):
        calibrate.add_argument(name, type=Path, metavar="FILE", help=text, default=argparse.SUPPRESS)
    calibrate.set_defaults(annotations=None)
    args = parser.parse_args()
    config = load_config(args.config)
    if args.command:
        from nexa_distill.judging.calibration_report import write_calibration

        print("\n".join(write_calibration(config, args.annotations, args.checks, args.report)))
        return
    run(
        with_judge_options(config, args),
        src=args.src,
        execution=args.exec_checks,
        checks=args.checks,
        report=args.report,
        dry_run=args.dry_run,
        retry_failed=args.retry_failed,
    )


if __name__ == "__main__":
    cli.run(main)
