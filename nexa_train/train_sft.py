"""Train the student on the packaged answers.

Reads: the student's YAML, `training/sft_dataset.parquet` (sealed) and the student's base model.
Writes, under `<storage.students>/<run_name>/`: `final/` (safetensors in bfloat16, tokenizer, chat
template, `training.json`; sealed), `metrics.jsonl` (one object per optimizer step), `tensorboard/`,
and while it runs `step-NNNNNN/`, from which the same command continues after any stop.
The student before training is the base model with `keep_layers` (`local_models.load_model`).

`batch_size` and `gradient_accumulation` count samples over all processes: the same run on two
processes follows the same losses. A finished run run again does nothing.

The preflight comes first, in this process: the rows that passed it are those that are trained on.

Raises: 65 bad settings, a failed preflight; 66 no sealed dataset; 3 a loss that is not finite, or
a checkpoint that does not read as the model that was trained (`export`).
Run: python -m nexa_train.train_sft --config configs/baseline_distill.yaml
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from nexa_distill import cli
from nexa_distill.config import Storage, load_config
from nexa_distill.errors import QualityGateMissed
from nexa_distill.handoff import write_text
from nexa_distill.manifests import StageRun
from nexa_distill.progress import Progress
from nexa_distill.settings_file import load_yaml
from nexa_distill.student_config import StudentConfig
from nexa_train import checkpoints, distillation, export, packing, teacher_logits
from nexa_train.answer_loss import AnswerLoss, Collate, mean_loss
from nexa_train.chat import IGNORE, Sample
from nexa_train.hardware import native_bf16
from nexa_train.local_models import load_model, resolve_model
from nexa_train.preflight import Preflight
from nexa_train.sft_data import Dataset, collate, epoch_batches

STUDENT_CONFIG = Path("configs/baseline_distill.yaml")


def learning_rate(step: int, total: int, peak: float, warmup_ratio: float) -> float:
    """Of the `step`-th optimizer step (0-based): linear warm-up, then a cosine down to zero."""
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def plan_steps(
    config: StudentConfig, samples: list[Sample]
) -> list[tuple[int, list[list[Sample]]]]:
    """(epoch, micro-batches) of every optimizer step of the run, in order."""
    train, steps = config.train, []
    for epoch in range(train.epochs):
        batches = epoch_batches(samples, train.batch_size, train.seed, epoch)
        for start in range(0, len(batches), train.gradient_accumulation):
            steps.append((epoch, batches[start : start + train.gradient_accumulation]))
    return steps


class Metrics:
    """`metrics.jsonl`: rows of steps that a resumed run repeats are dropped when it starts."""

    def __init__(self, path: Path, resumed: int, *, active: bool) -> None:
        self.path, self.active = path, active
        if not active:
            return
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() and resumed else []
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= resumed]
        write_text(path, "".join(f"{row}\n" for row in kept))

    def write(self, row: dict[str, Any]) -> None:
        """Append one step; an absent value is absent."""
        if self.active:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


@dataclass
class Trainer:
    """The pieces of one run; `train` goes through the plan."""

    config: StudentConfig
    accelerator: Any
    loss: AnswerLoss
    optimizer: Any
    data: Dataset
    batch_of: Collate
    run_key: str
    folder: Path

    @property
    def bare(self) -> AnswerLoss:
        """The loss without the wrapper of a distributed run."""
        bare: AnswerLoss = self.accelerator.unwrap_model(self.loss)
        return bare

    def train(self, resumed: int) -> float | None:
        """All steps after `resumed`; returns the val loss at the end."""
        settings, main = self.config.train, self.accelerator.is_main_process
        plan = plan_steps(self.config, self.data.train)
        metrics = Metrics(self.folder / "metrics.jsonl", resumed, active=main)
        if resumed == 0:
            metrics.write({"step": 0, "epoch": 0, **self._val_loss(), "time": time.time()})
        done, started = resumed, time.monotonic()
        row: dict[str, Any] = {}
        with (
            Progress("train", len(plan), done=done, unit="steps") if main else nullcontext() as bar
        ):
            for epoch, batches in plan[resumed:]:
                rate = learning_rate(done, len(plan), settings.learning_rate, settings.warmup_ratio)
                row = {"step": done + 1, "epoch": epoch, **self._step(batches, rate, done)}
                done += 1
                last = done == len(plan)
                if last or done % settings.eval_every_steps == 0:
                    row |= self._val_loss()
                row |= {"seconds": round(time.monotonic() - started, 3), "time": time.time()}
                metrics.write(row)
                numbers = {k: v for k, v in row.items() if k not in ("step", "time")}
                self.accelerator.log(numbers, step=done)
                if bar is not None:
                    bar.add(note=f"loss {row['loss']:.3f}")
                if done % settings.save_every_steps == 0 and not last and main:
                    self._save(done)
                self.accelerator.wait_for_everyone()
        return row.get("val_loss")

    def _step(self, batches: list[list[Sample]], rate: float, done: int) -> dict[str, Any]:
        """One optimizer step; the loss is per trained token of the whole step."""
        started = time.monotonic()
        settings = self.config.train
        set_seed(settings.seed + done)  # a model with dropout resumes as it would have gone on
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        trained = sum(sample.trained_tokens for batch in batches for sample in batch)
        total = torch.zeros((), device=self.accelerator.device)
        for batch, sync in self._shares(batches):
            with self.accelerator.autocast(), sync:
                loss = self.loss(batch)
                # The gradients of a distributed run are averaged; the loss here is a sum.
                share = loss * self.accelerator.num_processes / trained
                self.accelerator.backward(share)
            total += loss.detach()
        total = self.accelerator.reduce(total, "sum")
        self._refuse_nan(float(total), batches)
        norm = self.accelerator.clip_grad_norm_(self.loss.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = sum(len(sample.input_ids) for batch in batches for sample in batch)
        return {
            "loss": float(total) / trained, "lr": rate, "grad_norm": float(norm),
            "tokens_per_s": round(tokens / (time.monotonic() - started), 1),
        }  # fmt: skip

    def _shares(self, batches: list[list[Sample]]) -> Iterator[tuple[dict[str, Any], Any]]:
        """This process's part of each micro-batch, and whether to exchange gradients after it."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for number, samples in enumerate(batches):
            mine = samples[rank::world]
            if not mine:  # every process has to take part; nothing of this one counts
                mine = [replace(samples[0], labels=[IGNORE] * len(samples[0].labels))]
            batch = self.batch_of(mine, self.accelerator.device)
            last = number == len(batches) - 1
            yield batch, nullcontext() if last else self.accelerator.no_sync(self.loss)

    def _refuse_nan(self, loss: float, batches: list[list[Sample]]) -> None:
        if not math.isfinite(loss):
            names = [sample.sample_id for batch in batches for sample in batch]
            raise QualityGateMissed(
                f"the training loss is {loss}; lower train.learning_rate or look at these samples "
                f"of the step: {', '.join(names)}"
            )

    def _val_loss(self) -> dict[str, float]:
        with self.accelerator.autocast():
            size = self.config.train.batch_size
            bare = self.bare
            value = mean_loss(bare.model, bare.logits, self.data.val, size, self.batch_of)
        return {} if value is None else {"val_loss": value}

    def _save(self, step: int) -> None:
        checkpoints.save(
            self.folder, self.bare.model, self.optimizer.optimizer, step=step, run_key=self.run_key
        )


