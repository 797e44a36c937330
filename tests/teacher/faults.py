"""What the collector's fault tests share: a run that can be disturbed, and what must hold after it.

`survived` is the one place that says what "nothing lost, nothing paid twice" means.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from nexa_distill import collect_teacher
from nexa_distill.console import cli
from nexa_distill.contracts import INPUTS
from nexa_distill.journal.in_flight import load_orphaned_ids
from nexa_distill.settings.pipeline import Storage, load_config
from nexa_distill.storage import failpoints
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.ledger_teacher import Teacher, ledger_teacher

COLLECT = "nexa_distill.collect_teacher"
OF_THE_CLOCK = ["latency_ms", "created_at"]  # all that may differ from an undisturbed run
# Settings that change how the work is done, and not what comes out of it.
MANNERS = {"concurrency", "timeout_seconds", "max_attempts", "batch_size", "on_uncertain"}
MOST_PROMPTS = 1500  # one undisturbed run for all tests that ask `prompts(n)`
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.teacher.faults", "pytest", "pandas"])  # pyarrow imports it late

Row = dict[str, Any]


def prompts(count: int) -> list[Row]:
    return [
        {
            "sample_id": f"s{n:04}", "task_id": f"t{n}", "template_name": "instruction",
            "user_prompt": f"Question {n}?", "source_file": "made", "source_row": n,
            "cluster_id": f"c{n}", "split": "train",
        }
        for n in range(count)
    ]  # fmt: skip


def put(made: Workspace, rows: list[Row]) -> Path:
    path = made.folder / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=INPUTS), path)
    return path


class Run:
    """The stage over the workspace's prompts, in a process of its own.

    It is forked from one that has imported the stage, which saves a second of each run. `before`
    runs in it first; `memory`: bytes of address space that it may add.
    """

    def __init__(
        self, made: Workspace, *flags: str, failpoint: str = "",
        before: Callable[[], object] | None = None, memory: int | None = None,
    ) -> None:  # fmt: skip
        self.log = made.folder / f"run-{time.monotonic_ns()}.log"
        command = made.command(COLLECT, "--src", made.folder / "prompts.parquet", *flags)[2:]
        given = (command, dict(os.environ), self.log, failpoint, before, memory)
        self.process = FORKS.Process(target=_work, args=given, daemon=True)
        self.process.start()

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def peak_megabytes(self) -> float:
        """Most memory that it held at a time; of a run that has ended by itself."""
        return float(self.log.with_suffix(".peak").read_text())

    @property
    def ended(self) -> bool:
        return self.process.exitcode is not None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid or 0, number)

    def kill(self) -> bool:
        """Whether it was still running."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def end(self, code: int | None = 0, seconds: float = 60) -> str:
        """Wait for it, and check its exit code (None = any); what it said."""
        self.process.join(seconds)
        found = self.process.exitcode
        self.process.kill()
        assert found is not None, f"still running after {seconds} s: {self.said}"
        assert code is None or found == code, f"{found}: {self.said}"
        return self.said


def _work(
    command: list[str], environment: dict[str, str], log: Path, failpoint: str,
    before: Callable[[], object] | None, memory: int | None,
) -> None:  # fmt: skip
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failpoints._WANTED = failpoint.split(":")
    if memory:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    if before:
        before()
    sys.argv, leave = command, os._exit

    def measured(code: int) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        log.with_suffix(".peak").write_text(str(peak))
        leave(code)

    os._exit = measured  # type: ignore[assignment]
    cli.run(collect_teacher.main)


def collect(made: Workspace, *flags: str, code: int = 0, seconds: float = 60, **options: Any) -> str:
    """The stage from its start to its end; what it said."""
    return Run(made, *flags, **options).end(code, seconds)


def ask(made: Workspace, rows: list[Row], *flags: str, code: int = 0, **options: Any) -> str:
    """The same over these rows."""
    put(made, rows)
    return collect(made, *flags, code=code, **options)


