"""A small project folder with the real launcher, the real plan and tiny stages, on its own tmux.

The stage scripts stand where the plan's commands expect them and seal a few bytes per output with
the real manifests, so that "up to date" means here what it means in the project. A test replaces
the script of one session to make that stage fail, wait or die.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import yaml

from tests import warm

TMUX = shutil.which("tmux") or "tmux"
ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "data_gen": "scripts/python/data_processing/run_full_data_gen.py",
    "filtering": "scripts/python/data_processing/run_filtering.py",
    "regeneration": "scripts/python/data_processing/run_regeneration.py",
    "packaging": "scripts/python/deployment/run_packaging.py",
    "training": "scripts/shell/training/train.py",
    "evaluation": "scripts/python/evaluation/run_evaluation.py",
}
TINY_STAGE = ROOT / "tests/support/tiny_stage.py"
TEACHER = """
import argparse, time
from datetime import date
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--endpoint-file", type=Path)
parser.add_argument("--until", type=Path)
given = parser.parse_args()
time.sleep(0.3)
given.endpoint_file.parent.mkdir(parents=True, exist_ok=True)
given.endpoint_file.write_text("{}")
while not given.until.exists():
    time.sleep(0.1)
given.endpoint_file.unlink()
"""
STUDENT = {
    "run_name": "tiny", "student": "tiny", "keep_layers": None,
    "chat_template_kwargs": {}, "chat_template_date": date(2026, 1, 1),
    "train": {
        "epochs": 1, "batch_size": 1, "packing": True, "gradient_accumulation": 1,
        "learning_rate": 1e-4,
        "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_length": 64,
        "max_refused_share": 0.0, "lora": None, "precision": "auto", "gradient_checkpointing": False, "compile": False,
        "fused_loss": False, "seed": 1, "save_every_steps": 1, "eval_every_steps": 1,
    },
    "distillation": {
        "loss": "none", "source": "cache", "teacher": "tiny", "kd_ratio": 0.5, "temperature": 1.0,
        "top_k": 8, "on_policy": 0.0, "sampling_temperature": 1.0,
    },
    "generate": {
        "split": "test", "max_new_tokens": 8, "temperature": 0.0, "batch_size": 1,
        "max_prompts": None,
    },
}  # fmt: skip


def heed_ctrl_c() -> None:
    """A shell's background job, which the tests may be in, hands an ignored SIGINT down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class TinyProject:
    """The folder, and what a person does in it."""

    def __init__(self, root: Path, provider: str = "ollama") -> None:
        self.root = root
        shutil.copytree(ROOT / "scripts/shell/orchestration", root / "scripts/shell/orchestration")
        shutil.copy(ROOT / "launch_pipeline.sh", root)
        self.write("scripts/shell/setup/environment.sh", "exit 0\n")  # has tests of its own
        self.write("scripts/shell/training/run_training.sh", 'exec python scripts/shell/training/train.py "$@"\n')
        # The launcher's own commands; a stage is a process of its own, in its terminal.
        of_launcher = f'[ "$2" = nexa_distill.pipeline ] && exec {warm.python()} "$@"'
        shim = f'#!/bin/sh\n{of_launcher}\nexec {sys.executable} "$@"\n'
        python = self.write(".venv/bin/python", shim)
        python.chmod(0o755)
        for session in SCRIPTS:
            self.succeeds(session)
        self.write("teacher.py", TEACHER)
        self.write("raw.jsonl", '{"text": "a"}\n')
        self.write("configs/student.yaml", yaml.safe_dump(STUDENT))
        self.write("configs/distill_config.yaml", yaml.safe_dump(self._config(provider)))
        self.env = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NEXA_RUN_ID")}
        self.env["TMUX_TMPDIR"] = str(root)

    def _config(self, provider: str) -> dict[str, object]:
        return {
            "extends": str(ROOT / "configs/distill_config.yaml"),
            "input": {"path": "raw.jsonl"},
            "defaults": {"prompts": str(ROOT / "nexa_distill/prompts")},
            "collection": {
                "system_prompt_path": str(ROOT / "nexa_distill/prompts/system_toolproto.txt"),
                "regen_system_prompt_path": str(ROOT / "nexa_distill/prompts/system_regen.txt"),
            },
            "filters": str(ROOT / "configs/filters.yaml"),
            "student": "configs/student.yaml",
            "provider": provider,
            "providers": {"embedded": {"start": ["python", "teacher.py"]}},
        }

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def does(self, session: str, code: str) -> None:
        """Let the session's stage run this Python instead."""
        self.write(SCRIPTS[session], code)

    def succeeds(self, session: str) -> None:
        """Let the session's stage seal its outputs."""
        stage = f"import runpy\ntiny = runpy.run_path({str(TINY_STAGE)!r})\n"
        self.does(session, f"{stage}tiny['seal_session']({session!r}, tiny['configured']())\n")

    def launch(self, *options: str, check: int | None = None) -> subprocess.CompletedProcess[str]:
        """`bash launch_pipeline.sh OPTIONS`, with stderr in stdout."""
        done = subprocess.run(
            ["bash", "launch_pipeline.sh", *options],
            cwd=self.root, env=self.env, text=True, timeout=60, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if check is not None:
            assert done.returncode == check, done.stdout
        return done

    def start(self, *options: str) -> subprocess.Popen[str]:
        """The same, left running in a process group of its own, as a terminal would."""
        return subprocess.Popen(
            ["bash", "launch_pipeline.sh", *options],
            cwd=self.root, env=self.env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=heed_ctrl_c,
        )  # fmt: skip

    def tmux(self, *words: str) -> str:
        """The output of a tmux command on the project's own server; "" when it fails."""
        done = subprocess.run([TMUX, *words], env=self.env, text=True, capture_output=True, check=False)
        return done.stdout

    def sessions(self) -> list[str]:
        """The names of the tmux sessions."""
        return self.tmux("list-sessions", "-F", "#{session_name}").split()

    @property
    def run_dir(self) -> Path:
        """The newest run's folder."""
        return (self.root / "logs/latest").resolve()

    def runs(self) -> list[Path]:
        """Every run's folder."""
        return [p for p in (self.root / "logs").glob("*") if p.name != "latest"]

    def exit_code(self, session: str) -> int | None:
        """What the session's exit file says."""
        file = self.run_dir / f"{session}.exit"
        return int(file.read_text()) if file.exists() else None

    def log(self, session: str) -> str:
        """The session's log."""
        return (self.run_dir / f"{session}.log").read_text()

    def pid(self, session: str) -> int:
        """The pid of the session's wrapper."""
        return int((self.run_dir / f"{session}.pid").read_text())

    def close(self) -> None:
        """End the tmux server and everything in it."""
        for pid in self.tmux("list-panes", "-a", "-F", "#{pane_pid}").split():
            try:
                os.killpg(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.tmux("kill-server")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """Poll until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
