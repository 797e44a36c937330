"""Datasets by name: a local folder takes the Hub's place here, read by the same library."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nexa_distill.errors import InputError, InputMissing
from nexa_distill.orchestration.planning import Request
from nexa_distill.pipeline import describe_plan
from nexa_distill.raw_data.hub import copy_dataset, parse_source
from nexa_distill.raw_data.input_reading import settle_input
from tests.support.workspace import workspace

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train*}
  - {split: test, path: main/test*}
- config_name: socratic
  data_files: [{split: validation, path: socratic/*}, {split: test, path: main/test*}]
---
"""


def put(folder: Path, name: str, *questions: str) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"question": q, "answer": q.upper()}) + "\n" for q in questions))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder with two splits and no card."""
    put(tmp_path / "plain", "data/train-0.jsonl", "a", "b", "c")
    put(tmp_path / "plain", "data/test-0.jsonl", "d")
    return tmp_path / "plain"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder with two configs."""
    put(tmp_path / "configs", "main/train.jsonl", "a", "b")
    put(tmp_path / "configs", "main/test.jsonl", "c")
    put(tmp_path / "configs", "socratic/x.jsonl", "d")
    (tmp_path / "configs/README.md").write_text(CARD)
    return tmp_path / "configs"


def questions(source: str, folder: Path) -> str:
    return "".join(pq.read_table(copy_dataset(source, folder))["question"].to_pylist())


@pytest.mark.parametrize(
    ("part", "expected"),
    [("", "abc"), (":test", "d"), (":train[:2]", "ab"), (":default:test", "d"), (":train+test", "abcd")],
)
def test_a_split_is_chosen_by_name_or_is_train(tmp_path: Path, plain: Path, part: str, expected: str) -> None:
    assert questions(f"hf:{plain}{part}", tmp_path / "copies") == expected


@pytest.mark.parametrize(("part", "expected"), [(":main", "ab"), (":main:test", "c"), (":socratic:validation", "d")])
def test_a_config_is_chosen_by_name(tmp_path: Path, configs: Path, part: str, expected: str) -> None:
    assert questions(f"hf:{configs}{part}", tmp_path / "copies") == expected


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("", r"several configs; choose one: --input hf:.*:main, --input hf:.*:socratic"),
        (":socratic", r"several splits; choose one: --input hf:.*validation, --input hf:.*test"),
        (":main:tran", r'no split tran \(did you mean "train"\?\); it has train, test'),
        (":mian:train", r'no config mian \(did you mean "main"\?\)'),
        (":main:train[5:5]", "has no rows"),
        (":a:b:c", r"expected hf:NAME\[@REVISION\]"),
    ],
)
def test_what_has_to_be_chosen_is_listed(tmp_path: Path, configs: Path, part: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        copy_dataset(f"hf:{configs}{part}", tmp_path / "copies")
    assert not list(tmp_path.glob("copies/*"))


def test_a_name_has_a_revision_and_a_slice_has_a_colon() -> None:
    assert parse_source("hf:openai/gsm8k@v1:main:train[10:20]") == ("openai/gsm8k", "v1", ["main", "train[10:20]"])
    with pytest.raises(InputMissing, match="no such folder"):
        parse_source("hf:./nowhere:train")


def test_a_copy_is_kept_until_the_folder_changes(tmp_path: Path, plain: Path) -> None:
    copy = copy_dataset(f"hf:{plain}", tmp_path / "copies")
    before = copy.stat().st_mtime_ns
    assert copy_dataset(f"hf:{plain}", tmp_path / "copies").stat().st_mtime_ns == before
    put(plain, "data/train-0.jsonl", "z")
    assert questions(f"hf:{plain}", tmp_path / "copies") == "z"


def test_a_dataset_is_planned_and_its_answers_are_taken(tmp_path: Path, plain: Path) -> None:
    made = workspace(tmp_path, input={"path": f"hf:{plain}"})
    config = settle_input(made.load())
    assert (config.answers.column, config.has_answers_in_input) == ("answer", True)
    page = "\n".join(describe_plan(Request(made.config)))
    assert "3 rows: question (prompt), answer" in page


def test_a_dataset_that_cannot_be_loaded_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = workspace(tmp_path, input={"path": "hf:nobody/nothing:train"})
    done = made.run("scripts/python/data_processing/run_full_data_gen.py", code=65)
    assert "hf:nobody/nothing:train: cannot be loaded" in done.stderr
    assert "--input FOLDER" in done.stderr
