"""Progress and loss curve of a training run, in the terminal.

Reads: `metrics.jsonl` of `nexa_train.train_sft`; an incomplete last line is read the next time. By
default it follows the file until Ctrl-C.

Run: python scripts/python/training/monitor_training.py [--metrics FILE] [--once]
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from nexa_distill.console import cli
from nexa_distill.errors import InputMissing
from nexa_distill.reporting.training_curve import read_metrics
from nexa_distill.settings.student import load_both

BLOCKS = " ▁▂▃▄▅▆▇█"
HEIGHT, WIDTH = 8, 60


def plot_curve(values: Sequence[float]) -> list[str]:
    """Lines of a block plot, highest value at the top; at most WIDTH columns, each a mean."""
    columns = min(WIDTH, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    parts = [values[a:b] for a, b in pairwise(edges)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    # Each line of text has as many steps as there are block characters.
    steps = HEIGHT * (len(BLOCKS) - 1)
    heights = [round((mean - low) / ((high - low) or 1) * (steps - 1)) + 1 for mean in means]
    lines = []
    for row in reversed(range(HEIGHT)):
        full = row * (len(BLOCKS) - 1)
        cells = (BLOCKS[min(max(h - full, 0), len(BLOCKS) - 1)] for h in heights)
        label = f"{high:8.3f}" if row == HEIGHT - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        lines.append(f"{label} |{''.join(cells)}")
    return lines


def render_page(rows: Sequence[dict[str, Any]]) -> str:
    steps = [row for row in rows if "loss" in row]
    if not steps:
        return "no optimizer step yet"
    last = steps[-1]
    names = ["step", "epoch", "loss", "cross_entropy", "divergence", "lr", "grad_norm"]
    names += ["tokens_per_s", "seconds"]
    facts = [f"{name} {last[name]:.6g}" for name in names if name in last]
    val = [f"{row['val_loss']:.3f} (step {row['step']})" for row in rows if "val_loss" in row]
    page = ["  ".join(facts), "loss per trained token, nats", *plot_curve([r["loss"] for r in steps])]
    return "\n".join([*page, f"val loss: {' -> '.join(val)}"] if val else page)


def main() -> int:
    parser = cli.build_student_parser(__doc__)
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="default: the config's run")
    parser.add_argument("--once", action="store_true", help="print once and end")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two updates")
    args = parser.parse_args()
    path = args.metrics
    if path is None:
        config, student = load_both(args)
        path = student.metrics_path(config.storage)
    while True:
        if not path.is_file():
            raise InputMissing(
                f"{path}: no metrics yet; start `bash scripts/shell/training/run_training.sh` or pass --metrics FILE"
            )
        page = render_page(read_metrics(path))
        print(page if args.once else f"\033[H\033[2J{page}\n(Ctrl-C ends the view)", flush=True)
        if args.once:
            return 0
        time.sleep(args.every)


if __name__ == "__main__":
    cli.run(main)
