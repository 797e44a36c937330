"""The whole pipeline through the real launcher: real tmux, real HTTP, a real (tiny) training.

Only the sizes are small: the teacher is the ledger teacher, the student a Llama of a few thousand
weights. What is promised of the whole is asked of the whole.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from nexa_distill.storage.manifests import sha256_path
from tests import sweeps
from tests.support.tiny_model import save_config, save_model
from tests.support.workspace import ROOT, Workspace, workspace
from tests.sweeps import fewer
from tests.teacher.ledger_teacher import Teacher, ledger_teacher

pytestmark = pytest.mark.slow
STAGES = ("run_full_data_gen", "run_filtering", "run_regeneration", "run_packaging", "train_sft", "run_evaluation")
CONCURRENCY = 4


@dataclass
class Project:
    """A workspace, its teacher, and a tmux server of its own."""

    made: Workspace
    teacher: Teacher
    env: dict[str, str]

    def launch(self, *flags: str, code: int | None = 0) -> str:
        """`bash launch_pipeline.sh`, as typed; what it printed."""
        command = ["bash", "launch_pipeline.sh", "--config", str(self.made.config), *flags]
        done = subprocess.run(
            command, cwd=ROOT, env=self.env, text=True, timeout=280, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stdout
        return done.stdout

    def pipeline(self, *words: str, code: int = 0) -> str:
        done = self.made.run("nexa_distill.pipeline", *words, code=code)
        return done.stdout + done.stderr

    def tmux(self, *words: str) -> None:
        subprocess.run(["tmux", *words], env=self.env, capture_output=True, check=False)

    def stage_pids(self) -> list[int]:
        """The processes of this project's stages (their command lines name its folder)."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(self.made.folder) in line and any(stage in line for stage in STAGES):
                found.append(int(process.name))
        return found


@pytest.fixture
def project() -> Iterator[Project]:
    folder = Path(tempfile.mkdtemp(prefix="nx-"))  # short: tmux sockets need that
    student = save_config(folder / "student.yaml", save_model(folder / "tiny"), max_length=4096, epochs=1)
    values = yaml.safe_load(student.read_text())
    values["generate"] |= {"max_new_tokens": 12, "max_prompts": 6}
    student.write_text(yaml.safe_dump(values))
    env = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NEXA_RUN_ID")}
    env["TMUX_TMPDIR"] = str(folder)
    with ledger_teacher(folder, delay=0.05) as teacher:
        made = workspace(
            folder, teacher.base_url, input={"limit": 24}, student=str(student),
            collection={"concurrency": CONCURRENCY},
        )  # fmt: skip
        project = Project(made, teacher, env)
        yield project
        project.tmux("kill-server")
    shutil.rmtree(folder)


def test_raw_text_becomes_an_evaluated_student_and_a_second_run_does_nothing(project: Project) -> None:
    said = project.launch()
    made = project.made
    report = json.loads(made.path("evaluation_report").read_text())
    assert report["headline"]
    assert report["headline"][0] in said
    assert made.path("evaluation_report").with_suffix(".html").exists()
    assert len(project.teacher.billed()) == sum(project.teacher.billed().values()) == 48
    everything = snapshot(made)
    started = time.monotonic()
    project.launch()
    assert time.monotonic() - started < 15
    assert sum(project.teacher.billed().values()) == 48
    assert snapshot(made) == everything
    assert "All hashes verified" in project.pipeline("verify")
    held_out(made)
    conserved(made)


def snapshot(made: Workspace) -> dict[str, str]:
    """Every file that the stages wrote, by content."""
    root = Path(made.load().storage.root)
    files = (p for p in root.rglob("*") if p.is_file() and ".sqlite" not in p.name)
    return {str(p.relative_to(root)): sha256_path(p) for p in files if p.suffix != ".lock"}


def held_out(made: Workspace) -> None:
    """No document is on two sides, and only held-out prompts are evaluated."""
    sides = pq.read_table(made.path("raw_dataset"), columns=["sample_id", "cluster_id", "split"])
    by_cluster: dict[str, set[str]] = {}
    for row in sides.to_pylist():
        by_cluster.setdefault(row["cluster_id"], set()).add(row["split"])
    assert all(len(side) == 1 for side in by_cluster.values())
    for key in ("student_outputs", "baseline_outputs"):
        answered = pq.read_table(made.path(key), columns=["split"])["split"].unique().to_pylist()
        assert answered == ["test"]


def conserved(made: Workspace) -> None:
    """Rows in are rows kept and rows rejected, at every stage, and ids are joined, not lost."""
    manifests = made.load().storage.path_of("manifests").rglob("manifest.json")
    for manifest in (json.loads(path.read_text()) for path in manifests):
        assert manifest["rows_in"] == manifest["kept"] + manifest["rejected"]
    asked = ids(made, "raw_dataset")
    assert ids(made, "collected_dataset") == asked
    assert ids(made, "filtered_dataset") | ids(made, "rejections") == asked
    assert ids(made, "sft_parquet") == ids(made, "filtered_dataset")


def ids(made: Workspace, key: str) -> set[str]:
    return set(pq.read_table(made.path(key), columns=["sample_id"])["sample_id"].to_pylist())


def test_f01_kill_of_any_stage_at_any_moment_and_the_same_command_finishes(project: Project) -> None:
    """Kills of whichever stage is alive, then one undisturbed launch."""
    chance, killed = sweeps.chance("kills of the whole pipeline"), 0
    kills = fewer("kills of the whole pipeline", 2, 8, why="each starts the pipeline once more")
    command = ["bash", "launch_pipeline.sh", "--config", str(project.made.config)]
    log = project.made.folder / "launcher.log"
    for _ in range(kills):
        with log.open("ab") as file:
            launcher = subprocess.Popen(
                command, cwd=ROOT, env=project.env, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (pids := project.stage_pids()) and launcher.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        time.sleep(chance.uniform(0.2, 3.0))
        for pid in project.stage_pids() or pids:
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
        launcher.wait(60)
        if launcher.returncode == 0:
            break
    project.launch()
    assert killed
    billed = project.teacher.billed()
    assert len(billed) == 48
    assert sum(billed.values()) - 48 <= CONCURRENCY * killed
    conserved(project.made)
    held_out(project.made)
    assert "All hashes verified" in project.pipeline("verify")


def test_f34_an_edited_table_is_named_by_verify_and_made_again(project: Project) -> None:
    project.launch("--only", "data_gen")
    project.launch("--only", "filtering")
    filtered = project.made.path("filtered_dataset")
    good = filtered.read_bytes()
    filtered.write_bytes(good + b"x")
    said = project.pipeline("verify", code=66)
    assert "broken link at sample_gate" in said
    said = project.launch("--only", "packaging", code=66)
    assert "is not the file that" in said
    project.launch("--only", "filtering")
    assert filtered.read_bytes() == good
    assert sum(project.teacher.billed().values()) == 48
