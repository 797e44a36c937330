"""F35: answers that attack the exec gate: each gets its verdict in time and leaves nothing."""

import contextlib
import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nexa_distill.execution import sandbox
from nexa_distill.execution.checks import Check, Job
from nexa_distill.execution.database_perturbation import write_perturbed_copies
from nexa_distill.execution.pool import WorkerPool
from nexa_distill.storage.manifests import sha256_path
from tests.execution.hostile_answers import MATHS, PYTHON, RIGHT, SQL
from tests.support.databases import LIMITS, make_shops

GOLD, TESTS, REFERENCE = "SELECT name FROM goods", "assert double(2) == 4", "So it is 72.\n#### 72"
CANARY = "nexa-canary-5f1c"


def isolated() -> None:
    """Skip where programs cannot be isolated; in CI that is a failure."""
    if shutil.which("bwrap") is None and not os.environ.get("CI"):
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")


def processes(parent: int | None = None) -> set[int]:
    """Workers, sandboxes and what runs in them: those of `parent` (this process), and orphans.

    Tests that run at the same time have their own.
    """
    marks = (b"nexa_distill.execution.worker", b"bwrap\0", b"\0-I\0-S\0-B\0-c\0")
    parents, lines = dict[int, int](), dict[int, bytes]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    marked = {pid for pid, line in lines.items() if pid in parents and any(mark in line for mark in marks)}

    def is_own(pid: int) -> bool:
        while pid in marked:
            pid = parents[pid]
        return pid == (parent or os.getpid()) or b"python" not in lines.get(pid, b"")

    return {pid for pid in marked if is_own(pid)}


def pool(kind: str, databases: dict[str, list[str]] | None = None) -> WorkerPool:
    setting: dict[str, Any] = {"limits": asdict(LIMITS), "kinds": [kind], "schemas": {}}
    if kind == "math":
        setting["limits"]["memory_mb"] = 512
    return WorkerPool(setting | {"databases": databases or {}}, 1)


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Around each test: no process survives it, and no memory is taken by what answers return."""
    monkeypatch.setenv("NEXA_CANARY", CANARY)
    before, memory = processes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    deadline = time.monotonic() + 2
    while processes() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes() - before == set()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 1024  # kB


def judged(run: WorkerPool, job: Job) -> list[Check]:
    """The checks of one answer, which must come within the limit and one second."""
    started = time.monotonic()
    (found,) = run.map_jobs([job])
    seconds = time.monotonic() - started
    assert seconds < LIMITS.timeout_seconds + 1, f"{seconds:.1f} s for {job.answer!r:.80}"
    assert CANARY not in repr(found)
    return found


def verdicts(cases: list[tuple[str, str]], right: Job, run: WorkerPool) -> str:
    """What is wrong with the verdicts, a line for each; "" = all are right.

    Before each, and after the last, the same pool finds a right answer right.
    """
    wrong = []
    for answer, reason in [*cases, (right.answer or "", "")]:
        (found,) = run.map_jobs([right])
        assert all(c.ok for c in found), found
        checks = {c.check: c for c in judged(run, right._replace(answer=answer))}
        matches, score = checks["exec.matches"], checks["exec.score"].value
        if (matches.reason or "", matches.ok, score == 1) != (reason, not reason, not reason):
            wrong.append(f"{answer!r:.60}: expected {reason}, found {matches}")
    return "\n".join(wrong)


def test_f35_the_corpus_has_at_least_sixty_cases() -> None:
    assert len(SQL) + len(PYTHON) >= 60
    assert min(len(SQL), len(PYTHON)) >= 25


def test_f35_hostile_sql_is_rejected_and_changes_nothing(tmp_path: Path) -> None:
    source = make_shops(tmp_path / "shops.sqlite")
    paths = [source, *write_perturbed_copies(source, tmp_path, "00")]
    before = {path: sha256_path(path) for path in paths}
    with pool("sql", {"shops": [str(path) for path in paths]}) as run:
        assert verdicts(SQL, Job("sql", GOLD, GOLD, "shops"), run) == ""
    assert {path: sha256_path(path) for path in tmp_path.iterdir()} == before
    assert not list(Path("/tmp").glob("nexa-[nsx]*"))  # noqa: S108 - named in the corpus


def test_f35_hostile_programs_are_rejected_and_leave_nothing() -> None:
    isolated()
    sandbox.require_sandbox(LIMITS)
    with pool("python") as run:
        assert verdicts(PYTHON, Job("python", RIGHT, TESTS), run) == ""


def test_f35_hostile_maths_ends_in_time() -> None:
    with pool("math") as run:
        assert verdicts(MATHS, Job("math", "It is $72$.\n#### 72", REFERENCE), run) == ""
