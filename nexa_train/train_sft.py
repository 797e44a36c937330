"""Train the student on the packaged answers.

Reads: the student's YAML, `training/sft_dataset.parquet` (sealed) and the student's base model.
Writes, under `<storage.students>/<run_name>/`: `final/` (safetensors in bfloat16, tokenizer, chat
template, `training.json`; sealed), `metrics.jsonl` (one object per optimizer step), `tensorboard/`,
and while it runs `step-NNNNNN/`, from which the same command continues after any stop.
`final/` is a plain model in any case: adapters are merged.

`batch_size` and `gradient_accumulation` count samples over all processes: the same run on two
processes has the same losses, also with a sharded model (`--shard`). A finished run does nothing.

Raises: 65 bad settings, a failed preflight; 66 no sealed dataset; 3 a loss that is not finite, or
an export that differs from the trained model (`export`).
Run: python -m nexa_train.train_sft --config configs/baseline_distill.yaml
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from nexa_distill.console import cli
from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import Storage
from nexa_distill.settings.student import StudentConfig, load_both
from nexa_distill.storage.manifests import StageRun
from nexa_train import teacher_logits
from nexa_train.data.chat_format import ChatFormat
from nexa_train.data.collate import make_collate
from nexa_train.data.vocabulary import vocabulary_size
from nexa_train.models.bundled import resolve_model
from nexa_train.models.precision import uses_bf16
from nexa_train.preflight import Preflight
from nexa_train.training import as_trained, checkpoints, distillation, export, fsdp, on_policy, student_model
from nexa_train.training.trainer import Trainer


def run(
    config: StudentConfig,
    storage: Storage,
    dataset: Path,
    folder: Path,
    *,
    shard: bool = False,
    logits: Path | None = None,
) -> bool:
    """Train one student into `folder`; False if it was finished already. `logits`: an existing teacher cache."""
    base = resolve_model(config.student, storage)
    weights = [Path(base)] if Path(base).is_dir() else []  # a hub id is named, not hashed
    inputs = [dataset, *weights]
    if config.distillation.uses_cache:
        inputs.append(logits or teacher_logits.run(config, storage, dataset))
    stage = StageRun(f"train.{folder.name}", storage, inputs=inputs, settings=config.training_settings())
    final = folder / "final"
    if stage.is_current(final):
        print(f"{final} is finished and current; nothing to do", flush=True)
        return False
    trainer, form, resumed = _prepare_trainer(config, storage, base, dataset, folder, stage.resume_key, shard=shard)
    val_loss = trainer.train_steps(resumed)
    # Measured before adapters are merged: the export is compared with it.
    before = as_trained.measure_as_trained(
        trainer.unwrapped_loss,
        export.proof_samples(trainer.data),
        trainer.batch_of,
        form,
        # A sharded model generates no answers.
        {} if shard else export.proof_prompts(dataset, trainer.data),
        trainer.accelerator.autocast,
    )
    trainer.gather_weights()
    if trainer.accelerator.is_main_process:
        export.export_student(
            trainer.unwrapped_loss.model,
            form,
            final,
            config=config,
            stage=stage,
            dataset=dataset,
            data=trainer.data,
            val_loss=val_loss,
            before=before,
        )
        skipped = sum(trainer.data.skipped.values())
        stage.seal_output(final, rows_in=trainer.data.rows, rejected=skipped, count=len(trainer.data.train))
        # The sealed export replaces the checkpoints.
        for old in folder.glob("step-*"):
            shutil.rmtree(old)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return True


def _prepare_trainer(
    config: StudentConfig, storage: Storage, base: str, dataset: Path, folder: Path, run_key: str, *, shard: bool
) -> tuple[Trainer, ChatFormat, int]:
    folder.mkdir(parents=True, exist_ok=True)
    is_bf16 = uses_bf16(config.train.precision)
    accelerator = Accelerator(
        mixed_precision="bf16" if is_bf16 else "no", log_with="tensorboard", project_dir=str(folder)
    )
    _refuse_unshardable(config, accelerator, shard=shard)
    # Only the rows that pass the preflight are trained on.
    preflight = Preflight(config, storage, dataset, base, main=accelerator.is_main_process)
    data, form = preflight.load_data(), preflight.examination.chat_format
    tokenizer = form.tokenizer
    computed = "bfloat16" if is_bf16 else "float32"
    print(f"train {len(data.train)}, val {len(data.val)}, skipped {data.skipped}; in {computed}", flush=True)
    accelerator.init_trackers("tensorboard")
    set_seed(config.train.seed)
    checkpoint = checkpoints.latest_checkpoint(folder, run_key)
    # The user should know why existing checkpoints are not continued.
    if checkpoint is None and accelerator.is_main_process:
        notice = checkpoints.explain_restart(folder, config.training_settings())
        if notice:
            print(notice, flush=True)
    model = student_model.build_student(config, base, checkpoint)
    if not shard:  # a whole model may not fit on one device
        model.to(accelerator.device)
    batch_of = make_collate(model, tokenizer, [*data.train, *data.val], packed=config.train.packing)
    loss, batch_of = distillation.build_loss(config, storage, model, tokenizer, data, batch_of)
    # After the loss is built: it probes the model without compilation.
    student_model.apply_speed_options(model, config.train)
    if shard:
        fsdp.shard_model(loss, accelerator.device, accelerator.num_processes)
    else:
        loss = accelerator.prepare(loss)
    # The rate of 0 is replaced in every step.
    optimizer = torch.optim.AdamW(
        [parameter for _, parameter in checkpoints.trainable_parameters(model)],
        lr=0.0,
        weight_decay=config.train.weight_decay,
        fused=True,
    )
    resumed = checkpoints.restore_optimizer(checkpoint, model, optimizer) if checkpoint else 0
    student = on_policy.Student(model, config.distillation, config.train.seed, vocabulary_size(tokenizer), form.end)
    trainer = Trainer(config, accelerator, loss, optimizer, data, batch_of, run_key, folder, base, shard, student)
    return trainer, form, resumed


def _refuse_unshardable(config: StudentConfig, accelerator: Any, *, shard: bool) -> None:
    if shard and accelerator.num_processes < 2:
        raise InputError(
            "--shard: this is one process, and a model is sharded over several; run `bash "
            "scripts/shell/training/run_training.sh CONFIG fsdp` on a machine with two GPUs or "
            "more, or leave --shard out"
        )
    if shard and config.distillation.on_policy:
        raise InputError(
            "distillation.on_policy: a sharded model cannot generate answers here; set "
            "on_policy: 0.0, or run with `true` instead of `fsdp`"
        )


def main() -> None:
    parser = cli.build_student_parser(__doc__)
    parser.add_argument("--dataset", type=Path, help="default: storage.sft_parquet")
    parser.add_argument("--output", type=Path, help="default: <storage.students>/<run_name>")
    parser.add_argument("--shard", action="store_true", help="keep a part of the model per process")
    arguments = parser.parse_args()
    pipeline, config = load_both(arguments)
    dataset = arguments.dataset or pipeline.storage.path_of("sft_parquet")
    folder = arguments.output or config.checkpoint_path(pipeline.storage).parent
    run(config, pipeline.storage, dataset, folder, shard=arguments.shard)


if __name__ == "__main__":
    cli.run(main)
