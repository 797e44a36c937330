"""Plan a launch: per session run or skip, why, and the command."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from nexa_distill.errors import InputMissing, UsageError
from nexa_distill.orchestration.freshness import Freshness
from nexa_distill.orchestration.frozen_config import CONFIG_FILE
from nexa_distill.orchestration.named_runs import run_root, with_name
from nexa_distill.orchestration.stages import INSPECT, SESSIONS, STAGES, TEACHER, session_of
from nexa_distill.raw_data.input_reading import settle_input
from nexa_distill.settings.pipeline import (
    DistillConfig,
    load_config,
    task_flags,
    with_flags,
    with_server,
    without_answers_in_input,
)

# Session -> its command up to the configuration, and the flags of the launcher that it also gets.
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "data_gen": (
        "python scripts/python/data_processing/run_full_data_gen.py --config",
        ("input", "task", "limit", "provider", "base_url", "model", "answers"),
    ),
    "filtering": ("python scripts/python/data_processing/run_filtering.py --config", ()),
    "regeneration": (
        "python scripts/python/data_processing/run_regeneration.py --config",
        ("input", "provider", "base_url", "model", "answers"),
    ),
    "packaging": ("python scripts/python/deployment/run_packaging.py --config", ()),
    "training": ("bash scripts/shell/training/run_training.sh {student} false --pipeline-config", ()),
    "evaluation": ("python scripts/python/evaluation/run_evaluation.py --config", ()),
    INSPECT: ("streamlit run nexa_distill/ui_inspect.py --server.address 127.0.0.1 -- --config", ()),
}


@dataclass(frozen=True)
class Request:
    """The launcher's flags; None = as configured."""

    config: Path
    input: Path | None = None
    limit: int | None = None
    provider: str | None = None
    first: str | None = None
    only: str | None = None
    answers: Path | None = None
    base_url: str | None = None
    model: str | None = None
    name: str | None = None
    task: str | None = None

    def load_settings(self) -> DistillConfig:
        """The settings with the flags, and with what the raw data decides if it is to be read."""
        flags = {
            "input": {"path": self.input and str(self.input), "limit": self.limit},
            "defaults": task_flags(self.task),
            "provider": self.provider,
            "answers": {"path": self.answers and str(self.answers)},
        }
        config = with_server(with_flags(load_config(self.config), flags), self.base_url, self.model)
        if (self.provider or self.base_url or self.model) and not self.answers:
            config = without_answers_in_input(config)
        config = with_name(config, self.name)
        return settle_input(config) if "data_gen" in self.chosen_sessions else config

    @property
    def chosen_sessions(self) -> tuple[str, ...]:
        """The sessions that may run."""
        return _chosen_sessions(self)[1]


@dataclass(frozen=True)
class Step:
    """One session of a plan."""

    session: str
    runs: bool
    why: str
    command: list[str]
    after: str = ""  # the session whose success it waits for
    ready_by: str = ""  # the session that it serves
    ready_file: str = ""  # written by that session when it needs it (SERVER_WANTED)


def make_plan(request: Request, run_dir: Path, fresh: Freshness | None = None) -> list[Step]:
    """Per session, in order: run or skip, why, and the command.

    When in doubt, run the stage: it exits quickly if its outputs are current. Raises InputMissing
    if the raw input is needed and missing, InputError for a bad setting of a requested stage.
    """
    fresh = fresh or Freshness(request.load_settings())
    config, upstream, steps = fresh.config, "", list[Step]()
    config.refuse_models_not_served()
    _, provider = config.chosen_provider()
    named, chosen = _chosen_sessions(request)
    if named == INSPECT:
        command = session_command(INSPECT, config, request)
        return [Step(INSPECT, runs=True, why="requested by name", command=command)]
    for session in SESSIONS:
        command = session_command(session, config, request)
        why = _decide_step(session, chosen, named, fresh, upstream)
        step = Step(session, why.runs, why.text, command, upstream)
        if session == "data_gen" and provider.start is not None and not config.answers.path:
            # Not needed by a data_gen that is only requested by name: up to date, it sends nothing.
            steps.append(
                _teacher_step(why.stale, [*provider.start, "--endpoint-file", str(provider.endpoint_file)], run_dir)
            )
        # After a skipped session, the next one waits for the last that runs.
        upstream = session if step.runs else upstream
        steps.append(step)
    return steps


@dataclass(frozen=True)
class _StepDecision:
    runs: bool
    text: str
    stale: bool = False


def _decide_step(
    session: str, chosen: tuple[str, ...], named: str | None, fresh: Freshness, upstream: str
) -> _StepDecision:
    if session not in chosen:
        return _StepDecision(False, "not requested")
    raw = Path(fresh.config.input.path)
    if session == "data_gen" and not raw.exists():
        raise InputMissing(f"{raw}: no such input; set input.path or pass --input PATH")
    stale = (why for s in STAGES if s.session == session if (why := fresh.stale_reason(s)))
    if why := next(stale, None):
        return _StepDecision(True, why, stale=True)
    if session == named:
        return _StepDecision(True, "requested by name; up to date")
    return _StepDecision(True, f"upstream runs ({upstream})") if upstream else _StepDecision(False, "up to date")


def _teacher_step(needed: bool, start: list[str], run_dir: Path) -> Step:
    # The server starts with the first request, and ends when data_gen has an exit file, whatever the code in it.
    command = [*start, "--until", str(run_dir / "data_gen.exit")]
    why = "if a prompt has no answer yet" if needed else "data_gen does not need it"
    return Step(TEACHER, needed, why, command, ready_by="data_gen", ready_file=str(run_dir / f"{TEACHER}.wanted"))


def session_command(session: str, config: DistillConfig, request: Request) -> list[str]:
    command, flags = COMMANDS[session]
    words = [word.format(student=config.student) for word in command.split()]
    if request.name:  # its settings, with the flags in them, are written at launch
        return [*words, str(run_root(request.name) / "config" / CONFIG_FILE)]
    options = ((flag, value) for flag in flags if (value := getattr(request, flag)) is not None)
    flagged = (str(word) for flag, value in options for word in (f"--{flag.replace('_', '-')}", value))
    return [*words, str(request.config), *flagged]


def _chosen_sessions(request: Request) -> tuple[str | None, tuple[str, ...]]:
    """The session requested by name, if any, and those that may run."""
    if request.first and request.only:
        raise UsageError("--from and --only exclude each other: give one of them")
    if request.only:
        only = session_of(request.only)
        return only, (only,)
    if request.first:
        first = session_of(request.first)
        if first == INSPECT:
            raise UsageError("inspect is not part of the pipeline: start it with --only inspect")
        return first, SESSIONS[SESSIONS.index(first) :]
    return None, SESSIONS


def plan_lines(steps: list[Step], *, commands: bool = True) -> list[str]:
    lines = []
    for step in steps:
        lines.append(f"{step.session:<12} {'run ' if step.runs else 'skip'}  {step.why}")
        if step.runs and commands:
            lines.append(f"{'':<12}       $ {shlex.join(step.command)}")
    return lines
