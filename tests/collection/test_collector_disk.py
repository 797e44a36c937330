"""The disk fails under the collector: full, broken, or without power.

Faults F3 and F5 to F8. A real full disk where the system lets us mount one, else a limit on the
size of a file; a power loss is a journal whose end is missing.
"""

import contextlib
import functools
import hashlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_distill import collect_teacher
from nexa_distill.errors import InputMissing
from nexa_distill.journal.group_commit import GroupCommit
from nexa_distill.journal.in_flight import InFlight
from nexa_distill.journal.journal import Journal
from nexa_distill.storage.manifests import sealed_hash
from tests.support.workspace import ROOT, Workspace, workspace
from tests.sweeps import some
from tests.teacher.faults import (
    COLLECT,
    Run,
    again_is_free,
    ask,
    bills,
    collect,
    is_written,
    journal,
    nothing_is_lost,
    on_the_wire,
    outcomes,
    place,
    prompts,
    put,
    survived,
    uncertain,
)
from tests.teacher.ledger_teacher import ledger_teacher

# ---- F3, F6: a death or a full disk at each step of writing


EACH_STEP = "each step is a death or a full disk in the same writer, at another byte"


@pytest.mark.slow
@pytest.mark.parametrize(("old", "ending"), [(True, ""), (False, ""), (True, ":ENOSPC")])
@pytest.mark.parametrize(("point", "steps"), [("row_group", 6), ("replace", 16)])
def test_f03_f06_at_every_step_of_writing_a_reader_sees_a_whole_table(
    tmp_path: Path, point: str, steps: int, old: bool, ending: str
) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(40), before=_small_row_groups)
        new, folders = (_tables(made), [place(made, "collected_dataset").parent, place(made, "manifests")])
        if old:
            ask(made, prompts(30))
        before, sends = _tables(made) if old else dict.fromkeys(TABLES), len(teacher.sends())
        kept = {folder: tmp_path / "kept" / folder.name for folder in folders}
        for folder, copy in kept.items():
            shutil.copytree(folder, copy) if old else copy.mkdir(parents=True)
        put(made, prompts(40))
        died = set[int]()
        taken = some("steps of writing a table", range(1, steps + 1), 4, why=EACH_STEP)
        for step in (*taken, *range(steps + 1, 50)):
            for folder, copy in kept.items():
                shutil.rmtree(folder)
                shutil.copytree(copy, folder)
            run = Run(made, failpoint=f"{point}:{step}{ending}", before=_small_row_groups)
            said = run.end(None)
            if run.process.exitcode == 0:
                break
            assert run.process.exitcode == (74 if ending else -9), said
            died.add(step)
            _each_is_whole(made, before, new)
            if ending:
                assert "the previous files are intact" in said
                assert not is_written(made), "a temporary file was left"
            elif step % 3 == 0:  # what was left over is no obstacle
                collect(made, before=_small_row_groups)
                assert _tables(made) == new
        assert step > steps
        assert died >= set(taken)
        assert len(teacher.sends()) == sends
        survived(made, teacher, before=_small_row_groups)


def _small_row_groups() -> None:
    """Three in each table."""
    vars(collect_teacher)["BATCH_ROWS"] = 16


TABLES = ("collected_dataset", "unanswered")


def _tables(made: Workspace) -> dict[str, bytes | None]:
    paths = {name: place(made, name) for name in TABLES}
    return {name: path.read_bytes() if path.exists() else None for name, path in paths.items()}


def _each_is_whole(made: Workspace, old: dict[str, bytes | None], new: dict[str, bytes | None]) -> None:
    """Each table is the old or the new one, and is only trusted with the manifest that seals it."""
    for name, found in _tables(made).items():
        assert found in (old[name], new[name])
        if found is None:
            continue
        assert pq.read_table(place(made, name)).num_rows in (0, 30, 40)
        with contextlib.suppress(InputMissing):  # without its manifest it is refused
            sealed_hash(place(made, name), made.load().storage)


# ---- F5, F6, F7: the disk


