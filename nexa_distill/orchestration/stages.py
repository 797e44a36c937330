"""The stages in order, with their sessions, inputs and outputs.

Paths are `storage:` keys, except `RAW` (`input.path`) and `CHECKPOINT` (the trained student).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nexa_distill.collection.answers.extraction import build_cleaner
from nexa_distill.errors import UsageError, did_you_mean
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml

RAW = "input.path"
CHECKPOINT = "checkpoint"
TEACHER = "teacher"


@dataclass(frozen=True)
class Stage:
    """One stage; with neither `module` nor `student`, only the inputs determine its output."""

    name: str
    session: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str | None = None  # of `nexa_distill`: its `settings(config)` determine the output
    # The same for a student stage.
    student: Callable[[DistillConfig, StudentConfig], dict[str, Any]] | None = None
    optional: tuple[str, ...] = ()  # inputs that count if they exist


def _generation_settings(config: DistillConfig, student: StudentConfig) -> dict[str, Any]:
    return student.generation_settings(config, build_cleaner(config).relevant_settings)


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
    # The plan, read from the gates' tables, is one of its settings: see docs/adr/0014.
    Stage("regenerate", "regeneration", ("collected_dataset",), ("regen_dataset",),
          "regenerate_bad"),
    Stage("packaging", "packaging", ("filtered_dataset",),
          ("sft_parquet", "sft_jsonl", "splits"), "to_sft"),
    Stage("train", "training", ("sft_parquet",), (CHECKPOINT,),
          student=lambda _, student: student.training_settings()),
    Stage("student_gen.baseline", "evaluation", ("raw_dataset",), ("baseline_outputs",),
          student=_generation_settings),
    Stage("student_gen", "evaluation", ("raw_dataset", CHECKPOINT), ("student_outputs",),
          student=_generation_settings),
    # Every setting that determines the report also determines an earlier stage.
    Stage("evaluation", "evaluation", ("student_outputs", "baseline_outputs"),
          ("evaluation_report",)),
)  # fmt: skip

SESSIONS = tuple(dict.fromkeys(stage.session for stage in STAGES))
INSPECT = "inspect"  # a session for annotators: writes no table, runs only if requested by name


def locate_path(key: str, config: DistillConfig) -> Path:
    if key == RAW:
        return Path(config.input.path)
    if key == CHECKPOINT:
        return load_yaml(Path(config.student), StudentConfig).checkpoint_path(config.storage)
    return config.storage.path_of(key)


def stage_settings(stage: Stage, config: DistillConfig) -> dict[str, Any] | None:
    if stage.student is not None:
        return stage.student(config, load_yaml(Path(config.student), StudentConfig))
    if stage.module is None:
        return None
    # By name, because a stage's module is above this one, and imports only go down.
    values: dict[str, Any] = import_module(f"nexa_distill.{stage.module}").settings(config)
    return values


def session_of(name: str) -> str:
    """The session with this name or with a stage of this name. Raises UsageError."""
    if name in (*SESSIONS, INSPECT):
        return name
    for stage in STAGES:
        if stage.name == name:
            return stage.session
    names = list(dict.fromkeys([*SESSIONS, INSPECT, *(stage.name for stage in STAGES)]))
    raise UsageError(f'no stage "{name}"{did_you_mean(name, names)}; known: {", ".join(names)}')
