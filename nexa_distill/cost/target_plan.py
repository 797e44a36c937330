"""Plan a distillation of N samples: tokens, hours and dollars, with figures measured on the run so far.

`ORIGINS` has the formulas. All N samples are taken as trained on. What was not measured is None, and
so is what depends on it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nexa_distill.cost.cost_report import TEACHERS, build_cost_report
from nexa_distill.cost.cost_report_text import format_figure
from nexa_distill.cost.spending import Figures, safe_ratio, sum_complete, sum_known
from nexa_distill.reporting.training_curve import read_metrics, step_seconds
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.manifests import load_manifest

HOUR = 3600.0
# The time of the stages that ask a model is in their journals, of all runs; of these it is in the manifests.
FREE_STAGES = (
    "canonical", "raw_dataset", "rule_filtered", "exec_checks", "person_checks", "filtered_dataset", "sft_parquet",
)  # fmt: skip
EVALUATION = ("baseline_outputs", "student_outputs", "evaluation_report")
# By figure: its formula, setting or measurement.
ORIGINS = {
    "target_samples": "--target",
    "samples_per_step": "train.batch_size * train.gradient_accumulation",
    "target_steps": "target_samples / samples_per_step, of one epoch",
    "tokens_per_step": "answer tokens of a kept sample (cost report) * samples_per_step",
    "distilled_tokens": "target_steps * tokens_per_step",
    "teacher_tokens_multiplier": "teacher tokens / distilled tokens so far (cost report)",
    "teacher_tokens": "distilled_tokens * teacher_tokens_multiplier",
    "price_per_token": "dollars / teacher tokens so far (journals), discounts included",
    "pipeline_kept_samples_per_hour": "kept samples / hours of data_gen to packaging (journals, manifests)",
    "wall_hours": "target_samples / pipeline_kept_samples_per_hour",
    "training_hours": "target_steps * train.epochs * seconds of a step (metrics.jsonl)",
    "evaluation_hours": "the last evaluation (manifests); its prompts do not grow with the target",
    "machine_usd_per_hour": "budget.machine_usd_per_hour",
    "teacher_api_cost": "teacher_tokens * price_per_token",
    "student_training_cost": "training_hours * machine_usd_per_hour",
    "eval_cost": "evaluation_hours * machine_usd_per_hour",
    "total_cost": "teacher_api_cost + student_training_cost + eval_cost",
}


@dataclass(frozen=True)
class RunFigures:
    """Measured on the files of the run so far; None = not measured."""

    tokens_per_sample: float | None  # completion tokens of a kept answer, mean
    teacher_tokens_multiplier: float | None
    price_per_token: float | None  # US dollars; None if an answer has no price
    kept_samples_per_hour: float | None
    seconds_per_step: float | None  # of an optimizer step
    evaluation_hours: float | None


def measure_run(config: DistillConfig, student: StudentConfig) -> RunFigures:
    report, storage = build_cost_report(config), config.storage
    steps = step_seconds(read_metrics(student.metrics_path(storage)))
    kept, total = report["kept"] or {}, report["total"]
    samples, uncounted = kept.get("kept_samples"), kept.get("samples_without_token_counts", 0)
    seconds = sum_known([total["seconds"], *_manifest_seconds(storage, FREE_STAGES)])
    evaluation = sum_complete(_manifest_seconds(storage, EVALUATION))
    return RunFigures(
        tokens_per_sample=safe_ratio(kept.get("tokens"), samples and samples - uncounted),
        teacher_tokens_multiplier=safe_ratio(total["teacher_tokens"], total["distilled_tokens"]),
        price_per_token=safe_ratio(_teacher_usd(report["stages"]), total["teacher_tokens"]),
        kept_samples_per_hour=safe_ratio(samples, safe_ratio(seconds, HOUR)),
        seconds_per_step=safe_ratio(sum(steps), len(steps)),
        evaluation_hours=safe_ratio(evaluation, HOUR),
    )


def _manifest_seconds(storage: Storage, keys: tuple[str, ...]) -> list[float | None]:
    manifests = (load_manifest(storage.path_of(key), storage) for key in keys)
    return [manifest["seconds"] if manifest else None for manifest in manifests]


def _teacher_usd(stages: Mapping[str, Figures]) -> float | None:
    teachers = [stages[name] for name in TEACHERS if name in stages]
    is_priced = not any(figures["answers_without_price"] for figures in teachers)
    usd: float | None = sum_known(figures["usd"] for figures in teachers) if is_priced else None
    return usd


def plan_target(config: DistillConfig, target: int) -> dict[str, float | None]:
    """Figures by name, in the order of ORIGINS."""
    student = load_yaml(Path(config.student), StudentConfig)
    run, train, rate = measure_run(config, student), student.train, config.budget.machine_usd_per_hour
    per_step = train.batch_size * train.gradient_accumulation
    steps = math.ceil(target / per_step)
    distilled = multiply_known(steps, per_step, run.tokens_per_sample)
    teacher = multiply_known(distilled, run.teacher_tokens_multiplier)
    training = multiply_known(steps, train.epochs, run.seconds_per_step, 1 / HOUR)
    costs = {
        "teacher_api_cost": multiply_known(teacher, run.price_per_token),
        "student_training_cost": multiply_known(training, rate),
        "eval_cost": multiply_known(run.evaluation_hours, rate),
    }
    return {
        "target_samples": target,
        "samples_per_step": per_step,
        "target_steps": steps,
        "tokens_per_step": multiply_known(per_step, run.tokens_per_sample),
        "distilled_tokens": distilled,
        "teacher_tokens_multiplier": run.teacher_tokens_multiplier,
        "teacher_tokens": teacher,
        "price_per_token": run.price_per_token,
        "pipeline_kept_samples_per_hour": run.kept_samples_per_hour,
        "wall_hours": safe_ratio(target, run.kept_samples_per_hour),
        "training_hours": training,
        "evaluation_hours": run.evaluation_hours,
        "machine_usd_per_hour": rate,
        **costs,
        "total_cost": sum_complete(costs.values()),
    }


def multiply_known(*values: float | None) -> float | None:
    """The product; None if one of them is None."""
    known = [value for value in values if value is not None]
    return math.prod(known) if len(known) == len(values) else None


def target_lines(config: DistillConfig, target: int) -> Iterator[str]:
    """The plan as text: name, figure, origin."""
    yield f"a distillation of {target:,} samples:"
    for name, value in plan_target(config, target).items():
        yield f"  {name:<31} {_format_value(name, value):>14}  {ORIGINS[name]}"


def _format_value(name: str, value: float | None) -> str:
    if value is not None and name == "price_per_token":
        return f"${value:.3g}"
    if value is not None and (name.endswith("_hours") or name == "teacher_tokens_multiplier"):
        return f"{value:,.2f}"
    kind = "usd" if name.endswith("_cost") or "usd" in name else name
    return format_figure(kind, round(value) if value is not None and name.endswith("_tokens") else value)