def test_f05_a_journal_on_a_full_disk_stops_the_run_before_more_is_sent(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the journal cannot grow past it."""
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 2})
        said = ask(made, prompts(300), before=_small_files, code=74)
        assert "no further request is sent" in said
        assert 0 < teacher.billed().total() < 300
        on_disk, wire = outcomes(made)["answered"], on_the_wire(made)
        assert teacher.billed().total() - on_disk <= len(wire) <= 2 * 4
        collect(made)
        assert uncertain(made).keys() <= wire
        survived(made, teacher, uncertain=set(uncertain(made).values()))


def _small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300 * 1024, 300 * 1024))


@functools.cache
def _cannot_mount() -> str:
    """Why this machine lets us mount no small disk of our own; empty if it does."""
    try:
        subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no disk can be mounted here: {getattr(error, 'stderr', '') or error}"
    return ""


@pytest.mark.slow
def test_f05_a_full_disk_stops_the_run_and_free_space_lets_it_go_on(tmp_path: Path) -> None:
    if _cannot_mount():
        pytest.skip(_cannot_mount())
    script = (
        'disk=$1 saved=$2; shift 2; mount -t tmpfs -o size=500k none "$disk"; "$@"; first=$?\n'
        'mount -o remount,size=50m "$disk"; "$@"; echo "codes $first $?"; cp -a "$disk" "$saved"\n'
    )
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        own = [sys.executable]  # whose disks are those of `unshare`
        command = made.command(COLLECT, "--src", put(made, prompts(400)))[1:]
        disk = place(made, "journal")
        disk.mkdir(parents=True)
        done = subprocess.run(
            ["unshare", "-rm", "bash", "-c", script, "-", disk, tmp_path / "saved", *own, *command],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert "codes 74 0" in done.stdout, done.stdout + done.stderr
        assert "the journal cannot be written" in done.stderr
        disk.rmdir()  # what was mounted on it is gone with its namespace
        (tmp_path / "saved").rename(disk)
        survived(made, teacher, uncertain=set(uncertain(made).values()))


def test_f05_the_map_of_what_is_in_flight_holds_its_space_from_the_start(tmp_path: Path) -> None:
    """A page that is only made when it is first written ends the process on a full disk: SIGBUS."""
    wire = InFlight(tmp_path / "wire", 4096)
    held = (tmp_path / "wire").stat().st_blocks * 512
    wire.close()
    assert held >= 4096 * 8


@pytest.mark.parametrize("where", ["stdout", "stderr", "nobody", "progress"])
def test_f06_a_log_that_cannot_be_written_never_stops_the_work(tmp_path: Path, where: str) -> None:
    with ledger_teacher(tmp_path, delay=0.03) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 2})
        put(made, prompts(80))
        Run(made, before=functools.partial(_lose_the_log, where, tmp_path)).end(None, seconds=20)
        assert bills(made, teacher) == {f"s{n:04}": 1 for n in range(80)}
        survived(made, teacher)


def _lose_the_log(where: str, folder: Path) -> None:
    """/dev/full says at each write that the disk is full; `nobody` reads stderr after a while."""
    if where == "progress":
        (folder / "data_gen.tmp").symlink_to("/dev/full")  # what is written, and then renamed
        os.environ["NEXA_PROGRESS_FILE"] = str(folder / "data_gen.progress")
    elif where == "nobody":
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        threading.Timer(0.7, os.close, [reader]).start()
    else:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1 if where == "stdout" else 2)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_f07_a_commit_that_fails_ends_the_run_and_is_never_tried_again(tmp_path: Path, number: int) -> None:
    with ledger_teacher(tmp_path, delay=0.03) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        said = ask(made, prompts(200), failpoint=f"commit:{number}:EIO", code=74)
        assert "the journal cannot be written" in said
        assert "no further request is sent" in said
        wire, sends = on_the_wire(made), teacher.sends()
        assert len(sends) - outcomes(made)["answered"] <= len(wire) <= 4 * 4
        collect(made)
        assert uncertain(made).keys() <= wire
        survived(made, teacher, uncertain=set(uncertain(made).values()))


# ---- F8: power loss


@pytest.mark.slow
def test_f08_after_a_power_loss_at_any_byte_the_journal_opens_and_holds_a_prefix(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=0.01) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        ask(made, prompts(200), failpoint="committed:20", code=-9)
        path = place(made, "journal") / "teacher.sqlite"
        database, wal = path.read_bytes(), path.with_name("teacher.sqlite-wal").read_bytes()
        path.with_suffix(".inflight").unlink()
        page = int.from_bytes(wal[8:12], "big")  # https://sqlite.org/fileformat.html#walformat
        frames = range(32, len(wal) + 1, page + 24)
        assert len(frames) > 50
        chance = random.Random(7)
        ends = sorted({0, 17, *frames, *(chance.randrange(len(wal)) for _ in range(50)), len(wal)})
        lost, order = tmp_path / "lost" / path.name, _answered_in(path)
        seen = [0]
        for number, end in enumerate(ends):
            _lay_down(lost, database, wal[:end])
            found = _answered_in(lost)
            assert found == order[: len(found)], f"not a prefix at byte {end}"
            assert len(found) >= seen[-1]
            seen.append(len(found))
            if number % 10 == 0:
                _opens_with(lost, len(found))
        assert seen[-1] == len(order) > 20
        assert len(set(seen)) > 5
        for end in (32 + (page + 24) * (len(frames) // 2) + 1000, len(wal)):
            _lay_down(path, database, wal[:end])
            shutil.rmtree(place(made, "manifests"), ignore_errors=True)
            collect(made)
            nothing_is_lost(made, {})
            again_is_free(made, teacher)


def _lay_down(path: Path, database: bytes, wal: bytes) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    path.write_bytes(database)
    path.with_name(f"{path.name}-wal").write_bytes(wal)


def _answered_in(path: Path) -> list[int]:
    """Attempts in the order in which they ended; the file is not changed."""
    copy = path.with_name("copy.sqlite")
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return []
        sql = "SELECT attempt_id FROM outcomes WHERE outcome = 'answered' ORDER BY ended_at"
        return [attempt for (attempt,) in db.execute(sql)]


def _opens_with(path: Path, answered: int) -> None:
    """All that was begun and has no answer may have been sent: nobody knows any more."""
    with Journal(path, "run"), closing(sqlite3.connect(path)) as db:
        counts = dict(db.execute("SELECT outcome, count(*) FROM outcomes GROUP BY outcome"))
        (attempts,) = db.execute("SELECT count(*) FROM attempts").fetchone()
    assert counts.get("answered", 0) == answered
    assert counts.get("uncertain", 0) == attempts - answered


@pytest.mark.alone
@pytest.mark.parametrize("point", ["commit", "committed"])
def test_f08_a_request_is_on_disk_before_it_is_sent(tmp_path: Path, point: str) -> None:
    """Even when the disk is slow. Each workspace's prompts are its own: they share the teacher."""
    with ledger_teacher(tmp_path) as teacher:
        for number in (1, 2, 3, 5):
            made = workspace(tmp_path / str(number), teacher.base_url)
            rows = [row | {"user_prompt": f"{number}: {row['user_prompt']}"} for row in prompts(300)]
            before = len(teacher.sends())
            ask(made, rows, failpoint=f"{point}:{number}", before=_slow_disk, code=-9)
            sent = {send["key"] for send in teacher.sends()[before:]}
            assert bool(sent) == (number > 1)
            assert sent <= _begun(made)


def _slow_disk() -> None:
    commit = GroupCommit._commit_groups

    def slow(writer: GroupCommit, groups: list[Any]) -> None:
        time.sleep(0.1)
        commit(writer, groups)

    GroupCommit._commit_groups = slow  # type: ignore[method-assign, assignment]


def _begun(made: Workspace) -> set[str]:
    """The teacher's keys of the requests with an attempt on disk."""
    with journal(made) as db:
        try:
            rows = db.execute("SELECT body FROM requests WHERE id IN (SELECT request_id FROM attempts)")
        except sqlite3.OperationalError:
            return set()
        return {hashlib.sha256(body).hexdigest() for (body,) in rows}
