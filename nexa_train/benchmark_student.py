"""Public benchmarks of the finished checkpoint, by lm-evaluation-harness.

Reads:  the sealed checkpoint; tasks of the harness, or of `--include-path`
Writes: `<storage.evaluation>/benchmarks.json`, sealed: per task its version, metrics with their
        standard errors, samples and few-shot examples; the version of the harness, the sha256 of
        the chat template and of the checkpoint, the limit, precision, and seeds
Keeps:  every number as the harness gives it; an unknown standard error is null
Raises: UsageError (2) without the harness or for an unknown task, InputMissing (66)

The harness is an extra (`pip install -e '.[benchmarks]'`). Its tasks are downloaded from the
Hugging Face hub, unless they name local files. Figures under `--limit` are for a trial only.

Run: python -m nexa_train.benchmark_student --tasks gsm8k,ifeval [--config FILE]
         [--pipeline-config FILE] [--checkpoint DIR] [--dst FILE] [--include-path DIR] [--limit N]
"""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nexa_distill.console import cli
from nexa_distill.errors import UsageError, did_you_mean
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig, load_both
from nexa_distill.storage.atomic import Json, write_json
from nexa_distill.storage.manifests import StageRun, run_id, utc_now
from nexa_distill.text.hashing import sha256_text

# The defaults of the harness, written down: a new version cannot change them unseen.
SEEDS = {"random_seed": 0} | dict.fromkeys(("numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 1234)


def harness_version() -> str:
    try:
        installed = version("lm-eval")
    except PackageNotFoundError:
        installed = ""
    # Metadata can outlive a removed package, so the module is looked up too.
    if not installed or find_spec("lm_eval") is None:
        raise UsageError(
            "lm-evaluation-harness is not installed; run `pip install -e '.[benchmarks]'` and the same command again"
        )
    return installed


def task_manager(tasks: Sequence[str], include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include) if include else None)
    for task in tasks:
        if task not in manager.all_tasks:
            near = did_you_mean(task, manager.all_tasks)
            raise UsageError(f'no task "{task}"{near}; `lm_eval ls tasks` lists them')
    return manager


def summarize_results(results: Mapping[str, Any]) -> Json:
    tasks = {}
    for task, values in results["results"].items():
        # The harness writes `metric,filter` and `metric_stderr,filter` side by side, and "N/A" for
        # an unknown error.
        errors = {key: value for key, value in values.items() if "_stderr," in key}
        metrics = {
            key: {
                "value": _finite_or_none(value),
                "stderr": _finite_or_none(errors.get(key.replace(",", "_stderr,", 1))),
            }
            for key, value in values.items()
            if "," in key and key not in errors
        }
        samples = results["n-samples"].get(task)
        tasks[task] = {
            "version": results["versions"].get(task),
            "n_shot": results["n-shot"].get(task),
            "samples": samples["effective"] if samples else None,
            "samples_of_task": samples["original"] if samples else None,
            "higher_is_better": results["higher_is_better"].get(task),
            "metrics": metrics,
        }
    return tasks


def _finite_or_none(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def run(
    config: DistillConfig,
    student: StudentConfig,
    tasks: Sequence[str],
    *,
    checkpoint: Path | None = None,
    dst: Path | None = None,
    include: Path | None = None,
    limit: int | None = None,
) -> Path:
    storage, harness = config.storage, harness_version()
    folder = checkpoint or student.checkpoint_path(storage)
    path = dst or storage.path_of("evaluation") / "benchmarks.json"
    # Data that a task file names elsewhere is not hashed.
    stage = StageRun(
        "benchmarks",
        storage,
        inputs=[folder, *([include] if include else [])],
        settings={"tasks": list(tasks), "limit": limit, "harness": harness, "seeds": SEEDS},
    )
    if stage.is_current(path):
        print(f"benchmarks: {path} is up to date")
        return path
    manager = task_manager(tasks, include)
    results, template, precision = _run_harness(folder, tasks, manager, limit)
    tasks_measured = summarize_results(results)
    write_json(
        path,
        {
            "run_id": run_id(),
            "run_name": student.run_name,
            "harness": f"lm-eval {harness}",
            "checkpoint_sha256": stage.inputs[0]["sha256"],
            "chat_template_sha256": sha256_text(template),
            "precision": precision,
            "limit": limit,
            "for_a_trial_only": limit is not None,
            "seeds": SEEDS,
            "tasks": tasks_measured,
            "created_at": utc_now(),
        },
    )
    count = sum(task["samples"] or 0 for task in tasks_measured.values())
    stage.seal_output(path, rows_in=count, rejected=0, count=count)
    print(f"benchmarks: {', '.join(tasks_measured)}, {count} samples -> {path}")
    return path


def _run_harness(folder: Path, tasks: Sequence[str], manager: Any, limit: int | None) -> tuple[Json, str, str]:
    """The harness's results, the chat template that it rendered with, and the precision."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from nexa_train.data.chat_format import chat_format
    from nexa_train.models.loading import load_for_inference

    model, tokenizer = load_for_inference(str(folder))
    chat_format(tokenizer)  # a template that cannot be used is refused before any download
    # Prompts go through the student's own chat template, few-shot examples as turns.
    # The log of all samples is large, and the report needs none of them.
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        log_samples=False,
        **SEEDS,
    )
    return results, str(tokenizer.chat_template), str(model.dtype).removeprefix("torch.")


def main() -> None:
    parser = cli.build_student_parser(__doc__)
    parser.add_argument("--tasks", required=True, help="names, separated by commas")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="another student")
    parser.add_argument("--dst", type=Path, metavar="FILE", help="file for the figures")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="folder of own task files")
    parser.add_argument("--limit", type=cli.positive_int, help="samples of each task, for a trial")
    args = parser.parse_args()
    run(
        *load_both(args),
        [task for task in args.tasks.split(",") if task],
        checkpoint=args.checkpoint,
        dst=args.dst,
        include=args.include_path,
        limit=args.limit,
    )


if __name__ == "__main__":
    cli.run(main)
