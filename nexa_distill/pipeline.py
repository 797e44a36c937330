"""Plan, watch and verify the whole pipeline.

    python -m nexa_distill.pipeline plan      per session: run or skip, why; cost of the teacher
    python -m nexa_distill.pipeline plan --target N   also tokens, hours and cost of N samples
    python -m nexa_distill.pipeline status    the newest run, and the sealed stages
    python -m nexa_distill.pipeline verify    every hash from the raw file to the checkpoint
    python -m nexa_distill.pipeline summary   rows kept per stage, cost, the report's headline
    python -m nexa_distill.pipeline runs      every run: state, input, kept, passes
    python -m nexa_distill.pipeline compare A B   two runs on the prompts that both answered

`--name NAME` means the run of that name. `verify` exits with 0 if all hashes match and with 66 at the
first broken link. The launcher uses three more: `prepare` creates a run's folder with its plan and
prints the path (nothing if all is up to date); `watch RUN_DIR` shows a run until it ends and exits
with its code; `sweep` stops orphaned stage processes.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from nexa_distill.collection.capabilities import plan_line
from nexa_distill.console import cli
from nexa_distill.cost.cost_report import build_cost_report
from nexa_distill.cost.cost_report_text import summary_lines
from nexa_distill.cost.target_plan import target_lines
from nexa_distill.errors import Locked, NexaError
from nexa_distill.orchestration import orphans
from nexa_distill.orchestration.freshness import Freshness, verify_chain
from nexa_distill.orchestration.frozen_config import freeze_config
from nexa_distill.orchestration.named_runs import RUNS, frozen_path, with_name
from nexa_distill.orchestration.planning import Request, make_plan, plan_lines, session_command
from nexa_distill.orchestration.replacement import explain_replacement, refuse_replacement
from nexa_distill.orchestration.run_folder import (
    describe_failures,
    describe_launch,
    exit_code,
    frozen_config_path,
    latest_run,
    new_run_dir,
    planned_sessions,
    read_record,
    read_session,
    relative_path,
    running_sessions,
    write_plan,
    write_record,
)
from nexa_distill.orchestration.run_list import load_report, main_logs, run_lines
from nexa_distill.orchestration.stages import SESSIONS, STAGES, Stage, locate_path
from nexa_distill.orchestration.window import Window, session_line, usual_seconds, wrap_lines
from nexa_distill.raw_data.input_reading import describe_answers
from nexa_distill.settings.pipeline import DistillConfig, Storage, load_config, with_flags
from nexa_distill.storage.manifests import load_manifest

if TYPE_CHECKING:
    from nexa_distill.collection.collector import Collector

    FindCollectors = Callable[[], Iterable[Collector]]

POLL_SECONDS = 0.3
PLANNED_REQUESTS = 50_000  # a plan must be quick: more requests are not counted
LAUNCHER = "bash launch_pipeline.sh"


class DistillationPipeline:
    """The data pipeline in Python. Each method runs its stages, unless they are up to date."""

    def __init__(self, config_path: Path | str | None = None) -> None:
        # Imported here, because it imports every stage.
        from nexa_distill import gates, to_sft

        self._gates, self._package = gates, to_sft.run
        self.config_path = Path(config_path or cli.DEFAULT_CONFIG)
        self.config: DistillConfig = load_config(self.config_path)

    def collect_teacher(self, *, dry_run: bool = False, max_samples: int | None = None) -> None:
        """Raw data to teacher answers. Writes raw_dataset and collected_dataset.

        `dry_run`: print the requests and their cost, and send none. `max_samples`: of the first prompts only.
        """
        config = with_flags(self.config, {"collection": {"max_samples": max_samples}})
        self._gates.run_data_gen(config, dry_run=dry_run)

    def filter_teacher(self, *, report_path: Path | str | None = None) -> None:
        """Run all gates. Writes filtered_dataset and rejections.

        `report_path`: a copy of SampleGate's report as JSON; .md and .html are written beside it.
        """
        self._gates.run_gates(self.config)
        if report_path:
            self._gates.copy_report(self.config, Path(report_path))

    def regenerate(self, *, annotations_path: Path | str | None = None, dry_run: bool = False) -> None:
        """Repair rejected answers round by round, each through the same gates.

        Writes regen_dataset and the outputs of `filter_teacher`. `annotations_path`: a file of human
        decisions to record first. `dry_run`: print the next requests and their cost, and send none.
        """
        annotations = Path(annotations_path) if annotations_path else None
        if dry_run:
            self._gates.estimate_repairs(self.config, annotations)
        else:
            self._gates.run_repair_loop(self.config, annotations)

    def package_sft(self) -> None:
        """Filtered answers to training samples. Writes sft_parquet, sft_jsonl and splits."""
        self._gates.apply_decisions(self.config)
        self._package(self.config)

    def plan_cli_commands(self, *, all: bool = False) -> list[str]:  # noqa: A002
        """The commands of the sessions that would run now, in order, as a user types them; `all`: of every session."""
        if all:
            request = Request(self.config_path)
            return [shlex.join(session_command(session, self.config, request)) for session in SESSIONS]
        steps = make_plan(Request(self.config_path), new_run_dir(Path(self.config.storage.logs)))
        return [shlex.join(step.command) for step in steps if step.runs]


def describe_plan(request: Request) -> Iterator[str]:
    """The plan of a launch, with request counts and costs. Sends nothing."""
    # Imported here, because these are stages.
    from nexa_distill.canonicalize import preview_input
    from nexa_distill.collect_teacher import teacher_model

    fresh = Freshness(request.load_settings())
    config = fresh.config
    steps = make_plan(request, new_run_dir(Path(config.storage.logs)), fresh)
    lost = explain_replacement(steps, fresh)
    running = {step.session for step in steps if step.runs}
    yield from plan_lines(steps)
    if "data_gen" in request.chosen_sessions:
        yield from preview_input(config)
    if "data_gen" in running and (line := describe_answers(config)):
        yield line
    if "data_gen" in running and not config.answers.path:
        yield f"teacher: {plan_line(config, config.chosen_provider()[0], teacher_model(config))}"
    for stage, unknown, find_collectors in _paid_stages(config):
        if stage.session in running:
            label = "regeneration" if stage.name == "regenerate" else stage.name
            yield from (f"{label}: {line}" for line in _estimate_stage(fresh, stage, unknown, find_collectors))
    if lost:
        yield f"needs --replace or --name NAME: it would replace {lost}"


def _paid_stages(config: DistillConfig) -> Iterator[tuple[Stage, str, "FindCollectors"]]:
    """The stages that ask a model: what is unknown before those in `{}` have run, and the collectors."""
    from nexa_distill import collect_teacher, judge, regenerate_bad
    from nexa_distill.judging.candidates import load_candidates
    from nexa_distill.judging.clients import build_panel
    from nexa_distill.repair.plan import make_plan as plan_repairs

    storage, judging = config.storage, config.judging
    stages = {stage.name: stage for stage in STAGES}

    def build_judges() -> "Iterable[Collector]":
        execution = judge.fresh_exec_checks(config)
        return build_panel(
            config, load_candidates(storage.path_of("rule_filtered"), judging.canary_prompts, execution)
        ).judges

    def build_repairs() -> "Iterable[Collector]":
        return [collector for collector, _ in regenerate_bad.RepairRequests(config, plan_repairs(config)).rounds]

    def build_teacher() -> "Iterable[Collector]":
        return [collect_teacher.build_collector(config, storage.path_of("raw_dataset"))]

    if not config.answers.path:
        yield stages["teacher"], "requests and cost are known after {}", build_teacher
    if judging.judges:
        yield stages["judge"], f"cost of {len(judging.judges)} judges is known after {{}}", build_judges
    if not config.answers.path:
        yield stages["regenerate"], "repairs are known after filtering", build_repairs


def _estimate_stage(fresh: Freshness, stage: Stage, unknown: str, find_collectors: "FindCollectors") -> Iterator[str]:
    from nexa_distill.cost.estimate_text import estimate_lines

    if stale := [before.name for before in STAGES[: STAGES.index(stage)] if fresh.stale_reason(before)]:
        yield unknown.format(" and ".join(stale))
        return
    if not fresh.stale_reason(stage):
        return
    try:
        for collector in find_collectors():
            if collector.total <= PLANNED_REQUESTS:
                yield from estimate_lines(collector)
            else:
                command = f"python -m nexa_distill.{stage.module} --estimate"
                yield f"up to {collector.total:,} requests; `{command}` counts them"
    except NexaError as error:
        yield f"no estimate: {error}"


def prepare_run(request: Request, *, replace: bool = False) -> Path | None:
    """Create the folder of a new run with its plan and settings; None if everything is up to date.

    Raises Locked (75) while the newest run is running, and for a launch that would `replace` a
    finished student.
    """
    fresh = Freshness(request.load_settings())
    config, logs = fresh.config, Path(fresh.config.storage.logs).resolve()
    before = latest_run(logs)
    if running := running_sessions(before):
        raise Locked(
            f"a run of this project is running: {', '.join(running)} ({before}). "
            f"`{LAUNCHER} --status` shows it, `{LAUNCHER} --stop` stops it; `--name NAME` starts another beside it"
        )
    # A stage of a killed session must end before the same stage starts again.
    sweep_orphans(logs)
    run_dir = new_run_dir(logs)
    steps = make_plan(request, run_dir, fresh)
    if not replace:
        refuse_replacement(steps, fresh)
    print("\n".join(plan_lines(steps, commands=False)), file=sys.stderr)
    if any(step.runs and step.session == "data_gen" for step in steps):
        _check_input(config)
    if not any(step.runs for step in steps):
        return None
    # Relative, so that a project folder that was moved still has it.
    frozen = Request(freeze_config(config, relative_path(run_dir / "config")), first=request.first, only=request.only)
    write_plan(run_dir, make_plan(frozen, run_dir, fresh.with_config(frozen.load_settings())))
    write_record(run_dir, describe_launch(request, config))
    return run_dir


def _check_input(config: DistillConfig) -> None:
    """Refuse raw data that cannot be read before any session starts; print whose answers are used."""
    from nexa_distill.canonicalize import preview_input

    for _ in preview_input(config):
        pass
    if line := describe_answers(config):
        print(line, file=sys.stderr)


def sweep_orphans(logs: Path) -> None:
    if count := orphans.stop_orphans(logs):
        print(f"Stopped {count} orphaned stage processes.", file=sys.stderr)


def watch_run(run_dir: Path, config: DistillConfig, out: TextIO = sys.stdout) -> int:
    """Show the run until every session has ended, then the summary. Returns the run's code."""
    names, record = planned_sessions(run_dir), read_record(run_dir)
    prefix, named = (f"{record.name}/", f" --name {record.name}") if record and record.name else ("", "")
    print(f"Run {run_dir.name}, logs in {relative_path(run_dir)}", file=out)
    if running_sessions(run_dir):
        print(
            f"Ctrl-C closes this view, and the sessions keep running: `tmux attach -t {prefix}{names[-1]}` shows one, "
            f"`{LAUNCHER} --status{named}` shows all, `{LAUNCHER} --stop{named}` stops them.",
            file=out,
            flush=True,
        )
    window = Window(out, (run_dir / "plan").stat().st_mtime, usual_seconds(run_dir))
    try:
        while True:
            states = [read_session(run_dir, name) for name in names]
            window.show_states(states)
            if all(state.code is not None for state in states):
                break
            time.sleep(POLL_SECONDS)
    except (KeyboardInterrupt, cli.StopSignal) as stop:
        running = running_sessions(run_dir)
        attach = f"`tmux attach -t {prefix}{running[0]}` shows one, " if running else ""
        print(
            f"\nThe sessions keep running. {attach}`{LAUNCHER} --status{named}` shows all, "
            f"`{LAUNCHER} --stop{named}` stops them.",
            file=out,
            flush=True,
        )
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    lines = ["", *describe_failures(run_dir, states), *describe_summary(config, names)]
    print("\n".join(wrap_lines(lines, out)), file=out, flush=True)
    return exit_code(states)


