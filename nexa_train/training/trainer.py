"""The training loop: the plan of steps, learning rates, metrics and checkpoints.

Writes into the folder of the run: `metrics.jsonl` and `step-NNNNNN/` (checkpoints.py).
Raises: QualityGateMissed (3) for a loss that is not finite.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed
from torch.distributed.tensor import DTensor

from nexa_distill.console.progress import Progress
from nexa_distill.errors import QualityGateMissed
from nexa_distill.reporting.training_curve import read_metrics
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.atomic import write_text
from nexa_train.data.chat_tokenization import IGNORE, Sample
from nexa_train.data.collate import Batch, Collate
from nexa_train.data.dataset import Dataset, epoch_batches
from nexa_train.training import checkpoints, fsdp, lora, student_model
from nexa_train.training.assistant_loss import ON_POLICY, AnswerLoss, mean_loss
from nexa_train.training.on_policy import Student


def learning_rate(step: int, total: int, peak: float, warmup_ratio: float) -> float:
    """The rate of optimizer step `step` (0-based): linear warm-up, then a cosine down to zero."""
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def plan_steps(config: StudentConfig, samples: list[Sample]) -> list[tuple[int, list[list[Sample]]]]:
    """(epoch, micro-batches) of every optimizer step of the run, in order."""
    train, steps = config.train, []
    for epoch in range(train.epochs):
        batches = epoch_batches(samples, train.batch_size, train.seed, epoch)
        for start in range(0, len(batches), train.gradient_accumulation):
            steps.append((epoch, batches[start : start + train.gradient_accumulation]))
    return steps


Share = tuple[list[Sample], bool]  # samples of a micro-batch; whether their answers are generated


class TokenCount(NamedTuple):
    """Tokens of a step: trained ones, of these the ones from the data, and all."""

    trained: int
    from_data: int
    tokens: int


class Metrics:
    """`metrics.jsonl`; a resumed run drops the rows of steps that it repeats."""

    def __init__(self, path: Path, resumed: int, *, active: bool) -> None:
        self.path, self.active = path, active
        if not active:
            return
        kept = [row for row in read_metrics(path) if row["step"] <= resumed] if resumed else []
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: dict[str, Any]) -> None:
        if self.active:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


@dataclass
class Trainer:
    """The parts of one run; `train_steps` executes the plan."""

    config: StudentConfig
    accelerator: Any
    loss: AnswerLoss
    optimizer: Any
    data: Dataset
    batch_of: Collate
    run_key: str
    folder: Path
    base: str
    shard: bool
    student: Student

    @property
    def unwrapped_loss(self) -> AnswerLoss:
        # The wrapper of a distributed run has neither `model` nor `parts`.
        loss: AnswerLoss = self.accelerator.unwrap_model(self.loss)
        return loss

    def train_steps(self, resumed: int) -> float | None:
        """Run all steps after `resumed`; returns the val loss at the end."""
        settings, main = self.config.train, self.accelerator.is_main_process
        plan = plan_steps(self.config, self.data.train)
        metrics = Metrics(self.folder / "metrics.jsonl", resumed, active=main)
        row: dict[str, Any] = {}
        with Progress("train", len(plan), done=resumed, unit="steps") if main else nullcontext() as bar:
            if bar is not None:
                bar.set_note("validation loss before the first step" if resumed == 0 else "continues")
            if resumed == 0:
                metrics.write({"step": 0, "epoch": 0, **self._measure_val_loss(), "time": time.time()})
            done, started = resumed, time.monotonic()
            for epoch, batches in plan[resumed:]:
                rate = learning_rate(done, len(plan), settings.learning_rate, settings.warmup_ratio)
                row = {"step": done + 1, "epoch": epoch, **self._run_step(batches, rate, done)}
                done += 1
                last = done == len(plan)
                if last or done % settings.eval_every_steps == 0:
                    row |= self._measure_val_loss()
                row |= {"seconds": round(time.monotonic() - started, 3), "time": time.time()}
                metrics.write(row)
                numbers = {k: v for k, v in row.items() if k not in ("step", "time")}
                self.accelerator.log(numbers, step=done)
                if bar is not None:
                    bar.add(note=f"loss {row['loss']:.3f}")
                # The last step needs no checkpoint: the export follows.
                if done % settings.save_every_steps == 0 and not last:
                    self._save_checkpoint(done)
                self.accelerator.wait_for_everyone()
        return row.get("val_loss")

    def _run_step(self, batches: list[list[Sample]], rate: float, done: int) -> dict[str, Any]:
        started = time.monotonic()
        settings = self.config.train
        set_seed(settings.seed + done)  # dropout is the same in a resumed run
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # All shares before the first pass: generated answers change the number of tokens.
        shares = [self._local_share(batch, done, number) for number, batch in enumerate(batches)]
        count = self._count_tokens(shares)
        sums: dict[str, torch.Tensor] = {}
        for batch, sync in self._step_batches(shares):
            with self.accelerator.autocast(), sync:
                loss = self.loss(batch)
                # Per trained token of the whole step, over all processes. Their gradients are
                # averaged, and the loss here is a sum: hence the number of processes.
                self.accelerator.backward(loss * self.accelerator.num_processes / count.trained)
            for name, value in {"loss": loss.detach(), **self.unwrapped_loss.parts}.items():
                sums[name] = sums.get(name, 0) + value
        sums = self.accelerator.reduce(sums, "sum")
        # On the sum of all processes, so that they all stop.
        self._refuse_nan(float(sums["loss"]), batches)
        norm = self.accelerator.clip_grad_norm_(self.loss.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # Generated answers have no cross entropy, so it is per token from the data.
        per = {"cross_entropy": count.from_data}
        return {
            **{name: float(value) / per.get(name, count.trained) for name, value in sums.items()},
            "lr": rate,
            "grad_norm": float(norm.full_tensor() if isinstance(norm, DTensor) else norm),
            "tokens_per_s": round(count.tokens / (time.monotonic() - started), 1),
        }

    def _local_share(self, samples: list[Sample], done: int, number: int) -> Share:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        # Strided: samples are sorted by length, so every process gets similar work.
        mine = samples[rank::world]
        if not mine:  # every process has to take part: a sample without labels counts nothing
            mine = [replace(samples[0], labels=[IGNORE] * len(samples[0].labels))]
        if not self.student.is_on_policy(done, number):
            return mine, False
        with self.accelerator.autocast():
            return self.student.resample_answers(mine, done), True

    def _count_tokens(self, shares: list[Share]) -> TokenCount:
        mine = [(s, own) for samples, own in shares for s in samples if s.trained_tokens]
        counts = TokenCount(
            trained=sum(s.trained_tokens for s, _ in mine),
            from_data=sum(s.trained_tokens for s, own in mine if not own),
            tokens=sum(len(s.input_ids) for s, _ in mine),
        )
        summed = self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device), "sum")
        return TokenCount(*summed.tolist())

    def _step_batches(self, shares: list[Share]) -> Iterator[tuple[Batch, Any]]:
        for number, (samples, own) in enumerate(shares):
            batch = self.batch_of(samples, self.accelerator.device)
            if own:
                batch[ON_POLICY] = torch.ones(1, device=self.accelerator.device)
            # Gradients accumulate locally until the last micro-batch.
            last = number == len(shares) - 1
            yield batch, nullcontext() if last else self.accelerator.no_sync(self.loss)

    def _refuse_nan(self, loss: float, batches: list[list[Sample]]) -> None:
        if not math.isfinite(loss):
            names = [sample.sample_id for batch in batches for sample in batch]
            raise QualityGateMissed(
                f"the training loss is {loss}; lower train.learning_rate or look at these samples "
                f"of the step: {', '.join(names)}"
            )

    def _measure_val_loss(self) -> dict[str, float]:
        with self.accelerator.autocast():
            size = self.config.train.batch_size
            value = mean_loss(self.unwrapped_loss, self.data.val, size, self.batch_of)
        return {} if value is None else {"val_loss": value}

    def _save_checkpoint(self, step: int) -> None:
        if self.shard or self.accelerator.is_main_process:
            checkpoints.save(
                self.folder,
                self.unwrapped_loss.model,
                self.optimizer,
                step=step,
                run_key=self.run_key,
                settings=self.config.training_settings(),
                main=self.accelerator.is_main_process,
            )

    def gather_weights(self) -> None:
        """Put the trained model, gathered and merged, into `unwrapped_loss.model` of the main process; all call it."""
        main, model = self.accelerator.is_main_process, self.unwrapped_loss.model
        if self.shard:
            # The main process copies the weights into a model that is not sharded.
            weights = fsdp.gather_tensors(checkpoints.trainable_parameters(model), keep=main)
            if not main:
                return
            model = student_model.build_student(self.config, self.base)
            checkpoints.copy_weights(model, weights)
            self.loss = AnswerLoss(model)
        student_model.undo_compile(model)
        if self.config.train.lora:
            lora.merge_adapters(model)