def run(config: StudentConfig, storage: Storage, dataset: Path, folder: Path) -> bool:
    """Train one student into `folder`; False when it was finished already.

    Raises InputError, InputMissing or QualityGateMissed as the module says.
    """
    base = resolve_model(config.student, storage)
    weights = [Path(base)] if Path(base).is_dir() else []  # a hub id is named, not hashed
    inputs = [dataset, *weights]
    if config.distillation.cached:
        inputs.append(teacher_logits.run(config, storage, dataset))
    stage = StageRun(
        f"train.{folder.name}", storage, inputs=inputs, settings=config.training_settings()
    )
    final = folder / "final"
    if stage.is_current(final):
        print(f"{final} is finished and current; nothing to do", flush=True)
        return False
    trainer, tokenizer, resumed = _prepare(config, storage, base, dataset, folder, stage.key)
    val_loss = trainer.train(resumed)
    if trainer.accelerator.is_main_process:
        export.write(
            trainer.bare.model, tokenizer, final, config=config, stage=stage, dataset=dataset,
            data=trainer.data, val_loss=val_loss,
        )  # fmt: skip
        skipped = sum(trainer.data.skipped.values())
        stage.seal(
            final, rows_in=trainer.data.rows, rejected=skipped, count=len(trainer.data.train)
        )
        for old in folder.glob("step-*"):
            shutil.rmtree(old)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return True


def _prepare(
    config: StudentConfig, storage: Storage, base: str, dataset: Path, folder: Path, run_key: str
) -> tuple[Trainer, Any, int]:
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if native_bf16() else "no",
        log_with="tensorboard",
        project_dir=str(folder),
    )
    preflight = Preflight(config, storage, dataset, base, main=accelerator.is_main_process)
    data, tokenizer = preflight.data(), preflight.tokenizer
    print(f"train {len(data.train)}, val {len(data.val)}, skipped {data.skipped}", flush=True)
    accelerator.init_trackers("tensorboard")
    set_seed(config.train.seed)
    checkpoint = checkpoints.latest(folder, run_key)
    model = load_model(str(checkpoint)) if checkpoint else load_model(base, config.keep_layers)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, weight_decay=config.train.weight_decay, fused=True
    )
    resumed = checkpoints.restore_optimizer(checkpoint, model, optimizer) if checkpoint else 0
    model.train()
    batch_of = _batching(config, model.to(accelerator.device), tokenizer, data)
    loss, batch_of = distillation.attach(config, storage, model, tokenizer, data, batch_of)
    loss, optimizer = accelerator.prepare(loss, optimizer)
    trainer = Trainer(config, accelerator, loss, optimizer, data, batch_of, run_key, folder)
    return trainer, tokenizer, resumed


def _batching(config: StudentConfig, model: Any, tokenizer: Any, data: Dataset) -> Collate:
    """How samples become a batch. Raises InputError for a model that cannot be packed."""
    if config.train.packing:
        packing.enable(model)
        packing.prove_isolation(model, data.train)
        return packing.collate_packed
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return partial(collate, pad_id=pad)


def main() -> int:
    """Read the flags and train."""
    parser = cli.parser(__doc__, config=STUDENT_CONFIG)
    parser.add_argument("--pipeline-config", type=Path, default=cli.DEFAULT_CONFIG, metavar="FILE")
    parser.add_argument("--dataset", type=Path, help="default: storage.sft_parquet")
    parser.add_argument("--output", type=Path, help="default: <storage.students>/<run_name>")
    arguments: argparse.Namespace = parser.parse_args()
    config = load_yaml(arguments.config, StudentConfig)
    storage = load_config(arguments.pipeline_config).storage
    dataset = arguments.dataset or storage.path("sft_parquet")
    folder = arguments.output or storage.path("students") / config.run_name
    run(config, storage, dataset, folder)
    return 0


if __name__ == "__main__":
    cli.run(main)
