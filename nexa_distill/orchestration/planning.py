"""What a launch would run: per session run or skip, why, and the command."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputMissing, UsageError
from nexa_distill.orchestration.freshness import Freshness
from nexa_distill.orchestration.stages import INSPECT, SESSIONS, STAGES, TEACHER, session_of
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.yaml_loading import load_yaml


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; null = as the configuration says."""

    config: Path
    input: Path | None = None
    limit: int | None = None
    provider: str | None = None
    first: str | None = None
    only: str | None = None
    answers: Path | None = None

    def load(self) -> DistillConfig:
        """The configuration with the flags laid over it."""
        over: dict[str, Any] = {"input": {}}
        if self.input is not None:
            over["input"]["path"] = str(self.input)
        if self.limit is not None:
            over["input"]["limit"] = self.limit
        if self.provider is not None:
            over["provider"] = self.provider
        if self.answers is not None:
            over["answers"] = {"path": str(self.answers)}
        return load_yaml(self.config, DistillConfig, over)


@dataclass(frozen=True)
class Step:
    """One session of a plan. `after`: the session whose success it waits for; `ready_by` and
    `ready_file`: the server session it uses and the file that server writes when it is healthy.
    """

    session: str
    runs: bool
    why: str
    command: list[str]
    after: str = ""
    ready_by: str = ""
    ready_file: str = ""


def make_plan(request: Request, run_dir: Path, fresh: Freshness | None = None) -> list[Step]:
    """Per session, in order: run or skip, why, and the command.

    Doubt runs: a stage that is up to date after all says so in a second. Raises InputMissing when
    the raw input is needed and absent, InputError for a bad setting of a stage that is asked for.
    """
    fresh = fresh or Freshness(request.load())
    config, upstream, steps = fresh.config, "", list[Step]()
    config.refuse_models_not_served()
    _, provider = config.chosen_provider()
    named, chosen = _chosen_sessions(request)
    if named == INSPECT:
        command = session_command(INSPECT, config, request)
        return [Step(INSPECT, runs=True, why="asked for by name", command=command)]
    for session in SESSIONS:
        command = session_command(session, config, request)
        why = _why(session, chosen, named, fresh, upstream)
        step = Step(session, why.runs, why.text, command, upstream)
        if session == "data_gen" and provider.start is not None and not config.answers.path:
            endpoint = str(provider.endpoint_file)
            steps.append(_teacher(why.stale, provider.start, endpoint, run_dir / "data_gen.exit"))
            if why.stale:
                step = replace(step, ready_by=TEACHER, ready_file=endpoint)
        upstream = session if step.runs else upstream
        steps.append(step)
    return steps


@dataclass(frozen=True)
class _Why:
    runs: bool
    text: str
    stale: bool = False


def _why(
    session: str, chosen: tuple[str, ...], named: str | None, fresh: Freshness, upstream: str
) -> _Why:
    if session not in chosen:
        return _Why(False, "not asked for")
    raw = Path(fresh.config.input.path)
    if session == "data_gen" and not raw.exists():
        raise InputMissing(f"{raw}: no such input; set input.path or pass --input PATH")
    stale = (why for s in STAGES if s.session == session if (why := fresh.why_run(s)))
    if why := next(stale, None):
        return _Why(True, why, stale=True)
    if session == named:
        return _Why(True, "asked for by name; up to date")
    return _Why(True, f"upstream runs ({upstream})") if upstream else _Why(False, "up to date")


def _teacher(needed: bool, start: list[str], endpoint: str, until: Path) -> Step:
    """The server beside data_gen: it ends when data_gen has ended, whatever its code."""
    command = [*start, "--endpoint-file", endpoint, "--until", str(until)]
    return Step(TEACHER, needed, f"data_gen {'needs' if needed else 'does not need'} it", command)


def session_command(session: str, config: DistillConfig, request: Request) -> list[str]:
    """The command that runs a session's stages, as a person would type it."""
    with_config = ["--config", str(request.config)]
    match session:
        case "data_gen":
            flags = {
                "--input": request.input,
                "--limit": request.limit,
                "--provider": request.provider,
                "--answers": request.answers,
            }
            given = [str(word) for flag, v in flags.items() if v is not None for word in (flag, v)]
            script = "scripts/python/data_processing/run_full_data_gen.py"
            return ["python", script, *with_config, *given]
        case "filtering":
            return ["python", "scripts/python/data_processing/run_filtering.py", *with_config]
        case "regeneration":
            flags = {"--provider": request.provider, "--answers": request.answers}
            given = [str(word) for flag, v in flags.items() if v is not None for word in (flag, v)]
            script = "scripts/python/data_processing/run_regeneration.py"
            return ["python", script, *with_config, *given]
        case "packaging":
            return ["python", "scripts/python/deployment/run_packaging.py", *with_config]
        case "training":
            script = "scripts/shell/training/run_training.sh"
            return [
                "bash",
                script,
                config.student,
                "false",
                "--pipeline-config",
                str(request.config),
            ]
        case "inspect":
            room = ["nexa_distill/ui_inspect.py", "--server.address", "127.0.0.1"]
            return ["streamlit", "run", *room, "--", *with_config]
        case _:
            return ["python", "scripts/python/evaluation/run_evaluation.py", *with_config]


def _chosen_sessions(request: Request) -> tuple[str | None, tuple[str, ...]]:
    """The session that was asked for by name, if any, and those that may run."""
    if request.first and request.only:
        raise UsageError("--from and --only exclude each other: give one of them")
    if request.only:
        only = session_of(request.only)
        return only, (only,)
    if request.first:
        first = session_of(request.first)
        if first == INSPECT:
            raise UsageError("inspect stands beside the pipeline: start it with --only inspect")
        return first, SESSIONS[SESSIONS.index(first) :]
    return None, SESSIONS


def plan_lines(steps: list[Step], *, commands: bool = True) -> list[str]:
    """The plan for a person."""
    lines = []
    for step in steps:
        lines.append(f"{step.session:<11} {'run ' if step.runs else 'skip'}  {step.why}")
        if step.runs and commands:
            lines.append(f"{'':<11}       $ {shlex.join(step.command)}")
    return lines