def describe_status(config: DistillConfig, *, any_root: bool = False) -> Iterator[str]:
    """The newest run of this `storage.root`, or of `any_root`, with its own settings."""
    run_dir = latest_run(Path(config.storage.logs).resolve(), None if any_root else config.storage.root)
    if run_dir is None:
        yield f"Nothing has run yet; `{LAUNCHER}` starts."
    else:
        states = [read_session(run_dir, name) for name in planned_sessions(run_dir)]
        record, frozen = read_record(run_dir), frozen_config_path(run_dir)
        yield f"Run {run_dir.name}" + (f" of {record.root}, settings {record.config}" if record else "")
        yield from map(session_line, states)
        yield from describe_failures(run_dir, states)
        config = load_config(frozen) if frozen and any_root else config
    yield ""
    yield from describe_summary(config)


def describe_summary(config: DistillConfig, sessions: Sequence[str] = SESSIONS) -> Iterator[str]:
    """The stages of these sessions, costs, and the report's headline."""
    yield f"{'stage':<20} {'rows in':>8} {'kept':>8} {'rejected':>8} {'seconds':>8} {'US$':>8}"
    for stage in (stage for stage in STAGES if stage.session in sessions):
        manifest = load_manifest(locate_path(stage.outputs[0], config), config.storage)
        if manifest is None:
            yield f"{stage.name:<20} {'not made yet':>17}"
            continue
        cost = "" if manifest["cost_usd"] is None else f"{manifest['cost_usd']:.4f}"
        rows = " ".join(f"{manifest[key]:>8}" for key in ("rows_in", "kept", "rejected"))
        yield f"{stage.name:<20} {rows} {manifest['seconds']:>8.1f} {cost:>8}".rstrip()
    if paid := list(summary_lines(build_cost_report(config))):
        yield from ("", *paid)
    yield from _report_headline(config.storage)