def provide(made: Workspace, **more: Any) -> None:
    """Lay settings over those of the workspace's provider."""
    provider = yaml.safe_load(made.config.read_text())["providers"]["vllm"]
    made.change(providers={"vllm": provider | more})


def wait_for(condition: Callable[[], object], seconds: float = 15, every: float = 0.01) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(every)


# ---- what there is


def place(made: Workspace, key: str) -> Path:
    """As `Workspace.path`; the configuration is read once, for that takes 30 ms."""
    return _storage(made.config).path_of(key)


@functools.cache
def _storage(config: Path) -> Storage:
    return load_config(config).storage


def answers(made: Workspace) -> list[Row]:
    rows: list[Row] = pq.read_table(place(made, "collected_dataset")).to_pylist()
    return rows


def texts(made: Workspace) -> dict[str, str]:
    return {row["sample_id"]: row["teacher_output"] for row in answers(made)}


def reasons(made: Workspace) -> dict[str, str]:
    """Sample -> why it has no answer."""
    rows = pq.read_table(place(made, "unanswered")).to_pylist()
    return {row["sample_id"]: row["rejection_reason"] for row in rows}


def on_the_wire(made: Workspace) -> set[int]:
    """The attempts that are, or were at a kill, on their way."""
    return load_orphaned_ids(place(made, "journal") / "teacher.inflight") or set()


@contextmanager
def journal(made: Workspace) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(place(made, "journal") / "teacher.sqlite")) as db:
        yield db


def outcomes(made: Workspace) -> Counter[str]:
    with journal(made) as db:
        return Counter(outcome for (outcome,) in db.execute("SELECT outcome FROM outcomes"))


def uncertain(made: Workspace) -> dict[int, str]:
    """Attempt -> sample, of those that were sent and brought no complete answer."""
    sql = (
        "SELECT a.id, r.sample_id FROM attempts a JOIN requests r ON r.id = a.request_id "
        "JOIN outcomes o ON o.attempt_id = a.id WHERE o.outcome = 'uncertain'"
    )
    with journal(made) as db:
        return dict(db.execute(sql))


class Asked(NamedTuple):
    """A request of the journal. `key`: the teacher's; the others count its attempts by outcome."""

    sample: str
    key: str
    answered: int
    uncertain: int


def asked(made: Workspace) -> list[Asked]:
    sql = (
        "SELECT r.sample_id, r.body, total(o.outcome = 'answered'), total(o.outcome = 'uncertain') "
        "FROM requests r JOIN attempts a ON a.request_id = r.id "
        "LEFT JOIN outcomes o ON o.attempt_id = a.id GROUP BY r.id"
    )
    with journal(made) as db:
        return [
            Asked(sample, hashlib.sha256(body).hexdigest(), int(answered), int(doubtful))
            for sample, body, answered, doubtful in db.execute(sql)
        ]


def bills(made: Workspace, teacher: Teacher) -> Counter[str]:
    """Sample -> how often the teacher billed it."""
    billed, found = teacher.billed(), Counter[str]()
    for request in asked(made):
        found[request.sample] += billed[request.key]
    return found


def struck(made: Workspace, teacher: Teacher) -> set[str]:
    """Samples of which a send met a fault."""
    keys = {send["key"] for send in teacher.sends() if send["fault"] != "none"}
    return {request.sample for request in asked(made) if request.key in keys}


def is_written(made: Workspace) -> bool:
    """Whether a table is being written, or its temporary file was left behind."""
    return any(place(made, "collected_dataset").parent.glob(".*.tmp"))


# ---- what must hold


def survived(
    made: Workspace, teacher: Teacher, *flags: str,
    uncertain: Collection[str] = (), unanswered: Mapping[str, str] | None = None, **options: Any,
) -> None:  # fmt: skip
    """Nothing is lost, nothing is paid twice, and doing it again is free and changes nothing.

    `uncertain`: the samples that may have been billed more than once, because a send of them
    brought no complete answer. `unanswered`: sample -> the reason why it has no answer.
    `flags` and `options` are those of the rerun, as in `collect`.
    """
    nothing_is_lost(made, unanswered or {})
    nothing_is_paid_twice(made, teacher, set(uncertain))
    again_is_free(made, teacher, *flags, **options)


