"""Near-duplicate clustering beside its rivals, and the memory of the whole stage.

    python -m benchmarks.dedup.run [--texts 200000] [--rounds 3] [--truth 3000]
    python -m benchmarks.dedup.run memory [--rows 250000 500000]

First what is found is compared with brute force: all pairs of `--truth` texts by exact Jaccard; it
stops when ours finds less than 0.95 of them or joins what no chain of true pairs joins. Then rounds
are interleaved, each contender in a process of its own; medians, ranges, peak memory. `memory` runs
`python -m nexa_distill.dedup` on generated tables and gives its peak memory and MB per 1,000 rows.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.dedup import corpus
from benchmarks.measured import peak_memory
from nexa_distill.contracts import CANONICAL
from nexa_distill.deduplication.minhash import union_labels
from nexa_distill.storage.tables import table_writer
from nexa_distill.text.hashing import sha256_text

# A small parent of its own, so that the peak of its children is that of the stage.
CONTENDERS = ("ours", "rensa", "datasketch")


def once(name: str, file: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.dedup.contenders", name, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def truth(made: list[str]) -> set[tuple[int, int]]:
    """Pairs with an exact Jaccard of at least 0.8, all pairs compared."""
    sets = [corpus.shingles(text) for text in made]
    pairs = set()
    for (i, a), (j, b) in itertools.combinations(enumerate(sets), 2):
        if min(len(a), len(b)) >= 0.8 * max(len(a), len(b)):
            common = len(a & b)
            if common >= 0.8 * (len(a) + len(b) - common):
                pairs.add((i, j))
    return pairs


def check(folder: Path, count: int) -> str:
    """Recall and precision of each contender on texts small enough for brute force."""
    made, file = corpus.texts(count, seed=11), folder / "truth.jsonl"
    corpus.write(file, made)
    true = truth(made)
    chained = np.arange(count)
    both = np.array(sorted(true), np.int64).reshape(-1, 2)
    union_labels(chained, both[:, 0], both[:, 1])
    lines = [f"{len(true)} true pairs among {count:,} texts", "",
             "| contender | true pairs in one family | pairs that no chain of true ones joins |",
             "|---|---|---|"]  # fmt: skip
    for name in CONTENDERS:
        once(name, file)
        labels = json.loads(file.with_suffix(f".{name}").read_text())
        recall = sum(labels[a] == labels[b] for a, b in true) / len(true)
        members: dict[int, list[int]] = {}
        for number, label in enumerate(labels):
            members.setdefault(label, []).append(number)
        pairs = [p for group in members.values() for p in itertools.combinations(group, 2)]
        wrong = sum(int(chained[a] != chained[b]) for a, b in pairs)
        lines.append(f"| {name} | {recall:.3f} | {wrong} |")
        if name == "ours" and (recall < 0.95 or wrong):
            sys.exit("\n".join([*lines, "ours does not find what it says: nothing is timed"]))
    return "\n".join(lines)


def compare(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(check(folder, args.truth), flush=True)
        file = folder / "texts.jsonl"
        corpus.write(file, corpus.texts(args.texts))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(args.rounds):
            for contender in CONTENDERS:
                runs[contender].append(once(contender, file))
        print(f"\n{args.texts:,} texts, {args.rounds} rounds, {os.cpu_count()} cores, load at the "
              f"end {os.getloadavg()[0]:.1f}\n\n{table(args.texts, runs)}")  # fmt: skip


def table(count: int, runs: dict[str, list[dict[str, float]]]) -> str:
    base = statistics.median(run["seconds"] for run in runs["datasketch"])
    lines = ["| contender | texts/s, median | range | times datasketch | peak memory |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, found in runs.items():
        seconds = [run["seconds"] for run in found]
        middle = statistics.median(seconds)
        spread = f"{count / max(seconds):,.0f} to {count / min(seconds):,.0f}"
        peak = max(run["peak_mb"] for run in found)
        lines.append(f"| {name} | {count / middle:,.0f} | {spread} | {base / middle:.1f} | {peak:,.0f} MB |")
    return "\n".join(lines)


def memory(args: argparse.Namespace) -> None:
    found: list[tuple[int, float]] = []
    print("| rows | peak memory | seconds |\n|---|---|---|")
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            peak, seconds = stage(Path(name), rows)
        found.append((rows, peak))
        print(f"| {rows:,} | {peak:,.0f} MB | {seconds:.0f} |", flush=True)
    (few, low), (many, high) = found[0], found[-1]
    if many > few:
        print(f"\n{(high - low) / (many - few) * 1e6:,.0f} bytes per row more")


def stage(folder: Path, rows: int) -> tuple[float, float]:
    """Peak memory in MB and seconds of dedup on so many rows of about 1 kB."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({
        "extends": str(Path("configs/distill_config.yaml").resolve()),
        "storage": {"root": str(folder / "data")},
    }))  # fmt: skip
    src = folder / "canonical.parquet"
    made = corpus.texts(min(rows, 50_000))
    with table_writer(src, CANONICAL) as out:
        for start in range(0, rows, 4096):
            numbers = range(start, min(start + 4096, rows))
            out.write(pa.Table.from_pylist([_row(n, made) for n in numbers], schema=CANONICAL))
    del made
    stage = ["nexa_distill.dedup", "--config", str(config), "--src", str(src)]
    return peak_memory([sys.executable, "-m", *stage])


def _row(number: int, made: list[str]) -> dict[str, Any]:
    """Later rows repeat the texts with a word in twelve changed, so none is a near-duplicate."""
    text = made[number % len(made)]
    if again := number // len(made):
        words = text.split()
        words[:: 4 + again % 4] = [f"{word}{again}" for word in words[:: 4 + again % 4]]
        text = " ".join(words)
    name = sha256_text(str(number))
    return {
        "sample_id": name, "task_id": f"t{number}", "template_name": "hypothesis",
        "user_prompt": f"Passage:\n{text}\n\nWrite a hypothesis.", "context": text,
        "source_file": "made", "source_row": number, "document_id": sha256_text(text),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["speed", "memory"], default="speed")
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--truth", type=int, default=3_000)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 500_000])
    args = parser.parse_args()
    (memory if args.what == "memory" else compare)(args)


if __name__ == "__main__":
    main()