def _report_headline(storage: Storage) -> Iterator[str]:
    report = storage.path_of("evaluation_report")
    try:
        evaluation = json.loads(report.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        yield f"{report} cannot be read: {error}"
        return
    yield ""
    if "headline" in evaluation:
        yield from evaluation["headline"]
    yield f"Report: {report} (and .md, .html beside it)"


def _build_parser() -> argparse.ArgumentParser:
    parser = cli.build_parser(__doc__)
    parser.set_defaults(config=None)  # the run's own settings, or the file that ships
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("plan", "prepare", "status", "verify", "summary", "watch", "sweep", "runs", "compare"):
        command = commands.add_parser(name)
        command.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="settings")
        command.add_argument("--name", metavar="NAME", help="the run of this name")
        if name == "watch":
            command.add_argument("run_dir", type=Path)
        if name == "compare":
            command.add_argument("first", metavar="A", help="a run's name, as `runs` lists it")
            command.add_argument("second", metavar="B")
        if name == "plan":
            command.add_argument(
                "--target", type=cli.positive_int, metavar="N", help="tokens, hours, cost of N samples"
            )
        if name in ("plan", "prepare"):
            _add_launch_options(command)
    return parser


def _add_launch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--input", type=Path, metavar="PATH", help="raw data")
    cli.add_task_option(command)
    command.add_argument("--limit", type=cli.positive_int, metavar="N", help="first N raw rows")
    cli.add_server_options(command)
    command.add_argument("--answers", type=Path, metavar="FILE", help="existing answers")
    command.add_argument("--from", dest="first", metavar="STAGE", help="this and after")
    command.add_argument("--only", metavar="STAGE", help="this alone")
    command.add_argument("--replace", action="store_true", help="replace a finished student")


