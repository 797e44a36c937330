"""Whatever ends a save, the run goes on from a whole checkpoint with the same losses (F40)."""

import errno
import json
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nexa_distill.storage import failpoints
from nexa_train.models.loading import load_model
from nexa_train.training import checkpoints
from tests.support.precision import in_float32
from tests.support.tiny_model import ROOT, save_config, save_model
from tests.sweeps import some
from tests.training.test_train_sft import Run, environment, losses

pytestmark = pytest.mark.usefixtures("float32")
STEPS = 12  # 24 samples, batches of 4, two epochs; saved after 3, 6 and 9


@pytest.fixture(scope="module")
def whole(precision: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed run, in its folder `out`."""
    run = Run(tmp_path_factory.mktemp("whole"))
    run.here(run.folder / "out")
    assert len(losses(run.folder / "out")) == STEPS
    return run


def ends_as(whole: Run, output: Path) -> None:
    assert losses(output) == losses(whole.folder / "out")
    one, other = (load_file(o / "final/model.safetensors") for o in (whole.folder / "out", output))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(output.glob("step-*"))


def stopped(whole: Run, output: Path, monkeypatch: pytest.MonkeyPatch, hit: int) -> None:
    """The disk is full at the `hit`-th step of saving."""
    with monkeypatch.context() as at:
        at.setattr(failpoints, "_WANTED", ["checkpoint", str(hit), "ENOSPC"])
        at.setattr(failpoints, "_HITS", Counter())
        with pytest.raises(OSError, match="No space left") as raised:
            whole.here(output)
    assert raised.value.errno == errno.ENOSPC


@in_float32
@pytest.mark.parametrize(
    "hit", some("full disks in a save", [1, 2, 3, 9, 10], 2, why="each is at another step of a save")
)
def test_f40_a_full_disk_in_a_save_costs_the_steps_since_the_last_one(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hit: int, precision: str
) -> None:
    output = tmp_path / "out"
    stopped(whole, output, monkeypatch, hit)
    saved = [path.name for path in sorted(output.glob("step-*"))]
    renamed = min(hit // 3, 3)  # the third hit of a save comes after its rename
    assert saved[-1:] == [f"step-{3 * renamed:06d}"] * bool(renamed)
    whole.here(output)
    ends_as(whole, output)


@pytest.mark.parametrize("hit", [1, 5])
def test_f40_killed_in_a_save(whole: Run, tmp_path: Path, hit: int) -> None:
    output = tmp_path / "out"
    killed = environment() | {"NEXA_FAILPOINT": f"checkpoint:{hit}"}
    done = subprocess.run(whole.command(output), cwd=ROOT, env=killed, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(output.glob(".step-*.tmp"))) == 1
    whole.here(output)
    ends_as(whole, output)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@in_float32
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "model.safetensors"),
        lambda folder: (folder / checkpoints.OPTIMIZER).unlink(),
        lambda folder: (folder / checkpoints.STATE).write_text('{"step": 6, "ru'),
        empty,
    ],
)
def test_f40_a_torn_newest_checkpoint_is_passed_over(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture, precision: str,
) -> None:  # fmt: skip
    output = tmp_path / "out"
    stopped(whole, output, monkeypatch, 7)
    assert [path.name for path in sorted(output.glob("step-*"))] == ["step-000003", "step-000006"]
    damage(output / "step-000006")
    whole.here(output)
    assert "step-000006 is not complete" in caplog.text
    ends_as(whole, output)


def test_a_checkpoint_of_another_run_is_not_continued(tmp_path: Path) -> None:
    made = tmp_path / "step-000003"
    made.mkdir()
    (made / checkpoints.STATE).write_text('{"step": 3, "run_key": "other", "files": {}}')
    assert checkpoints.latest_checkpoint(tmp_path, "other") == made
    assert checkpoints.latest_checkpoint(tmp_path, "this") is None


def test_t21_changed_settings_are_named_and_what_becomes_of_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = Run(tmp_path), tmp_path / "out"
    stopped(run, output, monkeypatch, 7)
    capsys.readouterr()
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]}
    save_config(run.config, run.model, learning_rate=0.001, lora=lora)
    run.here(output)
    said = [line for line in capsys.readouterr().out.splitlines() if "step-" in line]
    assert said == [
        f"{output}: step-000003, step-000006 cannot be continued (settings differ: "
        f"train.learning_rate 0.003 -> 0.001, train.lora null -> {json.dumps(lora)}); training "
        "begins at step 0 and removes them at its next save, so copy what you want to keep"
    ]
    assert sorted(losses(output)) == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({"settings": {"train": {"seed": 7}}}, "the data or the base model differ"),
        ({}, "they were saved by an earlier version, with other data or settings"),
    ],
)
def test_t21_other_data_or_an_older_checkpoint_is_no_change_of_settings(
    tmp_path: Path, before: dict[str, Any], said: str
) -> None:
    assert checkpoints.explain_restart(tmp_path, {}) is None
    made = tmp_path / "step-000003"
    made.mkdir()
    state = {"step": 3, "run_key": "other", "files": {}} | before
    (made / checkpoints.STATE).write_text(json.dumps(state))
    found = checkpoints.explain_restart(tmp_path, {"train": {"seed": 7}})
    assert f"step-000003 cannot be continued ({said})" in str(found)


def test_checkpoints_of_another_run_do_not_push_out_this_ones(tmp_path: Path) -> None:
    for step in (100, 120):
        old = tmp_path / f"step-{step:06d}"
        old.mkdir()
        text = json.dumps({"step": step, "run_key": "other", "files": {}})
        (old / checkpoints.STATE).write_text(text)
    model = load_model(str(save_model(tmp_path / "model")))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in (20, 40, 60):
        checkpoints.save(tmp_path, model, optimizer, step=step, run_key="this", settings={})
    there = sorted(path.name for path in tmp_path.glob("step-*"))
    assert there == ["step-000040", "step-000060"]
    assert checkpoints.latest_checkpoint(tmp_path, "this") == tmp_path / "step-000060"
