import json
import subprocess
from pathlib import Path

from tests import warm
from tests.support.tiny_model import ROOT

SCRIPT = "scripts/python/training/monitor_training.py"


def look(metrics: Path) -> subprocess.CompletedProcess[str]:
    command = [warm.python(), SCRIPT, "--once", "--metrics", str(metrics)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_shows_last_step_curve_and_val_losses(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [{"step": 0, "epoch": 0, "val_loss": 5.0}]
    rows += [{"step": i, "epoch": 0, "loss": 4.0 - i / 50, "lr": 0.1} for i in range(1, 101)]
    rows[-1] |= {"val_loss": 2.5, "cross_entropy": 1.5, "divergence": 0.25}
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 101, "lo')
    seen = look(metrics)
    assert seen.returncode == 0, seen.stderr
    assert "step 100" in seen.stdout
    assert "cross_entropy 1.5  divergence 0.25" in seen.stdout
    assert "val loss: 5.000 (step 0) -> 2.500 (step 100)" in seen.stdout
    top, bottom = seen.stdout.splitlines()[2], seen.stdout.splitlines()[9]
    assert top.count("█") < bottom.count("█")


def test_without_metrics_says_what_to_start(tmp_path: Path) -> None:
    seen = look(tmp_path / "metrics.jsonl")
    assert seen.returncode == 66
    assert "run_training.sh" in seen.stderr
