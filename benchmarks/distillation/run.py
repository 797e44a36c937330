"""White-box distillation beside supervised training, at equal tokens, over some seeds.

    python -m benchmarks.distillation.run --input FILE [--answers teacher] [--rows 96]
        [--held-out 48] [--seeds 1 2 3]
    python -m benchmarks.distillation.run step-cost --input FILE
    python -m benchmarks.distillation.run top-k --input FILE [--k 8 16 32 64 128]

What is measured is said in README.md.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from nexa_distill.contracts import SFT
from nexa_distill.settings.pipeline import load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train import teacher_logits, train_sft
from nexa_train.data import packing
from nexa_train.data.chat_tokenization import Sample, encode_conversation
from nexa_train.data.collate import Batch
from nexa_train.models.bundled import BUNDLED, resolve_model
from nexa_train.models.loading import load_for_inference, load_model, load_tokenizer
from nexa_train.models.replies import generate_replies
from nexa_train.training.assistant_loss import AnswerLogits, AnswerLoss, mean_loss
from nexa_train.training.distillation import DistillationLoss
from nexa_train.training.divergences import DIVERGENCES, TopK, dense_divergence, top_k_divergence
from nexa_train.training.teacher_cache import CachedTeacher

ROOT = Path(__file__).resolve().parents[2]
LOSSES = ("none", "forward_kl", "reverse_kl", "jensen_shannon")
CPU = torch.device("cpu")


class Outcome(NamedTuple):
    """Of one trained student. `agreement`: share of held-out tokens, 0..1."""

    loss: float
    agreement: float
    step_seconds: float


class Bench:
    """The data and the settings of all runs, in one folder."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        base = ROOT / "configs/distill_config.yaml"
        (folder / "pipeline.yaml").write_text(f"extends: {base}\nstorage: {{root: {folder}/data}}\n")
        self.storage = load_config(folder / "pipeline.yaml").storage
        self.teacher = resolve_model(BUNDLED, self.storage)
        self.tokenizer = load_tokenizer(self.teacher)
        lines = arguments.input.read_text(encoding="utf-8").splitlines()
        rows: Iterator[dict[str, str]] = map(json.loads, lines)
        if arguments.answers == "teacher":
            rows = answered(self.teacher, rows)
        wanted = arguments.rows + arguments.held_out
        self.rows = [row_of(number, row) for number, row in enumerate(islice(rows, wanted))]
        if len(self.rows) < wanted:
            sys.exit(f"{arguments.input}: {len(self.rows)} rows with an answer, wanted {wanted}")
        self.dataset = folder / "sft.parquet"
        pq.write_table(pa.Table.from_pylist(self.rows[: arguments.rows], SFT), self.dataset)

    def config(self, seed: int, **distillation: Any) -> StudentConfig:
        """The shipped student run, with this seed and loss."""
        values = yaml.safe_load((ROOT / "configs/baseline_distill.yaml").read_text())
        values["train"] |= {
            "seed": seed, "epochs": self.arguments.epochs, "max_length": 1024,
            "save_every_steps": 10_000, "eval_every_steps": 10_000,
        }  # fmt: skip
        values["distillation"] |= distillation
        path = self.folder / "student.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_yaml(path, StudentConfig)

    @cached_property
    def trained(self) -> list[Sample]:
        """Rows that everybody trains on."""
        return self._encoded(self.rows[: self.arguments.rows])

    @cached_property
    def held_out(self) -> list[Sample]:
        """Rows that nobody trains on."""
        return self._encoded(self.rows[self.arguments.rows :])

    def _encoded(self, rows: Sequence[dict[str, Any]]) -> list[Sample]:
        made = (encode_conversation(self.tokenizer, row["sample_id"], row["messages"], 1024) for row in rows)
        return [sample for sample in made if isinstance(sample, Sample)]

    @cached_property
    def likeliest(self) -> torch.Tensor:
        """The teacher's, at each held-out token."""
        return torch.cat(list(likeliest(load_model(self.teacher), self.held_out)))

    def train(self, seed: int, loss: str) -> Outcome:
        """One student, measured on the held-out rows."""
        config, out = self.config(seed, loss=loss), self.folder / f"{loss}-{seed}"
        train_sft.run(config, self.storage, self.dataset, out)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        seconds = [0.0, *(row["seconds"] for row in map(json.loads, lines) if row["step"])]
        student = load_model(str(out / "final")).eval()
        packing.enable_packing(student)
        found = torch.cat(list(likeliest(student, self.held_out)))
        nats = mean_loss(AnswerLoss(student), self.held_out, 4, packing.collate_packed)
        agreement = float((found == self.likeliest).float().mean())
        steps = [after - before for before, after in pairwise(seconds)][1:-1]  # the last one saves
        return Outcome(nats or float("nan"), agreement, statistics.median(steps))


def row_of(number: int, row: dict[str, str]) -> dict[str, Any]:
    """A row of contracts.SFT."""
    messages = [{"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": row["answer"]}]  # fmt: skip
    return {"sample_id": f"row-{number:05d}", "split": "train", "messages": messages,
            "template_name": "math", "domain": None, "model_id": "file", "attempt": 0}  # fmt: skip


