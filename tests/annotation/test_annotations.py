"""Decisions of people: what was acknowledged is there, whatever happens to the writers (F32)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_distill.annotation.annotations import (
    Annotation,
    agreed_action,
    append,
    latest_decisions,
    read,
    write_rejected,
)
from nexa_distill.errors import InputError
from tests.support.workspace import ROOT, workspace

# Appends decisions on its own samples, and says each one that is acknowledged.
WRITER = """
import sys
from pathlib import Path
from nexa_distill.annotation.annotations import Annotation, append
for n in range(int(sys.argv[3])):
    name = f"{sys.argv[2]}{n}"
    append(Path(sys.argv[1]), Annotation(sample_id=name, attempt=0, action="accept", note="x" * 99))
    print(name, flush=True)
"""


def decision(
    sample: str = "a", action: str = "accept", who: str | None = "ann", attempt: int = 0,
    edited: str | None = None,
) -> Annotation:  # fmt: skip
    return Annotation.model_validate(
        {"sample_id": sample, "attempt": attempt, "action": action, "annotator": who,
         "edited_output": edited, "timestamp": "2026-01-01T00:00:00+00:00"}
    )  # fmt: skip


def writer(path: Path, name: str, count: int, failpoint: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, env=os.environ | {"NEXA_FAILPOINT": failpoint},
    )  # fmt: skip


def test_f32_two_writers_at_once_lose_nothing_and_mix_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels" / "annotations.jsonl"
    both = [writer(path, name, 200) for name in "ab"]
    said = [name for one in both for name in one.communicate()[0].split()]
    assert len(said) == 400
    assert sorted(event.sample_id for event in read(path)) == sorted(said)


@pytest.mark.parametrize("hit", range(1, 7))
def test_f32_killed_at_any_step_of_a_save_what_was_acknowledged_is_there(tmp_path: Path, hit: int) -> None:
    path = tmp_path / "annotations.jsonl"
    one = writer(path, "a", 2, f"event:{hit}")
    said = one.communicate()[0].split()
    assert one.returncode == -signal.SIGKILL
    found = [event.sample_id for event in read(path)]
    assert found[: len(said)] == said
    assert len(found) <= len(said) + 1
    append(path, decision("next"))
    assert [event.sample_id for event in read(path)] == [*found, "next"]


@pytest.mark.parametrize("size", [10, 200_000])
def test_f32_a_half_written_last_line_is_left_out_and_kept_apart(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "annotations.jsonl"
    append(path, decision("a"))
    torn = b'{"sample_id": "b' + b"x" * size
    with path.open("ab") as file:
        file.write(torn)
    assert [event.sample_id for event in read(path)] == ["a"]
    assert "incomplete last line" in caplog.text
    assert path.read_bytes().endswith(torn)
    append(path, decision("c"))
    assert [event.sample_id for event in read(path)] == ["a", "c"]
    assert path.with_name("annotations.jsonl.torn").read_bytes() == torn + b"\n"


def test_f32_a_last_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    path.write_text(json.dumps(decision("a").model_dump()))
    append(path, decision("b"))
    assert [event.sample_id for event in read(path)] == ["a", "b"]
    assert not path.with_name("annotations.jsonl.torn").exists()


def test_f32_a_full_disk_acknowledges_nothing() -> None:
    with pytest.raises(OSError, match="No space left"):
        append(Path("/dev/full"), decision())


def test_f32_the_last_word_of_each_person_counts_and_a_conflict_is_doubt(tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    for one in (
        decision("a", "reject"), decision("a"), decision("a"),
        decision("b"), decision("b", "reject", "bob"),
        decision("c", "edit", edited="one"), decision("c", "edit", "bob", edited="two"),
        decision("d", "regenerate", attempt=1), decision("d", "regenerate", "bob", attempt=1),
    ):  # fmt: skip
        append(path, one)
    assert len(read(path)) == 9
    found = latest_decisions(read(path))
    assert {key: agreed_action(people) for key, people in found.items()} == {
        ("a", 0): "accept", ("b", 0): None, ("c", 0): None, ("d", 1): "regenerate",
    }  # fmt: skip
    assert [one.annotator for one in found["d", 1]] == ["ann", "bob"]
    assert agreed_action([]) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"sample_id": "a"}', "attempt is missing"),
        ('{"sample_id": "a", "attempt": 0, "action": "acept"}', 'did you mean "accept"'),
        ('{"sample_id": "a", "attempt": 0, "action": "edit", "nte": ""}', 'did you mean "note"'),
        ('{"sample_id": "a", "attempt": "0", "action": "edit"}', "attempt is '0'"),
        ("[1]", "expected a JSON object"),
        ("{half", "Expecting property name"),
    ],
)
def test_f32_a_line_that_is_not_a_decision_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "annotations.jsonl"
    append(path, decision())
    with path.open("a") as file:
        file.write(f"{line}\n")
    append(path, decision())
    with pytest.raises(InputError, match=r"annotations.jsonl: line 2: ") as caught:
        read(path)
    assert said in str(caught.value)


def test_f32_any_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    text = "one\ntwo\r\u2028\x00 \ud800 \U0001f600"
    append(path, decision("a", "edit", edited=text))
    assert read(path)[0].edited_output == text
    assert path.read_bytes().count(b"\n") == 1


def test_the_current_rejections_are_a_file_of_their_own(tmp_path: Path) -> None:
    storage = workspace(tmp_path).load().storage
    write_rejected(storage)
    assert storage.path_of("rejected_labels").read_text() == ""
    for one in (
        decision("a", "reject"), decision("a"), decision("b", "reject"),
        decision("b", "accept", "bob"), decision("unknown", "regenerate"),
    ):  # fmt: skip
        append(storage.path_of("annotations"), one)
    write_rejected(storage)
    found = read(storage.path_of("rejected_labels"))
    assert [(one.sample_id, one.action) for one in found] == [
        ("b", "reject"), ("unknown", "regenerate"),
    ]  # fmt: skip
