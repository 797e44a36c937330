"""The loss of a model on the teacher's held-out answers, sample by sample.

Reads:  `storage.sft_parquet` (rows of the split `generate.split`: kept answers only) and, for the
        trained student, its checkpoint
Writes: `<storage.evaluation>/<model>/loss.json`, sealed, for `before`, `after` and, if it is the
        bundled model and thus has the student's tokenizer, `teacher`
Unit:   nats over the trained tokens of a sample (the answer and its end-of-turn token). A sample
        longer than `train.max_length` (null: the context length) is counted under `skipped`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_distill.console.progress import Progress
from nexa_distill.contracts import TABLES
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.atomic import Json, write_json
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import read_table
from nexa_train.data.chat_tokenization import Sample, Skip, encode_conversation, student_format
from nexa_train.models.bundled import BUNDLED, BUNDLED_NAME, resolve_model
from nexa_train.models.loading import context_length, load_for_inference


@dataclass(frozen=True)
class Subject:
    """A model to measure; `checkpoint` is set for the trained student only."""

    model: str
    keep_layers: list[int] | None
    checkpoint: Path | None


def loss_path(storage: Storage, name: str) -> Path:
    return storage.path_of("evaluation") / name / "loss.json"


def list_subjects(student: StudentConfig, storage: Storage, teacher_model_ids: Sequence[str]) -> dict[str, Subject]:
    checkpoint = student.checkpoint_path(storage)
    models = {
        "before": Subject(student.student, student.keep_layers, None),
        "after": Subject(str(checkpoint), None, checkpoint),
    }
    # The teacher only with the student's tokenizer: nats per token of two tokenizers cannot be
    # compared. A server may add a revision to the folder's name: SmolLM2-135M-Instruct@main.
    names = {model_id.split("@")[0] for model_id in teacher_model_ids}
    if names == {BUNDLED_NAME} and student.student == BUNDLED:
        models["teacher"] = Subject(BUNDLED, None, None)
    return models


def settings(student: StudentConfig, subject: Subject) -> Json:
    limits = {"split": student.generate.split, "max_length": student.train.max_length}
    limits |= student.rendering_settings()
    # The checkpoint is an input of the stage, with its own hash.
    if subject.checkpoint:
        return limits
    return {**limits, "model": subject.model, "keep_layers": subject.keep_layers}


def measure_losses(name: str, model: Any, samples: Sequence[Sample], pad_id: int) -> list[Json]:
    """`{sample_id, nats, tokens}` per sample; the model is in evaluation mode."""
    import torch

    from nexa_train.data.collate import collate_padded
    from nexa_train.training.assistant_loss import AnswerLoss

    loss, losses = AnswerLoss(model), []
    with Progress(f"held-out loss of {name}", len(samples), unit="samples") as progress:
        for sample in samples:  # one by one: no figure depends on a batch
            with torch.inference_mode():
                nats = float(loss(collate_padded([sample], model.device, pad_id=pad_id)))
            losses.append({"sample_id": sample.sample_id, "nats": nats, "tokens": sample.trained_tokens})
            progress.add()
    return losses


def run(config: DistillConfig, student: StudentConfig, teacher_model_ids: Sequence[str]) -> dict[str, Path]:
    models = list_subjects(student, config.storage, teacher_model_ids)
    for name, subject in models.items():
        _measure_subject(config.storage, student, name, subject)
    return {name: loss_path(config.storage, name) for name in models}


def _measure_subject(storage: Storage, student: StudentConfig, name: str, subject: Subject) -> None:
    src, dst = storage.path_of("sft_parquet"), loss_path(storage, name)
    inputs = [src, subject.checkpoint] if subject.checkpoint else [src]
    chosen = settings(student, subject)
    stage = StageRun("evaluation.loss", storage, inputs=inputs, settings=chosen)
    if stage.is_current(dst):
        print(f"held-out loss of {name}: {dst} is up to date")
        return
    resolved = resolve_model(subject.model, storage)
    model, tokenizer = load_for_inference(resolved, subject.keep_layers, student)
    form = student_format(tokenizer)
    longest = student.longest_row(context_length(resolved))
    rows = read_table(src, TABLES["sft_parquet"]).sort_by("sample_id").to_pylist()
    encoded = [
        encode_conversation(form, row["sample_id"], row["messages"], longest)
        for row in rows
        if row["split"] == student.generate.split
    ]
    samples = [sample for sample in encoded if isinstance(sample, Sample)]
    skipped = Counter(sample.reason for sample in encoded if isinstance(sample, Skip))
    measurement = {
        "model": name,
        "precision": str(model.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "samples": measure_losses(name, model, samples, tokenizer.pad_token_id or 0),
        "skipped": dict(skipped),
    }
    write_json(dst, measurement)
    stage.seal_output(dst, rows_in=len(encoded), rejected=len(encoded) - len(samples), count=len(samples))
    print(f"held-out loss of {name}: {len(samples)} answers -> {dst}")
