"""This project's loss over the same batches. Variants: packed, padded."""

import time
from functools import partial

import torch
from accelerate import Accelerator

from benchmarks.training.job import Figures, given, hand_over, read_rows, threads
from nexa_train.data import packing
from nexa_train.data.chat_tokenization import IGNORE, Sample
from nexa_train.data.collate import Collate, collate_padded
from nexa_train.models.loading import load_model
from nexa_train.models.precision import has_native_bf16
from nexa_train.training.assistant_loss import AnswerLoss


def labels(row: dict[str, list[int]]) -> list[int]:
    """The token where the mask is 1."""
    pairs = zip(row["input_ids"], row["completion_mask"], strict=True)
    return [token if mark else IGNORE for token, mark in pairs]


def main() -> None:
    job = given()
    torch.set_num_threads(threads())
    samples = [Sample(str(number), row["input_ids"], labels(row)) for number, row in enumerate(read_rows(job))]
    model = load_model(job.model).train()
    accelerator = Accelerator(mixed_precision="bf16" if has_native_bf16() else "no")
    batch_of: Collate = partial(collate_padded, pad_id=0)
    if job.variant == "packed":
        packing.enable_packing(model)
        batch_of = packing.collate_packed
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate, fused=True)
    loss, optimizer = accelerator.prepare(AnswerLoss(model), optimizer)
    losses, started = [], time.monotonic()
    for start in range(0, len(samples), job.batch_size):
        some = samples[start : start + job.batch_size]
        with accelerator.autocast():
            mean = loss(batch_of(some, accelerator.device)) / sum(s.trained_tokens for s in some)
        accelerator.backward(mean)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(mean.detach()))
    seconds = time.monotonic() - started
    tokens = sum(len(sample.input_ids) for sample in samples)
    trained = sum(sample.trained_tokens for sample in samples)
    hand_over(job, Figures(tokens, trained, seconds, losses))


if __name__ == "__main__":
    main()