def _config_path(args: argparse.Namespace) -> Path:
    frozen = frozen_path(args.name) if args.name else None
    return args.config or frozen or cli.DEFAULT_CONFIG


def _load_settings(args: argparse.Namespace) -> DistillConfig:
    return with_name(load_config(_config_path(args)), args.name)


def _build_request(args: argparse.Namespace) -> Request:
    return Request(
        _config_path(args),
        args.input,
        args.limit,
        args.provider,
        args.first,
        args.only,
        args.answers,
        args.server_url,
        args.server_model,
        args.name,
        args.task,
    )


def main() -> int:
    """Returns the exit code; `watch` returns the run's."""
    args = _build_parser().parse_args()
    match args.command:
        case "plan":
            print("\n".join(describe_plan(_build_request(args))))
            if args.target:
                print("\n".join(("", *target_lines(_build_request(args).load_settings(), args.target))))
        case "prepare":
            print(prepare_run(_build_request(args), replace=args.replace) or "", end="")
        case "watch":
            return watch_run(args.run_dir, load_config(frozen_config_path(args.run_dir) or _config_path(args)))
        case "status":
            print("\n".join(describe_status(_load_settings(args), any_root=not (args.config or args.name))))
        case "sweep":
            named = [] if args.name else RUNS.glob("*/logs")
            for logs in (Path(_load_settings(args).storage.logs), *named):
                sweep_orphans(logs)
        case "summary":
            print("\n".join(describe_summary(_load_settings(args))))
        case "runs":
            print("\n".join(run_lines(main_logs(_load_settings(args)))))
        case "compare":
            names, logs = (args.first, args.second), main_logs(_load_settings(args))
            reports = [load_report(name, logs) for name in names]
            from nexa_distill.reporting.run_comparison import comparison_lines

            print("\n".join(comparison_lines(names, (reports[0], reports[1]))))
        case _:
            for line in verify_chain(_load_settings(args)):
                print(line, flush=True)
            print("All hashes verified.")
    return 0


if __name__ == "__main__":
    cli.run(main)
