"""Evaluation report: the teacher, the student before training and the student after training.

Reads:  `storage.raw_dataset`, the answers of the three models (`collected_dataset`,
        `baseline_outputs`, `student_outputs`), their gate results (`gate_files`), `sft_parquet`
        and the checkpoint, the losses of `held_out_loss` (measured here first), `metrics.jsonl`
        of the training, and the manifests for the funnel
Writes: `storage.evaluation_report` (JSON, sealed last), report.md, report.html and model_card.md
        (the checkpoint's card with its scores) beside it
Keeps:  only prompts of the split `generate.split`, none of which was trained on; every answer to
        them passes or is rejected. The teacher's answer is its first attempt
Raises: InputMissing (66) for a missing or stale input, InputError (65) for answers without gate
        results or to other prompts; QualityGateMissed (3), after the report is written, for a
        student that is worse than the accepted one (`regression`)

`metrics` defines the figures and `significance` the comparisons. The gates run in
`scripts/python/evaluation/run_evaluation.py`.

Run: python -m nexa_train.evaluate_student [--config configs/baseline_distill.yaml]
         [--pipeline-config FILE]
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nexa_distill.console import cli
from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_distill.reporting.training_curve import read_metrics
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.settings.student import StudentConfig, load_both
from nexa_distill.settings.tasks import load_system_prompts
from nexa_distill.storage.atomic import Json, write_json, write_text
from nexa_distill.storage.manifests import StageRun, load_manifest, run_id, utc_now
from nexa_distill.storage.tables import read_table
from nexa_train import regression
from nexa_train.evaluation import held_out_loss
from nexa_train.evaluation.gate_results import gate_config_hashes, gate_files, load_results
from nexa_train.evaluation.held_out_prompts import select_held_out
from nexa_train.evaluation.metrics import ANSWER_TABLES, compute_metrics

FUNNEL = {
    "prompts": "canonical",
    "without duplicates": "raw_dataset",
    "answered by the teacher": "collected_dataset",
    "pass the rules": "rule_filtered",
    "kept by SampleGate": "filtered_dataset",
    "packaged": "sft_parquet",
}


def settings(config: DistillConfig, student: StudentConfig) -> Json:
    return {
        "generate": student.generate.model_dump(),
        "run_name": student.run_name,
        "tasks": config.execution.tasks,
        # A newly accepted run changes the comparison, and so makes the report stale.
        "accepted": regression.load_accepted(config.storage),
        "regression_gate": regression.load_gate(config).model_dump(),
    }


def count_funnel(storage: Storage, splits: Mapping[str, int]) -> list[Json]:
    steps = []
    for step, key in FUNNEL.items():
        manifest = load_manifest(storage.path_of(key), storage)
        steps.append({"step": step, "count": manifest["count"] if manifest else None})
    return steps + [{"step": split, "count": count} for split, count in splits.items()]


def training_curve(storage: Storage, student: StudentConfig) -> list[Json]:
    keys = ("step", "loss", "val_loss")
    return [{key: row[key] for key in keys if key in row} for row in read_metrics(student.metrics_path(storage))]


def run(config: DistillConfig, student: StudentConfig) -> Path:
    """Write the report unless it is up to date; returns the path of the HTML page."""
    storage = config.storage
    report = storage.path_of("evaluation_report")
    page, text = report.with_suffix(".html"), report.with_suffix(".md")
    card = storage.path_of("evaluation") / "model_card.md"
    path = storage.path_of("collected_dataset")
    teachers = read_table(path, TABLES["collected_dataset"])["model_id"].unique().to_pylist()
    losses = held_out_loss.run(config, student, teachers)
    inputs = [*_input_paths(storage, student), *losses.values()]  # every file that the report is made of
    stage = StageRun("evaluation", storage, inputs=inputs, settings=settings(config, student))
    if stage.is_current(text, page, card, report):
        print(f"evaluation: {report} is up to date")
        return page
    # Imported here: a current report needs none of these modules.
    from nexa_train.reports import evaluation_html, evaluation_text, model_card

    result = _build_report(config, student, stage, losses)
    write_text(text, evaluation_text.render_markdown(result))
    write_text(page, evaluation_html.render_page(result))
    write_text(card, model_card.render_card(model_card.read_training_facts(student.checkpoint_path(storage)), result))
    write_json(report, result)
    # The JSON report is sealed last: its seal means that all four are complete.
    for output in (text, page, card, report):
        stage.seal_output(output, rows_in=result["prompts"], rejected=0, count=result["prompts"])
    print(f"evaluation: {result['prompts']} held-out prompts -> {page}")
    return page


def _input_paths(storage: Storage, student: StudentConfig) -> list[Path]:
    gates = [gate_files(storage, name) for name in ANSWER_TABLES]
    optional = [path for files in gates for path in (files.exec_checks, files.judge_checks)]
    return [
        *(storage.path_of(key) for key in ("raw_dataset", *ANSWER_TABLES.values(), "sft_parquet")),
        student.checkpoint_path(storage),
        *(path for files in gates for path in (files.kept, files.rejections)),
        *filter(Path.exists, optional),
    ]


def _build_report(config: DistillConfig, student: StudentConfig, stage: StageRun, losses: Mapping[str, Path]) -> Json:
    from nexa_train.reports.evaluation_text import headline_sentences

    storage = config.storage
    raw = read_table(storage.path_of("raw_dataset"), TABLES["raw_dataset"])
    prompts = select_held_out(raw, student.generate)
    sft = read_table(storage.path_of("sft_parquet"), TABLES["sft_parquet"])
    _refuse_leak(prompts, sft.to_pylist(), student.generate.split)
    splits, curve = sft["split"].to_pylist(), training_curve(storage, student)
    documents = dict(zip(*(raw[c].to_pylist() for c in ("sample_id", "cluster_id")), strict=True))
    measured = {name: _with_documents(path, documents) for name, path in losses.items()}
    exams = {name: load_results(config, name, prompts, measured.get(name)) for name in ANSWER_TABLES}
    # The system prompts of tasks are part of the prompts that are compared between runs.
    system = load_system_prompts(config).relevant_settings
    metrics = compute_metrics(prompts, exams) | {
        "prompts_sha256": regression.hash_value([system, [row["sample_id"] for row in prompts]]),
        "gates_sha256": regression.hash_value(gate_config_hashes(storage)),
    }
    metrics["regression"] = regression.compare_runs(
        regression.load_accepted(storage), metrics, regression.load_gate(config)
    )
    return {
        "headline": headline_sentences(metrics, curve),
        "run_id": run_id(),
        "run_name": student.run_name,
        "split": student.generate.split,
        **metrics,
        "funnel": count_funnel(storage, {s: splits.count(s) for s in ("train", "val", "test")}),
        "training_curve": curve,
        "facts": _run_facts(storage, student, stage),
        "created_at": utc_now(),
    }


def _refuse_leak(prompts: Sequence[Json], sft: Sequence[Json], split: str) -> None:
    trained = {row["sample_id"] for row in sft if row["split"] != split}
    leaked = [row["sample_id"] for row in prompts if row["sample_id"] in trained]
    if leaked:
        raise InputError(
            f"{len(leaked)} held-out prompts were trained on, for example {leaked[0]}; "
            "run `python -m nexa_distill.to_sft` and the training again"
        )


def _with_documents(path: Path, documents: Mapping[str, str]) -> Json:
    measurement: Json = json.loads(path.read_text(encoding="utf-8"))
    # The bootstrap draws documents: samples of one document are not independent.
    for sample in measurement["samples"]:
        if sample["sample_id"] not in documents:
            raise InputError(
                f"{path}: sample {sample['sample_id']} is not among the prompts; run "
                "`python -m nexa_distill.to_sft` again"
            )
        sample["document"] = documents[sample["sample_id"]]
    return measurement


def _run_facts(storage: Storage, student: StudentConfig, stage: StageRun) -> Json:
    checkpoint = student.checkpoint_path(storage)
    timed = {
        "teacher": storage.path_of("collected_dataset"),
        "training": checkpoint,
        "answers before": storage.path_of("baseline_outputs"),
        "answers after": storage.path_of("student_outputs"),
    }
    manifests = {name: load_manifest(path, storage) for name, path in timed.items()}
    return {
        "student": student.student,
        "keep_layers": student.keep_layers,
        "train": student.train.model_dump(),
        "generate": student.generate.model_dump(),
        "seconds": {name: seal["seconds"] if seal else None for name, seal in manifests.items()},
        "inputs": stage.inputs,
        "dataset_sha256": _input_hash(stage, storage.path_of("sft_parquet")),
        "checkpoint_sha256": _input_hash(stage, checkpoint),
    }


def _input_hash(stage: StageRun, path: Path) -> str | None:
    return next((item["sha256"] for item in stage.inputs if item["path"] == str(path)), None)


def main() -> None:
    config, student = load_both(cli.build_student_parser(__doc__).parse_args())
    run(config, student)
    print(regression.enforce_gate(config))


if __name__ == "__main__":
    cli.run(main)
