"""The tutorial's commands, typed as they are, in a clean folder of the project."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from nexa_distill.storage.atomic import read_json_object
from tests.sweeps import fewer

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs/tutorial.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LINKED = ("nexa_distill", "nexa_train", "configs", "launch_pipeline.sh", "requirements.txt",
          "requirements-dev.txt", "requirements-models.txt", "pyproject.toml", ".venv")  # fmt: skip


def test_the_tutorial_leads_from_a_csv_to_two_students() -> None:
    """Every command; the chapter with the second student only with --full."""
    blocks = re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    blocks = blocks[: fewer("chapters of the tutorial", 5, 6, why="the sixth trains a second student")]
    folder = Path(tempfile.mkdtemp(prefix="nx-"))  # short: tmux sockets need that
    for name in LINKED:
        if (ROOT / name).exists():
            (folder / name).symlink_to((ROOT / name).resolve())
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "scripts/shell/setup/environment.sh").write_text("exit 0\n")  # has tests of its own
    env = os.environ | {"TMUX_TMPDIR": str(folder), "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    env.pop("TMUX", None)
    try:
        for block in blocks:
            done = subprocess.run(
                ["bash", "-e", "-c", block], cwd=folder, env=env, text=True, timeout=600, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            assert done.returncode == 0, f"{block}\n{done.stdout}"
        report = read_json_object(folder / "data/runs/units/evaluation/report.json")
        assert report is not None
        assert report["models"]["after"]["gate"]["total"] >= 6
        assert report["comparison"]["loss"]["verdict"] == "lower", "it has learnt"
        assert "All hashes verified." in done.stdout or "answered by both" in done.stdout
        assert not (folder / "data/processed/training").exists(), "nothing outside the runs' own folders"
    finally:
        subprocess.run(["tmux", "kill-server"], env=env, capture_output=True, check=False)
        shutil.rmtree(folder)