def nothing_is_lost(made: Workspace, unanswered: Mapping[str, str]) -> None:
    """Each row is answered as by a calm teacher, in its place, or it is in `unanswered`."""
    assert reasons(made) == unanswered
    expected = undisturbed(made)
    held = pc.is_in(expected["sample_id"], pa.array(list(unanswered), pa.string()))
    found = pq.read_table(place(made, "collected_dataset")).drop_columns(OF_THE_CLOCK)
    assert found.equals(expected.filter(pc.invert(held)))


def nothing_is_paid_twice(made: Workspace, teacher: Teacher, named: set[str]) -> None:
    """A request was billed once, and once more at most for each send that is named uncertain."""
    billed, requests = teacher.billed(), asked(made)
    assert billed.keys() <= {request.key for request in requests}, "billed, and not in the journal"
    assert {request.sample for request in requests if request.uncertain} == named
    for request in requests:
        times = billed[request.key]
        assert request.answered <= 1, f"two answers are stored of {request.sample}"
        assert request.answered <= times <= request.answered + request.uncertain, (
            f"{request.sample} was billed {times} times"
        )


def pauses_are_kept(teacher: Teacher, seconds: float, slack: float) -> None:
    """After a 429 nothing is sent for so long.

    What is sent within `slack`, less than the teacher's delay, had not heard of it.
    """
    sends = teacher.sends()
    for refusal in (send for send in sends if send["status"] == 429):
        later = (send["monotonic"] - refusal["monotonic"] for send in sends)
        too_early = [wait for wait in later if slack < wait < seconds]
        assert not too_early, f"sent {too_early} s after a refusal for {seconds} s"


def again_is_free(made: Workspace, teacher: Teacher, *flags: str, **options: Any) -> None:
    """A rerun sends nothing and writes nothing; without its seal the table is the same bytes."""
    sends, before = len(teacher.sends()), files(made)
    assert "up to date" in collect(made, *flags, **options)
    assert files(made) == before
    tables = [place(made, "collected_dataset"), place(made, "unanswered")]
    written = [path.read_bytes() for path in tables]
    shutil.rmtree(place(made, "manifests"))
    collect(made, *flags, **options)
    assert [path.read_bytes() for path in tables] == written
    assert len(teacher.sends()) == sends


def files(made: Workspace) -> dict[str, tuple[int, bytes]]:
    """Everything that the stage wrote: time of the last change, and content."""
    root = made.folder / "processed"
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


def undisturbed(made: Workspace) -> pa.Table:
    """The answers to the workspace's prompts when nothing goes wrong, without `OF_THE_CLOCK`."""
    values = yaml.safe_load(made.config.read_text())
    collection = {k: v for k, v in values["collection"].items() if k not in MANNERS}
    prices = values["providers"]["vllm"].get("prices", {})
    rows = pq.read_table(made.folder / "prompts.parquet").to_pylist()
    usual = prompts(max(MOST_PROMPTS, len(rows)))
    given = [{name: value for name, value in row.items() if value is not None} for row in rows]
    calm = _calm(json.dumps(usual if given == usual[: len(rows)] else rows), json.dumps([collection, prices]))
    return calm.slice(0, len(rows))


@functools.cache
def _calm(rows: str, settings: str) -> pa.Table:
    collection, prices = json.loads(settings)
    with tempfile.TemporaryDirectory() as folder, ledger_teacher(Path(folder)) as teacher:
        made = workspace(Path(folder), teacher.base_url, collection=collection)
        provide(made, prices=prices)
        ask(made, json.loads(rows))
        return pq.read_table(place(made, "collected_dataset")).drop_columns(OF_THE_CLOCK)
