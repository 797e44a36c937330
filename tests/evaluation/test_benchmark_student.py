"""What needs no harness; the harness itself is an extra and not installed where the tests run."""

import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from nexa_distill.errors import UsageError
from nexa_train import benchmark_student
from tests import warm
from tests.support.answers import REPOSITORY

RESULTS = {
    "results": {
        "capitals": {
            "alias": "capitals", "exact_match,none": 0.25, "exact_match_stderr,none": 0.125,
            "perplexity,none": float("nan"), "perplexity_stderr,none": "N/A", "sample_len": 8,
        },
    },
    "versions": {"capitals": 1.0}, "n-shot": {"capitals": 2},
    "higher_is_better": {"capitals": {"exact_match": True}},
    "n-samples": {"capitals": {"original": 16, "effective": 8}},
}  # fmt: skip


def test_each_figure_carries_its_error_its_samples_and_the_version_of_its_task() -> None:
    assert benchmark_student.summarize_results(RESULTS)["capitals"] == {
        "version": 1.0, "n_shot": 2, "samples": 8, "samples_of_task": 16,
        "higher_is_better": {"exact_match": True},
        "metrics": {
            "exact_match,none": {"value": 0.25, "stderr": 0.125},
            "perplexity,none": {"value": None, "stderr": None},
        },
    }  # fmt: skip


def test_without_the_harness_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_name: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(benchmark_student, "version", nothing)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[benchmarks\]'"):
        benchmark_student.harness_version()


@pytest.mark.parametrize(("words", "said"), [([], "--tasks"), (["--limit", "0"], "at least 1")])
def test_the_command_line_is_checked_first(words: list[str], said: str) -> None:
    command = [warm.python(), "-m", "nexa_train.benchmark_student", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_extra_is_pinned() -> None:
    text = (Path(REPOSITORY) / "pyproject.toml").read_text()
    assert 'benchmarks = ["lm-eval==' in text
