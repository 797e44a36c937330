"""The whole pipeline: what would run and why, what is running, and whether the result is whole.

    python -m nexa_distill.pipeline plan      per session: run or skip, why; what the teacher costs
    python -m nexa_distill.pipeline status    the newest run, and what is sealed on disk
    python -m nexa_distill.pipeline verify    every hash from the raw file to the checkpoint
    python -m nexa_distill.pipeline summary   rows kept per stage, cost, the report's headline

`verify` exits with 0 when the chain is whole and with 66 at its first broken link. The launcher
uses three more: `prepare` makes a run's folder with the plan in it and prints its path (nothing
when all is up to date); `watch RUN_DIR` shows a run until it ends and exits with its code; `sweep`
ends stages whose session is gone.
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from nexa_distill.collection.capabilities import plan_line
from nexa_distill.console import cli
from nexa_distill.cost.cost_report import cost_report
from nexa_distill.cost.cost_report_text import headline
from nexa_distill.errors import Locked, NexaError
from nexa_distill.orchestration import orphans
from nexa_distill.orchestration.freshness import Freshness, verify_chain
from nexa_distill.orchestration.planning import Request, make_plan, plan_lines
from nexa_distill.orchestration.run_folder import (
    SessionState,
    exit_code,
    failures,
    latest_run,
    new_run_dir,
    planned_sessions,
    read_session,
    running_sessions,
    write_plan,
)
from nexa_distill.orchestration.stages import STAGES, locate
from nexa_distill.settings.pipeline import DistillConfig, Storage, load_config
from nexa_distill.storage.manifests import load_manifest

POLL_SECONDS = 0.3
PLANNED_REQUESTS = 50_000  # a plan is quick: of more, it counts none
LAUNCHER = "bash launch_pipeline.sh"


class DistillationPipeline:
    """The data side in Python. Each method runs its stages; one that is up to date does nothing."""

    def __init__(self, config_path: Path | str | None = None) -> None:
        self.config_path = Path(config_path or cli.DEFAULT_CONFIG)
        self.config: DistillConfig = load_config(self.config_path)

    def collect_teacher(self) -> None:
        """Raw data to teacher answers. Writes raw_dataset and collected_dataset."""
        from nexa_distill import gates

        gates.collect(self.config)

    def filter_teacher(self) -> None:
        """Rules, execution, judges, people, SampleGate: filtered_dataset, rejections."""
        from nexa_distill import gates

        gates.pass_gates(self.config)

    def regenerate(self) -> None:
        """Ask again for rejected answers, round by round, each through the same gates.

        Writes regen_dataset and what `filter_teacher` writes.
        """
        from nexa_distill import gates

        gates.repair(self.config)

    def package_sft(self) -> None:
        """Filtered answers to training samples. Writes sft_parquet, sft_jsonl and splits."""
        from nexa_distill import gates, to_sft

        gates.apply_decisions(self.config)
        to_sft.run(self.config)

    def plan_cli_commands(self) -> list[str]:
        """The commands of the sessions that would run now, in order, as a person types them."""
        steps = make_plan(Request(self.config_path), new_run_dir(Path(self.config.storage.logs)))
        return [shlex.join(step.command) for step in steps if step.runs]


def plan(request: Request) -> Iterator[str]:
    """What a launch would run, and what its teacher would be asked and cost. Sends nothing."""
    fresh = Freshness(request.load())
    logs = Path(fresh.config.storage.logs)
    steps = make_plan(request, new_run_dir(logs), fresh)
    yield from plan_lines(steps)
    asks = not fresh.config.answers.path
    if asks and any(step.session == "data_gen" and step.runs for step in steps):
        yield f"teacher: {_capable(fresh.config)}"
        yield from (f"teacher: {line}" for line in _asking(fresh))
    if any(step.session == "filtering" and step.runs for step in steps):
        yield from (f"judge: {line}" for line in _judging(fresh))
    if any(step.session == "regeneration" and step.runs for step in steps):
        yield from (f"regeneration: {line}" for line in _repairing(fresh))


def _capable(config: DistillConfig) -> str:
    from nexa_distill.collect_teacher import teacher_model

    return plan_line(config, config.chosen_provider()[0], teacher_model(config))


def _asking(fresh: Freshness) -> Iterator[str]:
    from nexa_distill import collect_teacher
    from nexa_distill.cost.estimate_text import estimate_lines

    stale = {stage.name for stage in STAGES if stage.session == "data_gen" and fresh.why_run(stage)}
    if before := sorted(stale - {"teacher"}):
        yield f"what it is asked and costs is known after {' and '.join(before)}"
    elif stale:
        try:
            prompts = fresh.config.storage.path("raw_dataset")
            collector = collect_teacher.collector_of(fresh.config, prompts)
            if collector.total <= PLANNED_REQUESTS:
                yield from estimate_lines(collector)
            else:
                command = "python -m nexa_distill.collect_teacher --estimate"
                yield f"up to {collector.total:,} requests; `{command}` counts them"
        except NexaError as error:
            yield f"no estimate: {error}"


def _judging(fresh: Freshness) -> Iterator[str]:
    """What the judges are asked, as far as that is known before the answers are filtered."""
    from nexa_distill import judge
    from nexa_distill.cost.estimate_text import estimate_lines
    from nexa_distill.judging.candidates import submissions
    from nexa_distill.judging.clients import panel_of

    config, before = fresh.config, STAGES[: [stage.name for stage in STAGES].index("judge")]
    if not config.judging.judges or not fresh.why_run(STAGES[len(before)]):
        return
    if stale := [stage.name for stage in before if fresh.why_run(stage)]:
        yield f"what {len(config.judging.judges)} judges cost is known after {' and '.join(stale)}"
        return
    try:
        given = submissions(
            config.storage.path("rule_filtered"),
            config.judging.canary_prompts,
            judge.exec_checks(config),
        )
        for collector in panel_of(config, given).judges:
            yield from estimate_lines(collector)
    except NexaError as error:
        yield f"no estimate: {error}"


def _repairing(fresh: Freshness) -> Iterator[str]:
    """What is asked again; known once the gates have judged the answers that are there."""
    from nexa_distill import regenerate_bad
    from nexa_distill.cost.estimate_text import estimate_lines
    from nexa_distill.repair.plan import make_plan

    gated = [stage for stage in STAGES if stage.session in ("data_gen", "filtering")]
    if fresh.config.answers.path:
        return
    if any(fresh.why_run(stage) for stage in gated):
        yield "what is asked again is known after filtering"
        return
    try:
        for collector, _ in regenerate_bad.Asking(fresh.config, make_plan(fresh.config)).rounds:
            yield from estimate_lines(collector)
    except NexaError as error:
        yield f"no estimate: {error}"


def prepare(request: Request) -> Path | None:
    """Make the folder of a new run with its plan, or None when everything is up to date.

    Raises Locked (75) while the newest run goes on.
    """
    logs = Path(request.load().storage.logs).resolve()
    before = latest_run(logs)
    if going := running_sessions(before):
        raise Locked(
            f"a run of this project goes on: {', '.join(going)} ({before}). "
            f"`{LAUNCHER} --status` shows it, `{LAUNCHER} --stop` stops it"
        )
    sweep(logs)
    run_dir = new_run_dir(logs)
    steps = make_plan(request, run_dir)
    print("\n".join(plan_lines(steps, commands=False)), file=sys.stderr)
    if not any(step.runs for step in steps):
        return None
    write_plan(run_dir, steps)
    return run_dir


def sweep(logs: Path) -> None:
    """End what a killed session left behind."""
    if ended := orphans.end(logs):
        print(f"Ended {ended} stage processes that no session held any more.", file=sys.stderr)


def watch(run_dir: Path, config: DistillConfig, out: TextIO = sys.stdout) -> int:
    """Show the run until every session has ended, then the summary. Returns the run's code."""
    names, shown = planned_sessions(run_dir), list[str]()
    print(f"Run {run_dir.name}, logs in {run_dir}", file=out, flush=True)
    try:
        while True:
            states = [read_session(run_dir, name) for name in names]
            shown = _show(states, shown, out)
            if all(state.code is not None for state in states):
                break
            time.sleep(POLL_SECONDS)
    except (KeyboardInterrupt, cli.Stopped) as stop:
        going = running_sessions(run_dir)
        attach = f"`tmux attach -t {going[0]}` shows one, " if going else ""
        print(
            f"\nThe sessions go on without this window. {attach}`{LAUNCHER} --status` shows all, "
            f"`{LAUNCHER} --stop` stops them.",
            file=out,
            flush=True,
        )
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    print("\n".join(["", *failures(run_dir, states), *summary(config)]), file=out, flush=True)
    return exit_code(states)


