"""What the launcher hands on of tasks and datasets, typed in another folder than the project's."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_project import TinyProject


@pytest.fixture
def project(tmp_path: Path) -> Iterator[TinyProject]:
    made = TinyProject(tmp_path)
    (made.root / "away").mkdir()
    yield made
    made.close()


def plan_away(project: TinyProject, *flags: str) -> tuple[int, str]:
    """(exit code, output) of a dry run that is typed in `away/`."""
    done = subprocess.run(
        ["bash", "../launch_pipeline.sh", "--dry-run", *flags],
        cwd=project.root / "away", env=project.env | {"HF_HUB_OFFLINE": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_files_and_folders_of_tasks_are_meant_from_where_they_are_typed(project: TinyProject) -> None:
    project.write("away/limerick.txt", "A limerick about {context}")
    project.write("away/own/terse/prompt.txt", "Briefly: {context}")
    code, said = plan_away(project, "--task", "summarize,limerick.txt,own/terse")
    away = project.root / "away"
    assert code == 0, said
    assert f"--task summarize,{away}/limerick.txt,{away}/own/terse" in said
    assert "filters: preset chat for summarize, limerick, terse" in said


def test_a_typo_in_a_task_is_an_error_of_the_plan(project: TinyProject) -> None:
    code, said = plan_away(project, "--task", "sumarize")
    assert (code, 'did you mean "summarize"' in said) == (65, True)


def test_a_dataset_is_no_path(project: TinyProject) -> None:
    code, said = plan_away(project, "--input", "hf:nobody/nothing:train")
    assert (code, "hf:nobody/nothing:train: cannot be loaded" in said) == (65, True)
