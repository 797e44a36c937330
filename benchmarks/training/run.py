"""Real tokens per second of supervised training, beside TRL, on the same rows in the same order.

    python -m benchmarks.training.run [--rows 64] [--rounds 3] [--input FILE] [--contenders ...]

What is measured is said in README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.environments import Environments, Unfit
from benchmarks.training.job import Figures, Job
from nexa_train.data.chat_format import chat_format
from nexa_train.data.chat_tokenization import IGNORE, Sample, encode_conversation
from nexa_train.models.bundled import materialise_bundled_model
from nexa_train.models.loading import load_tokenizer

MAX_LENGTH = 1024  # longer than every row
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "trl": ["--extra-index-url", "https://download.pytorch.org/whl/cpu", "torch==2.13.0",
            "transformers==5.23.0", "trl==1.16.0"],
}  # fmt: skip
# name -> (environment, script, variant)
CONTENDERS = {
    "ours": (None, "ours", "packed"),
    "ours, padded": (None, "ours", "padded"),
    "TRL, padded": ("trl", "with_trl", "padded"),
    "TRL, chunked loss": ("trl", "with_trl", "chunked"),
    "TRL, chunked loss, one by one": ("trl", "with_trl", "one by one"),
    "TRL, packed, chunked loss": ("trl", "with_trl", "packed"),
    "TRL, its defaults": ("trl", "with_trl", "defaults"),
}


def rows_of(path: Path, count: int, model: Path) -> Iterator[str]:
    """Lines of Job.rows from a file of {instruction, answer}: GSM8K's shape."""
    form = chat_format(load_tokenizer(str(model)))
    for line in path.read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        messages = [{"role": "user", "content": row["instruction"]},
                    {"role": "assistant", "content": row["answer"]}]  # fmt: skip
        made = encode_conversation(form, row["instruction"][:40], messages, MAX_LENGTH)
        if isinstance(made, Sample):
            mask = [int(label != IGNORE) for label in made.labels]
            yield json.dumps({"input_ids": made.input_ids, "completion_mask": mask})


def one_run(name: str, environments: Environments, job: Job) -> Figures:
    """One contender, in a process of its own. Raises Unfit."""
    environment, script, variant = CONTENDERS[name]
    given = json.dumps(asdict(job) | {"variant": variant})
    command = [environments.python(environment), "-m", f"benchmarks.training.{script}", given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unfit(f"{name}: exit {done.returncode}: {done.stderr[-1500:]}")
    return Figures(**json.loads(Path(job.out).read_text()))


def table(found: dict[str, list[Figures]]) -> str:
    """Medians and ranges; ratios to the fastest of TRL. The loss is the mean over the steps."""
    speeds = {name: [f.tokens / f.seconds for f in runs] for name, runs in found.items() if runs}
    rivals = [statistics.median(v) for name, v in speeds.items() if name.startswith("TRL")]
    best = max(rivals, default=float("nan"))
    lines = ["| contender | real tokens/s, median | range | times TRL's best | mean loss |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, values in sorted(speeds.items(), key=lambda item: -statistics.median(item[1])):
        middle, spread = statistics.median(values), f"{min(values):.1f} to {max(values):.1f}"
        loss = statistics.fmean(found[name][-1].losses)
        lines.append(f"| {name} | {middle:.1f} | {spread} | {middle / best:.2f} | {loss:.4f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True, help="JSONL {instruction, answer}")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--environments", type=Path, help="keep them there")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(measure(arguments, Path(name)))
    return 0


def measure(arguments: argparse.Namespace, folder: Path) -> str:
    """All rounds, interleaved."""
    place = (arguments.environments or folder / "environments").resolve()
    environments = Environments(place, PACKAGES)
    model = materialise_bundled_model(folder / "SmolLM2-135M-Instruct")
    rows, out = folder / "rows.jsonl", folder / "out.json"
    rows.write_text("\n".join(rows_of(arguments.input, arguments.rows, model)), encoding="utf-8")
    rate, size = arguments.learning_rate, arguments.batch_size
    job = Job(str(model), str(rows), size, rate, str(out), "")
    found: dict[str, list[Figures]] = {name: [] for name in arguments.contenders}
    for number in range(arguments.rounds):
        for name in order(arguments.contenders, number):
            try:
                found[name].append(one_run(name, environments, job))
            except Unfit as error:
                print(f"unfit: {error}", file=sys.stderr)
                continue
            figures = found[name][-1]
            print(f"round {number + 1}: {name}: {figures.tokens / figures.seconds:.1f} tokens/s, "
                  f"load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)  # fmt: skip
    return table(found)


def order(names: Sequence[str], number: int) -> list[str]:
    """Another first one in each round."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


if __name__ == "__main__":
    sys.exit(main())