def _show(states: list[SessionState], shown: list[str], out: TextIO) -> list[str]:
    """Redraw in place on a terminal; elsewhere one line whenever a state or a step changes."""
    if out.isatty():
        width = shutil.get_terminal_size().columns - 1
        up = f"\x1b[{len(shown)}A" if shown else ""
        lines = [state.line()[:width] for state in states]
        print(up + "".join(f"\x1b[2K{line}\n" for line in lines), end="", file=out, flush=True)
        return lines
    keys = [f"{state.name} {state.state} {state.step}" for state in states]
    for key, state in zip(keys, states, strict=True):
        if key not in shown and state.state != "waiting":
            print(state.line(), file=out, flush=True)
    return keys


def status(config: DistillConfig) -> Iterator[str]:
    """The newest run's sessions, then what is sealed on disk."""
    run_dir = latest_run(Path(config.storage.logs).resolve())
    if run_dir is None:
        yield f"Nothing has run yet; `{LAUNCHER}` starts."
    else:
        states = [read_session(run_dir, name) for name in planned_sessions(run_dir)]
        yield f"Run {run_dir.name}"
        yield from (state.line() for state in states)
        yield from failures(run_dir, states)
    yield ""
    yield from summary(config)


def summary(config: DistillConfig) -> Iterator[str]:
    """Rows and cost of every sealed stage, what was spent in all, and the report's headline."""
    yield f"{'stage':<20} {'rows in':>8} {'kept':>8} {'rejected':>8} {'seconds':>8} {'US$':>8}"
    for stage in STAGES:
        manifest = load_manifest(locate(stage.outputs[0], config), config.storage)
        if manifest is None:
            yield f"{stage.name:<20} {'not made yet':>17}"
            continue
        cost = "" if manifest["cost_usd"] is None else f"{manifest['cost_usd']:.4f}"
        rows = " ".join(f"{manifest[key]:>8}" for key in ("rows_in", "kept", "rejected"))
        yield f"{stage.name:<20} {rows} {manifest['seconds']:>8.1f} {cost:>8}".rstrip()
    if paid := list(headline(cost_report(config))):
        yield from ("", *paid)
    yield from _headline(config.storage)


