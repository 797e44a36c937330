"""Judges: models that score the teacher's answers by rubrics.

Reads   rule_filtered (contracts.OUTPUTS: the answers that pass the rules), the rubric files
Writes  judge_checks (contracts.CHECKS: judge.factuality and judge.reasoning, 0..1, judge.safety;
        by all judges together and by each), judge_canaries (contracts.CANARIES: the same for
        answers that must not pass), reports/judge/quality_report.{json,md}
Keeps   every answer: this measures. A judge that fails, or whose reply is not the one JSON object
        it was asked for, gives no score: ok and value are null, and null never passes
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill import cli
from nexa_distill.capabilities import schema_warning
from nexa_distill.collection import Collector
from nexa_distill.config import DistillConfig, JudgeModel, load_config, with_flags
from nexa_distill.contracts import CANARIES, CHECKS, TABLES, check_reasons
from nexa_distill.errors import ProviderUnusable
from nexa_distill.handoff import read_batches, table_writer
from nexa_distill.journal import Journal
from nexa_distill.judging.canaries import canaries_of
from nexa_distill.judging.families import family_warnings
from nexa_distill.judging.panel import Panel, checks_of, nothing_to_judge
from nexa_distill.judging.rubrics import judge_request, load_rubrics, options
from nexa_distill.judging.submissions import Submissions, has_text, submissions
from nexa_distill.judging.tally import JudgeSummary
from nexa_distill.manifests import StageRun
from nexa_distill.money.estimate_text import say_estimate
from nexa_distill.prompt_request import PromptRequest

Row = dict[str, Any]
NOT_RUN = "judge: not run (judging.judges names no judge)"


def settings(config: DistillConfig) -> dict[str, Any]:
    """What decides the verdicts, next to the answers and the journal."""
    judging, asking = config.judging, _as_judge(config)
    if not judging.judges:
        return {"judges": []}
    return {
        "judges": [[judge.model, options(judge, asking)] for judge in judging.judges],
        "rubrics": {rubric.name: rubric.text for rubric in load_rubrics(config)},
        "canary_prompts": judging.canary_prompts,
        "on_uncertain": config.collection.on_uncertain,
    }


def _as_judge(config: DistillConfig) -> DistillConfig:
    """The configuration by which a judge is asked: verdicts are shorter than answers, and colder.

    Several judges share one ledger, and an open batch belongs to one provider: hence no batches.
    """
    judging = config.judging
    own = {"max_tokens": judging.max_tokens, "temperature": judging.temperature}
    return with_flags(config, {"collection": own | {"batch_api": False}})


def panel_of(config: DistillConfig, given: Submissions, *, retry_failed: bool = False) -> Panel:
    """The judges of the configuration, ready to be asked about `given`. Raises InputError."""
    rubrics, asking = load_rubrics(config), _as_judge(config)

    def requests_by(judge: JudgeModel) -> Callable[[Row], list[PromptRequest]]:
        def requests_of(row: Row) -> list[PromptRequest]:
            shown = rubrics if has_text(row) else []
            return [judge_request(row, rubric, judge, asking) for rubric in shown]

        return requests_of

    def rows(_: Sequence[str] | None) -> Iterator[list[Row]]:
        return given.batches()

    total = (given.shown + len(given.canaries)) * len(rubrics)
    judges = [
        Collector(
            "judge", asking, config.chosen_provider(judge.provider)[0], judge.model, rows,
            requests_by(judge), total, retry_failed,
        )
        for judge in config.judging.judges
    ]  # fmt: skip
    return Panel(judges, rubrics)


def run(
    config: DistillConfig,
    *,
    src: Path | None = None,
    checks: Path | None = None,
    report: Path | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
) -> JudgeSummary | None:
    """Judge every answer of `src`; None when there was nothing to do."""
    storage = config.storage
    src, checks = src or storage.path("rule_filtered"), checks or storage.path("judge_checks")
    report = report or storage.path("reports") / "judge" / "quality_report.json"
    canaries = canaries_of(checks, storage)
    stage = StageRun("judge", storage, inputs=[src], settings=settings(config))
    current = stage.is_current(canaries, checks) and report.exists() and not _read_again(checks)
    if current and not retry_failed:
        print(f"judge: {checks} is up to date" if config.judging.judges else NOT_RUN)
        return None
    given = submissions(src, config.judging.canary_prompts)
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
    """A judge that answers nothing at all is a wrong setting, not a lot of bad answers."""
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
    for reason, count in summary.reasons.most_common():
        print(f"judge: {count} answers without a clean verdict: {reason}")
    print(f"judge: report: {report}")


def run_judging(args: argparse.Namespace) -> int:
    """The command line's work: flags over YAML, then `run`."""
    config = load_config(args.config)
    run(
        with_flags(config, _flags(config, args)),
        src=args.src, checks=args.checks, report=args.report,
        dry_run=args.dry_run or args.estimate, retry_failed=args.retry_failed,
    )  # fmt: skip
    return 0


def _flags(config: DistillConfig, args: argparse.Namespace) -> dict[str, Any]:
    """`--judge` and `--provider` name one judge instead of those of the configuration."""
    name, provider = config.chosen_provider(args.provider)
    flags: dict[str, Any] = {}
    if args.base_url:  # somebody else's server: nothing of ours is started
        served = {"base_url": args.base_url, "start": [], "endpoint_file": ""}
        flags["providers"] = {name: served}
    if args.judge or args.provider:
        model = args.judge or provider.model
        known = [
            j.extra_body for j in config.judging.judges if (j.provider, j.model) == (name, model)
        ]
        judge = {"provider": name, "model": model, "extra_body": known[0] if known else {}}
        flags["judging"] = {"judges": [judge]}
    return flags


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
        "calibrate", help="compare the judges with people",
        description="Cohen's kappa of each judge with the decisions of people, and what each "
        "threshold would keep. Reads the stored scores; asks nothing.",
    )  # fmt: skip
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
