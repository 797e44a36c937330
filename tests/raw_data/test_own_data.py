"""A newcomer's data, from the file to the training samples: nothing to edit, and no error on the way.

The commands are those of the launcher's sessions, run by hand and told nothing that they did not write.
"""

import csv
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import warm
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.ledger_teacher import Teacher, ledger_teacher

SCRIPTS = [
    "scripts/python/data_processing/run_filtering.py",
    "scripts/python/data_processing/run_regeneration.py",
    "scripts/python/deployment/run_packaging.py",
]
CITIES = {
    "Albania": "Tirana", "Bulgaria": "Sofia", "Chile": "Santiago", "Denmark": "Copenhagen", "Egypt": "Cairo",
    "Finland": "Helsinki", "Ghana": "Accra", "Hungary": "Budapest", "Iceland": "Reykjavik", "Japan": "Tokyo",
    "Kenya": "Nairobi", "Latvia": "Riga",
}  # fmt: skip
# One of the three falls into the test split, without which no run can be evaluated.
NOTES = {
    "tides": "The harbour gauge rises twice a day. The moon pulls the water, and the bay makes the swing larger.",
    "bread": "A sour dough needs ten hours at twenty degrees. Salt slows the yeast and makes the crumb even.",
    "bees": "A swarm leaves the hive in May when the queen is old. Scouts dance for the place that they like best.",
}


class Newcomer:
    """Types commands, and counts those that end in an error."""

    def __init__(self, made: Workspace) -> None:
        self.made, self.errors, self.page = made, list[str](), ""

    def type_command(self, first: str, *rest: str) -> str:
        start = [first] if first.endswith(".py") else ["-m", "nexa_distill.pipeline", first]
        command = [warm.python(), *start, "--config", str(self.made.config), *rest]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        self.errors += [line for line in done.stderr.splitlines() if line.startswith(("error", "Traceback"))]
        self.errors += [f"exit {done.returncode}: {first}"] if done.returncode else []
        self.page += done.stdout
        return done.stdout

    def samples(self) -> list[list[str]]:
        """The contents of each sample's messages."""
        rows = pq.read_table(self.made.path("sft_parquet")).to_pylist()
        return [[message["content"] for message in row["messages"]] for row in rows]


@pytest.fixture
def teacher(tmp_path: Path) -> Iterator[Teacher]:
    with ledger_teacher(tmp_path / "teacher") as running:
        yield running


def test_a_csv_of_questions_and_answers_becomes_samples_without_an_error(tmp_path: Path, teacher: Teacher) -> None:
    file = tmp_path / "qa.csv"
    with file.open("w", newline="") as out:
        lines = [(f"What is the capital of {country}?", city) for country, city in CITIES.items()]
        csv.writer(out).writerows([("question", "answer"), *lines])
    user = Newcomer(workspace(tmp_path / "run", teacher.base_url))
    assert "(prompt), answer" in user.type_command("plan", "--input", str(file))
    user.type_command("scripts/python/data_processing/run_full_data_gen.py", "--input", str(file))
    for script in SCRIPTS:
        user.type_command(script)
    assert user.errors == []
    assert "12 of 12 answers kept" in user.page
    assert {(prompt, answer) for _, prompt, answer in user.samples()} == set(lines)
    assert not teacher.sends(None)


def test_three_markdown_files_are_summarized_without_an_error(tmp_path: Path, teacher: Teacher) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / f"{name}.md").write_text(f"---\ntitle: {name}\n---\n\n# {name}\n\n{text}\n")
    user = Newcomer(workspace(tmp_path / "run", teacher.base_url))
    flags = ["--input", str(folder), "--task", "summarize"]
    assert "Summarize this text in two or three sentences." in user.type_command("plan", *flags)
    user.type_command("scripts/python/data_processing/run_full_data_gen.py", *flags)
    for script in SCRIPTS:
        user.type_command(script)
    assert user.errors == []
    systems = {system for system, _, _ in user.samples()}
    assert systems == {"You write short and faithful summaries. You add nothing that the text does not say."}


def test_a_seed_is_named_where_few_notes_leave_no_test(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / f"{name}.md").write_text(text.replace("ten hours", "eight hours"))
    made = workspace(tmp_path / "run", input={"path": str(folder)})
    for seed in range(20):  # one that leaves the test split empty
        made.change(split={"seed": seed})
        said = made.run("scripts/python/data_processing/run_full_data_gen.py", code=None).stderr
        if "no document falls into test" in said:
            break
    named = re.search(r"`split: \{seed: (\d+)\}` in your configuration would do for these 3 documents", said)
    assert named
    made.change(split={"seed": int(named[1])})
    made.run("scripts/python/data_processing/run_full_data_gen.py", code=69)  # only the teacher is not there
