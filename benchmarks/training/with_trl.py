"""TRL's SFTTrainer: one epoch in the given order, loss on the completion."""

import time
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped,unused-ignore]
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found,unused-ignore]

from benchmarks.training.job import Figures, given, hand_over, read_rows, threads
from nexa_train.models.precision import has_native_bf16  # imports nothing but torch

VARIANTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "chunked": {"loss_type": "chunked_nll"},
    "one by one": {"loss_type": "chunked_nll", "per_device_train_batch_size": 1},
    "packed": {"packing": True, "max_length": 1024, "loss_type": "chunked_nll"},
    "defaults": {"gradient_checkpointing": True},
}


class Clock(TrainerCallback):
    """Starts with the first step, after everything has been loaded and tokenised."""

    started = ended = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The first one starts the clock."""
        self.started = self.started or time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Each one may be the last."""
        self.ended = time.monotonic()


def main() -> None:
    job = given()
    torch.set_num_threads(threads())
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    settings: dict[str, Any] = {
        "output_dir": f"{job.out}.trl", "num_train_epochs": 1, "learning_rate": job.learning_rate,
        "per_device_train_batch_size": job.batch_size, "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential", "max_length": 2048, "logging_steps": 1,
        "bf16": has_native_bf16(), "gradient_checkpointing": False, "report_to": "none",
        "save_strategy": "no", "use_cpu": not torch.cuda.is_available(), "disable_tqdm": True,
        "dataloader_pin_memory": False, "completion_only_loss": True,  # else the mask is not used
    } | VARIANTS[job.variant]  # fmt: skip
    # The same steps, in any variant: what a device does not take at once is accumulated.
    at_once = settings["per_device_train_batch_size"]
    settings["gradient_accumulation_steps"] = job.batch_size // at_once
    rows, clock = read_rows(job), Clock()
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**settings), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(row["input_ids"]) for row in rows)
    trained = sum(sum(row["completion_mask"]) for row in rows)
    hand_over(job, Figures(tokens, trained, clock.ended - clock.started, losses))


if __name__ == "__main__":
    main()
