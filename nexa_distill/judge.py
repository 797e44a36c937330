"""Judges: models that score the teacher's answers by rubrics.

Reads   rule_filtered (contracts.OUTPUTS: the answers that pass the rules), exec_checks when they
        are there (what the exec gate refused is shown to nobody), the rubric files
Writes  judge_checks (contracts.CHECKS: judge.factuality and judge.reasoning, 0..1, judge.safety;
        by all judges together and by each), judge_canaries (contracts.CANARIES: the same for
        answers that must not pass), reports/judge/quality_report.{json,md}
Keeps   every answer that is shown: this measures. A judge that fails, or whose reply is not the
        one JSON object it was asked for, gives no score: ok and value are null: that never passes
Raises  InputMissing (66), InputError (65), and as the teacher's gateway: ProviderUnusable (69),
        StorageFailed (74), Locked (75), BudgetReached (77)

Every reply is in `storage.journal`/judge.sqlite as it came: another threshold asks nothing, and a
new judge, rubric or answer asks only for what is new. With no judges (`judging.judges` is empty)
the tables are empty and every report says that the judge was not run.
Not covered: batch mode; a request carries neither images nor tools.

Run: python -m nexa_distill.judge [--provider NAME --judge MODEL] [--estimate]
     python -m nexa_distill.judge calibrate [--annotations FILE]    judges beside people
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.collection.capabilities import schema_warning
from nexa_distill.console import cli
from nexa_distill.contracts import CANARIES, CHECKS, TABLES, check_reasons
from nexa_distill.cost.estimate_text import say_estimate
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal.journal import Journal
from nexa_distill.judging.aggregation import Panel, checks_of, nothing_to_judge
from nexa_distill.judging.canaries import canaries_of
from nexa_distill.judging.candidates import Submissions, submissions
from nexa_distill.judging.clients import as_judge, judge_flags, panel_of
from nexa_distill.judging.model_families import family_warnings
from nexa_distill.judging.rubrics import load_rubrics, options
from nexa_distill.judging.statistics import JudgeSummary
from nexa_distill.judging.verdict_parser import UNREADABLE
from nexa_distill.settings.pipeline import DistillConfig, load_config, with_flags
from nexa_distill.storage.manifests import StageRun, refuse_stale
from nexa_distill.storage.tables import read_batches, table_writer

Row = dict[str, Any]
NOT_RUN = "judge: not run (judging.judges names no judge)"


def settings(config: DistillConfig) -> dict[str, Any]:
    """What decides the verdicts, next to the answers and the journal."""
    judging, asking = config.judging, as_judge(config)
    if not judging.judges:
        return {"judges": []}
    return {
        "judges": [
            [judge.model, options(judge, asking) | config.providers[judge.provider].sending]
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
    """Judge every answer of `src` that passes `execution`; None when there was nothing to do.

    `execution` are the exec gate's checks of `src`: by default the storage's, of its own answers.
    """
    storage = config.storage
    execution = execution if src else exec_checks(config)
    src, checks = src or storage.path("rule_filtered"), checks or storage.path("judge_checks")
    usual = storage.path("reports") / "judge" / "quality_report.json"
    report = report or storage.beside(checks, "report.json", usual)
    canaries = canaries_of(checks, storage)
    inputs = [src, *([execution] if execution else [])]
    stage = StageRun("judge", storage, inputs=inputs, settings=settings(config))
    current = stage.is_current(canaries, checks) and report.exists() and not _read_again(checks)
    if current and not retry_failed:
        print(f"judge: {checks} is up to date" if config.judging.judges else NOT_RUN)
        return None
    given = submissions(src, config.judging.canary_prompts, execution)
    panel = panel_of(config, given, retry_failed=retry_failed)
    warnings = list(_warnings(panel, given))
    print("\n".join(f"judge: {line}" for line in warnings), end="\n" if warnings else "")
    if dry_run:
        _say_estimate(panel)
        return None
    summary = _judge(panel, given, stage, checks, canaries)
    summary.warnings = warnings
    summary.report(report, {r.name: r.version for r in panel.rubrics} if panel.judges else {})
    rows, rejected = summary.answers, summary.reasons.total()
    stage.seal(canaries, rows_in=len(given.canaries) if panel.judges else 0, rejected=0)
    stage.seal(checks, rows_in=rows, rejected=rejected, cost_usd=summary.usd)
    _say(summary, given, checks, report)
    return summary


def exec_checks(config: DistillConfig) -> Path | None:
    """The storage's, if the exec gate was run. Raises InputMissing (66) when they are stale."""
    path = config.storage.path("exec_checks")
    if not path.exists():
        return None
    refuse_stale(path, config.storage)
    return path


def _warnings(panel: Panel, given: Submissions) -> Iterator[str]:
    names = [judge.model for judge in panel.judges]
    for line in family_warnings(names, given.teachers):
        yield f"warning: {line}"
    needed = "its verdicts must be one JSON object each"
    for judge in panel.judges:
        if said := schema_warning(judge.config, judge.provider_name, judge.model, needed):
            yield said


def _judge(
    panel: Panel, given: Submissions, stage: StageRun, checks: Path, canaries: Path
) -> JudgeSummary:
    """Ask each judge for what is missing, then write both tables from the journal."""
    if not panel.judges:
        for path, schema in ((checks, CHECKS), (canaries, CANARIES)):
            with table_writer(path, schema) as out:
                out.write(schema.empty_table())
        return JudgeSummary({})
    for judge in panel.judges:
        judge.refuse_unpayable()
    with panel.judges[0].open_journal(stage.id) as journal:
        requests = sum(judge.ask(journal) for judge in panel.judges)
        summary = _write(panel, given, journal, checks, canaries)
    summary.requests = requests
    return summary


