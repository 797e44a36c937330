"""The order of the work: stages, the sessions that run them, what each reads and writes.

`STAGES` is the one home of the order and of the session names. Paths are `storage:` keys; two are
not: `RAW` is `input.path`, `CHECKPOINT` the trained student.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nexa_distill.collection.answers.extraction import cleaner_of
from nexa_distill.errors import UsageError, did_you_mean
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml

RAW = "input.path"
CHECKPOINT = "checkpoint"
TEACHER = "teacher"


@dataclass(frozen=True)
class Stage:
    """One stage. `optional` inputs count when they exist.

    `module` is the module of `nexa_distill` whose `settings(config)` decide the output. A student
    stage has `student` instead; with neither, nothing but the inputs decides.
    """

    name: str
    session: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str | None = None
    student: Callable[[DistillConfig, StudentConfig], dict[str, Any]] | None = None
    optional: tuple[str, ...] = ()


def _training(_config: DistillConfig, student: StudentConfig) -> dict[str, Any]:
    return student.training_settings()


def _generation(config: DistillConfig, student: StudentConfig) -> dict[str, Any]:
    return student.generation_settings(config, cleaner_of(config).settings)


STAGES = (
    Stage("canonicalize", "data_gen", (RAW,), ("canonical",), "canonicalize"),
    Stage("dedup", "data_gen", ("canonical",), ("raw_dataset", "rejected_inputs"), "dedup"),
    Stage("teacher", "data_gen", ("raw_dataset",), ("collected_dataset", "unanswered"),
          "collect_teacher"),
    Stage("rules", "filtering", ("collected_dataset",), ("rule_filtered", "rules_checks"),
          "filter_pairs", optional=("regen_dataset",)),
    Stage("exec", "filtering", ("rule_filtered",), ("exec_checks",), "exec_gate"),
    Stage("judge", "filtering", ("rule_filtered",), ("judge_checks", "judge_canaries"), "judge",
          optional=("exec_checks",)),
    Stage("person", "filtering", ("collected_dataset",), ("person_checks",), "person_checks",
          optional=("regen_dataset", "annotations")),
    Stage("sample_gate", "filtering", ("collected_dataset", "rules_checks"),
          ("filtered_dataset", "rejections"), "sample_gate",
          optional=("regen_dataset", "exec_checks", "judge_checks", "judge_canaries",
                    "person_checks")),
    # What it reads of the gates' tables is among its settings: see docs/adr/0014.
    Stage("regenerate", "regeneration", ("collected_dataset",), ("regen_dataset",),
          "regenerate_bad"),
    Stage("packaging", "packaging", ("filtered_dataset",),
          ("sft_parquet", "sft_jsonl", "splits"), "to_sft"),
    Stage("train", "training", ("sft_parquet",), (CHECKPOINT,), student=_training),
    Stage("student_gen.baseline", "evaluation", ("raw_dataset",), ("baseline_outputs",),
          student=_generation),
    Stage("student_gen", "evaluation", ("raw_dataset", CHECKPOINT), ("student_outputs",),
          student=_generation),
    # Every setting that the report depends on decides an earlier stage too.
    Stage("evaluation", "evaluation", ("student_outputs", "baseline_outputs"),
          ("evaluation_report",)),
)  # fmt: skip

SESSIONS = tuple(dict.fromkeys(stage.session for stage in STAGES))
INSPECT = (
    "inspect"  # a session for people: it writes no table, and runs only when asked for by name
)


def locate(key: str, config: DistillConfig) -> Path:
    """The path of a `storage:` key, of `RAW` or of `CHECKPOINT`."""
    if key == RAW:
        return Path(config.input.path)
    if key == CHECKPOINT:
        return load_yaml(Path(config.student), StudentConfig).checkpoint(config.storage)
    return config.storage.path(key)


def settings(stage: Stage, config: DistillConfig) -> dict[str, Any] | None:
    """The values that decide the stage's output, next to its inputs."""
    if stage.student is not None:
        return stage.student(config, load_yaml(Path(config.student), StudentConfig))
    if stage.module is None:
        return None
    found: dict[str, Any] = import_module(f"nexa_distill.{stage.module}").settings(config)
    return found


def session_of(name: str) -> str:
    """The session of a session's or a stage's name. Raises UsageError naming the nearest."""
    if name in (*SESSIONS, INSPECT):
        return name
    for stage in STAGES:
        if stage.name == name:
            return stage.session
    known = list(dict.fromkeys([*SESSIONS, INSPECT, *(stage.name for stage in STAGES)]))
    raise UsageError(f'no stage "{name}"{did_you_mean(name, known)}; known: {", ".join(known)}')