def answered(teacher: str, rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The rows with the teacher's answers, drawn from its whole distribution; those that it does
    not end within 256 tokens are left out, as the pipeline does."""
    model, tokenizer = load_for_inference(teacher)
    for seed in count():
        some = list(islice(rows, 16))
        if not some:
            return
        asked = [row["instruction"] for row in some]
        said = generate_replies(model, tokenizer, asked, max_new_tokens=256, temperature=1.0, seed=seed)
        for row, reply in zip(some, said, strict=True):
            if reply.ended and reply.text:
                yield row | {"answer": reply.text}


@torch.no_grad()
def likeliest(model: Any, samples: Sequence[Sample]) -> Iterator[torch.Tensor]:
    """The token that the model thinks likeliest, at each trained token."""
    packing.enable_packing(model.eval())
    logits = AnswerLogits(model)
    for start in range(0, len(samples), 4):
        yield logits(packing.collate_packed(samples[start : start + 4], CPU)).argmax(-1)


def trainings(bench: Bench) -> str:
    """Every loss with every seed, interleaved by seed."""
    found: dict[str, list[Outcome]] = {loss: [] for loss in bench.arguments.losses}
    teacher_logits.run(bench.config(0), bench.storage, bench.dataset)
    for seed in bench.arguments.seeds:
        for loss in bench.arguments.losses:
            found[loss].append(bench.train(seed, loss))
            print(f"seed {seed}, {loss}: {found[loss][-1]}", file=sys.stderr, flush=True)
    lines = ["| loss | held-out loss, nats/token, by seed | mean | agreement, by seed "
             "| mean | step, s | times SFT |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    base = statistics.median(outcome.step_seconds for outcome in found["none"])
    for loss, outcomes in found.items():
        losses, agreed, steps = zip(*outcomes, strict=True)
        lines.append(
            f"| {loss} | {', '.join(f'{x:.3f}' for x in losses)} | {statistics.fmean(losses):.3f} "
            f"| {', '.join(f'{x:.3f}' for x in agreed)} | {statistics.fmean(agreed):.3f} "
            f"| {statistics.median(steps):.2f} | {statistics.median(steps) / base:.2f} |"
        )
    return "\n".join(lines)


def step_cost(bench: Bench) -> str:
    """Steps with the cached teacher beside steps without, on one model and the same batches."""
    config = bench.config(0, loss="forward_kl")
    cached = CachedTeacher(teacher_logits.run(config, bench.storage, bench.dataset), bench.trained)
    model = load_model(bench.teacher, config.keep_layers).train()
    packing.enable_packing(model)
    losses = AnswerLoss(model), DistillationLoss(model, config.distillation, len(bench.tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ratios = []
    for start in range(0, len(bench.trained) - 3, 4):
        some = bench.trained[start : start + 4]
        batch = packing.collate_packed(some, CPU) | cached.batch_tensors(some, CPU)
        plain, first, second, again = (seconds_of(losses[which], batch, optimizer) for which in (0, 1, 1, 0))
        ratios.append((first + second) / (plain + again))
    ratios = ratios[1:]  # the first warms up
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} batches of 4"
    middle = statistics.median(ratios)
    return f"A step with the cached teacher takes {middle:.2f} times one without ({spread})."


def seconds_of(loss: AnswerLoss, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    """One whole step."""
    started = time.perf_counter()
    (loss(batch) / 1000).backward()
    torch.nn.utils.clip_grad_norm_(loss.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


@torch.no_grad()
def bounds(bench: Bench) -> str:
    """What k tokens and a tail leave of the divergence, in the precision of the cache."""
    samples = bench.trained
    tokens = sum(sample.trained_tokens for sample in samples)
    teacher = logits_of(load_model(bench.teacher), samples)
    student = logits_of(load_model(bench.teacher, bench.config(0).keep_layers), samples)
    whole = {
        name: sum(float(dense_divergence(d, p, q, 1.0)) for p, q in zip(teacher, student, strict=True))
        for name, d in DIVERGENCES.items()
    }
    lines = ["| k | bytes per token | " + " | ".join(f"{n}, of dense" for n in whole) + " |",
             "|---" * (2 + len(whole)) + "|"]  # fmt: skip
    for k in bench.arguments.k:
        path = teacher_logits.run(bench.config(0, top_k=k), bench.storage, bench.dataset)
        cached = CachedTeacher(path, samples)
        known = [
            TopK(rows["top_ids"].long(), rows["top_log_probs"], rows["tail_log_prob"])
            for rows in (cached.batch_tensors([sample], CPU) for sample in samples)
        ]
        shares = [
            sum(float(top_k_divergence(d, t, q, 1.0)) for t, q in zip(known, student, strict=True)) / whole[name]
            for name, d in DIVERGENCES.items()
        ]
        size = path.stat().st_size / tokens
        lines.append(f"| {k} | {size:.0f} | " + " | ".join(f"{x:.4f}" for x in shares) + " |")
    said = ", ".join(f"{name} {value / tokens:.3f}" for name, value in whole.items())
    return "\n".join([*lines, "", f"Dense, nats per token over {tokens:,} tokens: {said}."])


def logits_of(model: Any, samples: Sequence[Sample]) -> list[torch.Tensor]:
    """(trained tokens, vocabulary) of each sample."""
    packing.enable_packing(model.eval())
    found = AnswerLogits(model)
    return [found(packing.collate_packed([sample], CPU)) for sample in samples]


WHAT = {"training": trainings, "step-cost": step_cost, "top-k": bounds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=WHAT, default="training")
    parser.add_argument("--input", type=Path, required=True, help="JSONL {instruction, answer}")
    parser.add_argument("--answers", choices=["file", "teacher"], default="file")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=["none", "forward_kl"])
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), arguments)
        print(WHAT[arguments.what](bench))
    return 0


if __name__ == "__main__":
    sys.exit(main())