def _write(
    panel: Panel, given: Submissions, journal: Journal, checks: Path, canaries: Path
) -> JudgeSummary:
    summary = JudgeSummary.of(panel)
    with (
        table_writer(checks, CHECKS) as answers_out,
        table_writer(canaries, CANARIES) as canaries_out,
    ):
        for batch in given.batches():
            made: list[Row] = []
            for row, said in zip(batch, panel.read(batch, journal), strict=True):
                found = list(checks_of(said) if said else nothing_to_judge())
                summary.add(said, found, row.get("canary"))
                key = {name: row.get(name) for name in ("sample_id", "attempt", "canary")}
                made += [key | check for check in found]
            out = canaries_out if batch is given.canaries else answers_out
            out.write(pa.Table.from_pylist(made, schema=out.schema))
        check_reasons(list(summary.reasons))
        _refuse_silence(panel, summary)
    return summary


def _refuse_silence(panel: Panel, summary: JudgeSummary) -> None:
    """A judge without one verdict that can be read is a wrong setting, not many bad answers."""
    for judge in panel.judges:
        found = summary.judges[judge.model]
        asked, silent = found.verdicts.total(), found.verdicts["judge_unanswered"]
        if asked and silent == asked:
            refused = found.silence.startswith("request_refused")
            hint = ". If it knows no JSON schemas, give it extra_body: {response_format: null}"
            raise ProviderUnusable(
                f"judge {judge.model} of provider {judge.provider_name} answered none of {asked} "
                f"requests; its last word: {found.silence[:300]}{hint if refused else ''}. Correct "
                "judging.judges or its provider, then run again with --retry-failed"
            )
        unreadable = found.verdicts["judge_unparseable"]
        if asked and unreadable + silent == asked:
            raise ProviderUnusable(
                f"judge {judge.model} of provider {judge.provider_name}: none of {unreadable} "
                f"verdicts can be read; the last: {found.unreadable[:200]!r}. {UNREADABLE}"
            )


def _read_again(checks: Path) -> bool:
    """Whether a stored reply could not be read: a bug, perhaps mended since."""
    return any(
        pc.any(pc.equal(batch["reason"], "unreadable_answer")).as_py()
        for batch in read_batches(checks, TABLES["judge_checks"], columns=["reason"])
    )


def _say_estimate(panel: Panel) -> None:
    for judge in panel.judges:
        say_estimate(judge)
    if not panel.judges:
        print(NOT_RUN)


def _say(summary: JudgeSummary, given: Submissions, checks: Path, report: Path) -> None:
    if not summary.judges:
        print(NOT_RUN)
        return
    cost = "unpriced" if summary.usd is None else f"${summary.usd:.4f}"
    print(
        f"judge: {summary.answers} answers and {len(given.canaries)} canaries judged by "
        f"{', '.join(summary.judges)} ({summary.requests} requests now, {cost} in all) -> {checks}"
    )
    if refused := int(given.refused.sum()):
        print(f"judge: {refused} answers were shown to nobody: the exec gate refused them")
    for reason, count in summary.reasons.most_common():
        print(f"judge: {count} answers without a clean verdict: {reason}")
    print(f"judge: report: {report}")


def run_judging(args: argparse.Namespace) -> int:
    """The command line's work: flags over YAML, then `run`."""
    config = load_config(args.config)
    run(
        with_flags(config, judge_flags(config, args)),
        src=args.src,
        execution=args.exec_checks,
        checks=args.checks,
        report=args.report,
        dry_run=args.dry_run or args.estimate,
        retry_failed=args.retry_failed,
    )
    return 0


def run_calibration(args: argparse.Namespace) -> int:
    """`calibrate`: the stored scores beside the decisions of people."""
    from nexa_distill.judging.calibration_report import write_calibration

    config = load_config(args.config)
    print("\n".join(write_calibration(config, args.annotations, args.checks, args.report)))
    return 0


def main() -> int:
    """Command line."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--src", type=Path, metavar="FILE", help="answers (default: storage.rule_filtered)")
    add("--exec-checks", type=Path, metavar="FILE", help="of --src: what failed is not judged")
    add("--checks", type=Path, metavar="FILE", help="default: storage.judge_checks")
    add("--report", type=Path, metavar="FILE", help="JSON; Markdown beside it")
    add("--provider", metavar="NAME", help="a key of providers: in the configuration")
    add("--base-url", metavar="URL", help="another address for this provider")
    add("--judge", metavar="MODEL", help="this judge alone (default: judging.judges)")
    add("--dry-run", action="store_true", help="say what would be sent, send nothing")
    add("--estimate", action="store_true", help="the same as --dry-run")
    add("--retry-failed", action="store_true", help="ask again what brought no answer")
    commands = parser.add_subparsers(dest="command", metavar="calibrate")
    calibrate = commands.add_parser(
        "calibrate",
        help="compare the judges with people",
        description="Cohen's kappa of each judge with the decisions of people, and what each "
        "threshold would keep. Reads the stored scores; asks nothing.",
    )
    for name, text in (
        ("--annotations", "decisions, JSONL (default: storage.annotations)"),
        ("--checks", "default: storage.judge_checks"),
        ("--report", "JSON; Markdown and HTML beside it"),
        ("--config", "settings"),
    ):
        calibrate.add_argument(
            name, type=Path, metavar="FILE", help=text, default=argparse.SUPPRESS
        )
    calibrate.set_defaults(annotations=None)
    args = parser.parse_args()
    return run_calibration(args) if args.command else run_judging(args)


if __name__ == "__main__":
    cli.run(main)