def _headline(storage: Storage) -> Iterator[str]:
    report = storage.path("evaluation_report")
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        yield f"{report} cannot be read: {error}"
        return
    yield ""
    if "headline" in found:
        yield from found["headline"]
    yield f"Report: {report} (and .md, .html beside it)"


def _parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    commands = made.add_subparsers(dest="command", required=True)
    for name in ("plan", "prepare", "status", "verify", "summary", "watch", "sweep"):
        command = commands.add_parser(name)
        command.add_argument(
            "--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="settings"
        )
        if name == "watch":
            command.add_argument("run_dir", type=Path)
        if name in ("plan", "prepare"):
            command.add_argument("--input", type=Path, metavar="PATH", help="raw data")
            command.add_argument("--limit", type=int, metavar="N", help="first N raw rows")
            command.add_argument("--provider", metavar="NAME", help="one of providers:")
            command.add_argument("--answers", type=Path, metavar="FILE", help="existing answers")
            command.add_argument("--from", dest="first", metavar="STAGE", help="this and after")
            command.add_argument("--only", metavar="STAGE", help="this alone")
    return made


def _request(given: argparse.Namespace) -> Request:
    return Request(
        given.config,
        given.input,
        given.limit,
        given.provider,
        given.first,
        given.only,
        given.answers,
    )


def main() -> int:
    """Returns the exit code; `watch` returns the run's."""
    given = _parser().parse_args()
    if given.command == "plan":
        print("\n".join(plan(_request(given))))
        return 0
    if given.command == "prepare":
        run_dir = prepare(_request(given))
        print(run_dir or "", end="")
        return 0
    config = load_config(given.config)
    match given.command:
        case "watch":
            return watch(given.run_dir, config)
        case "status":
            print("\n".join(status(config)))
        case "sweep":
            sweep(Path(config.storage.logs))
        case "summary":
            print("\n".join(summary(config)))
        case _:
            for line in verify_chain(config):
                print(line, flush=True)
            print("The chain is whole.")
    return 0


if __name__ == "__main__":
    cli.run(main)
