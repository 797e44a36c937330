"""Peak memory and time of the rule checks and of SampleGate, by the number of answers.

    python -m benchmarks.filtering.memory [--rows 100000 1000000]

Both run as a user runs them, each in a process of its own, on answers of about 1 kB with every rule
of configs/filters.yaml. What grows from one size to the next, per answer, is the last column.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.filtering.run import make_answers
from benchmarks.measured import peak_memory
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.manifests import StageRun

COMMANDS = ("filter_pairs", "sample_gate")
CONFIG = Path("configs/distill_config.yaml").resolve()


def prepare(folder: Path, rows: int) -> Path:
    """A configuration whose storage holds so many sealed answers."""
    path = folder / "config.yaml"
    path.write_text(f"extends: {CONFIG}\nstorage: {{root: {folder / 'data'}}}\n")
    config: DistillConfig = load_config(path)
    answers = config.storage.path_of("collected_dataset")
    make_answers(answers, rows)
    StageRun("teacher", config.storage, inputs=[], settings={}).seal_output(answers, rows_in=rows, rejected=0)
    return path


def results(sizes: list[int]) -> Iterator[tuple[str, list[tuple[int, float, float]]]]:
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in COMMANDS}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            config = prepare(Path(folder), rows)
            for name in COMMANDS:
                command = [sys.executable, "-m", f"nexa_distill.{name}"]
                if name == "sample_gate":
                    command += ["--config", str(config)]
                else:
                    command += ["--pipeline-config", str(config)]
                found[name].append((rows, *peak_memory(command)))
    yield from found.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    sizes = sorted(parser.parse_args().rows)
    print("| command | answers | peak memory, MB | seconds | bytes per further answer |")
    print("|---|---|---|---|---|")
    for name, lines in results(sizes):
        grown = [(b[1] - a[1]) * 2**20 / (b[0] - a[0]) for a, b in pairwise(lines)]
        for (rows, memory, seconds), more in zip(lines, [None, *grown], strict=True):
            per = "" if more is None else f"{more:,.0f}"
            print(f"| {name} | {rows:,} | {memory:,.0f} | {seconds:.1f} | {per} |")


if __name__ == "__main__":
    main()
