"""The collector dies or is stopped: nothing is lost, and nothing is paid twice but what is named.

Faults F1, F2, F4, F10 and F11: real processes and signals, a real terminal multiplexer.
"""

import math
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import sweeps
from tests.support.workspace import ROOT, Workspace, workspace
from tests.sweeps import fewer
from tests.teacher.faults import (
    COLLECT,
    Run,
    answers,
    ask,
    bills,
    collect,
    is_written,
    on_the_wire,
    outcomes,
    pauses_are_kept,
    place,
    prompts,
    put,
    reasons,
    survived,
    uncertain,
    wait_for,
)
from tests.teacher.ledger_teacher import Teacher, ledger_teacher

# ---- F1, F2: kill -9

# For how many seconds each moment of a run lasts, from where it can be seen.
SECONDS = {"start-up": 0.25, "asking": 0.12, "draining": 0.04, "writing": 0.1}


@pytest.mark.slow
def test_f01_fifty_kills_lose_nothing_and_pay_twice_only_what_was_on_the_wire(tmp_path: Path) -> None:
    chance = sweeps.chance("kills of a collector")
    with ledger_teacher(tmp_path, delay=0.03) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 8})
        put(made, prompts(1500))
        wire, kills = set[int](), dict.fromkeys(SECONDS, 0)
        share = fewer("kills of a collector, in tens", 2, 5, why="each is at another moment") / 5
        moments = [
            moment
            for moment, times in (("start-up", 14), ("asking", 18), ("draining", 10))
            for _ in range(math.ceil(times * share))
        ]
        chance.shuffle(moments)
        moments += ["writing"] * math.ceil(8 * share)
        for moment in moments:
            while not _killed(made, teacher, moment, chance):
                assert moment in ("draining", "writing"), "too few prompts for so many kills"
            kills[moment] += 1
            left = on_the_wire(made)
            assert len(left) <= 8 * 4  # 4 places for each request in flight
            wire |= left
        assert sum(kills.values()) == len(moments) >= 50 * share
        collect(made)
        doubtful = uncertain(made)
        assert doubtful.keys() <= wire
        assert len(doubtful) > 20 * share
        survived(made, teacher, uncertain=set(doubtful.values()))


def _killed(made: Workspace, teacher: Teacher, moment: str, chance: random.Random) -> bool:
    """Whether a run that is killed around that moment was still running."""
    if moment == "writing":
        shutil.rmtree(place(made, "manifests"), ignore_errors=True)  # so that it is written again
    sends, run = _sends(teacher), Run(made)
    wait_for(lambda: _is_reached(moment, made, _sends(teacher) - sends) or run.ended, 60, 0.002)
    if moment == "draining":
        run.send(signal.SIGTERM)
    time.sleep(chance.uniform(0, SECONDS[moment]))
    return run.kill()


def _sends(teacher: Teacher) -> int:
    file = teacher.ledger.with_name("sends.jsonl")
    return file.stat().st_size if file.exists() else 0


def _is_reached(moment: str, made: Workspace, sent: int) -> bool:
    return moment == "start-up" or (is_written(made) if moment == "writing" else sent > 0)


@pytest.mark.parametrize("number", [1, 4, 9])
def test_f02_a_death_between_the_answer_and_the_journal_costs_that_answer_once_more(
    tmp_path: Path, number: int
) -> None:
    with ledger_teacher(tmp_path, delay=0.06) as teacher:  # the answers before it are on disk
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 1})
        ask(made, prompts(12), failpoint=f"after_recv:{number}", code=-9)
        assert sum(teacher.billed().values()) == number
        said = collect(made)
        assert "1 requests once ended without a complete answer" in said
        assert "may be billed twice" in said
        lost = f"s{number - 1:04}"
        assert [sample for sample, times in bills(made, teacher).items() if times > 1] == [lost]
        survived(made, teacher, uncertain=[lost])


def test_f02_what_was_in_flight_beside_it_is_asked_once_more_and_nothing_else(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=0.03) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 8})
        ask(made, prompts(40), failpoint="after_recv:21", code=-9)
        wait_for(lambda: teacher.billed().total() == len(teacher.sends()))
        before, stored = teacher.billed(), outcomes(made)["answered"]
        collect(made)
        assert (teacher.billed() - before).total() == 40 - stored
        lost = set(uncertain(made).values())
        assert 8 <= len(lost) <= 20
        survived(made, teacher, uncertain=lost)


@pytest.mark.parametrize("flags", [["--on-uncertain", "resend"], ["--retry-failed"]])
def test_f02_what_may_be_billed_is_held_for_a_decision_when_that_is_wished(tmp_path: Path, flags: list[str]) -> None:
    hold = ["--on-uncertain", "hold"]
    with ledger_teacher(tmp_path, delay=0.1) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        ask(made, prompts(20), *hold, failpoint="after_recv:7", code=-9)
        collect(made, *hold)
        held = reasons(made)
        assert 0 < len(held) <= 7
        assert held == dict.fromkeys(uncertain(made).values(), "held")
        assert max(teacher.billed().values()) == 1
        survived(made, teacher, *hold, uncertain=held, unanswered=held)
        collect(made, *flags)
        survived(made, teacher, uncertain=held)


def test_a_kill_counts_against_no_request(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=0.3) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"max_attempts": 1})
        put(made, prompts(3))
        run = Run(made)
        wait_for(lambda: len(teacher.billed()) == 3 or len(teacher.sends()) == 3)
        assert run.kill()
        collect(made)
        survived(made, teacher, uncertain=["s0000", "s0001", "s0002"])


# ---- F4: stops


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_f04_a_stop_lets_answers_in_flight_arrive(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    with ledger_teacher(tmp_path, delay=0.3) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        put(made, prompts(12))
        run = Run(made)
        wait_for(lambda: len(teacher.billed()) >= 4)
        run.send(sent)
        assert "in flight" in run.end(code)
        assert 4 <= teacher.billed().total() < 12
        assert outcomes(made)["answered"] == teacher.billed().total()
        collect(made)
        survived(made, teacher)


def test_f04_a_second_ctrl_c_abandons_what_is_in_flight_at_once(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, fault="hang", share=1.0) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        put(made, prompts(8))
        run = Run(made)
        wait_for(lambda: len(teacher.billed()) == 4)
        run.send(signal.SIGINT)
        wait_for(lambda: "once more to abandon them" in run.said)
        again = time.monotonic()
        run.send(signal.SIGINT)
        run.end(130)
        assert time.monotonic() - again < 2
        abandoned = {f"s{n:04}" for n in range(4)}
        assert set(uncertain(made).values()) == abandoned
    with ledger_teacher(tmp_path, port=_port(teacher)) as calm:
        collect(made)
        survived(made, calm, uncertain=abandoned)


def _port(teacher: Teacher) -> int:
    return int(teacher.base_url.rpartition(":")[2].partition("/")[0])


@pytest.mark.parametrize(
    "script",
    [
        {"fault": "status:429", "retry_after": "3600"},
        {"fault": "status:503", "retry_after": "3600"},
        {"fault": "status:500", "retry_after": "30"},
    ],
    ids=["pause", "pause-for-overload", "back-off"],
)
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_f04_a_stop_during_a_long_wait_is_prompt(tmp_path: Path, script: dict[str, Any], sent: signal.Signals) -> None:
    with ledger_teacher(tmp_path, **script) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 2})
        put(made, prompts(2))
        run = Run(made)
        wait_for(lambda: outcomes(made)["rejected"] == 2 if _has_journal(made) else False)
        stop = time.monotonic()
        run.send(sent)
        run.end(130 if sent == signal.SIGINT else 143)
        assert time.monotonic() - stop < 2
        assert len(teacher.sends()) == 2
        collect(made)
        survived(made, teacher)


def _has_journal(made: Workspace) -> bool:
    try:
        return bool(outcomes(made))
    except sqlite3.OperationalError:  # not yet
        return False


@pytest.mark.slow
def test_f04_tmux_kill_session_stops_the_stage_and_leaves_no_process(tmp_path: Path) -> None:
    """Its terminal is gone by then: what it says fails with EIO."""
    with ledger_teacher(tmp_path, delay=0.3) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4})
        command = [sys.executable, *made.command(COLLECT, "--src", put(made, prompts(12)))[1:]]
        ended = tmp_path / "exit"
        ended.touch()
        session = ["new-session", "-d", "-s", "data_gen", "env", f"NEXA_EXIT_FILE={ended}"]
        tmux = ["tmux", "-L", f"nexa-test-{os.getpid()}"]
        try:
            subprocess.run([*tmux, *session, *command], cwd=ROOT, check=True)
            wait_for(lambda: len(teacher.billed()) >= 4)
            subprocess.run([*tmux, "kill-session", "-t", "=data_gen"], check=True)
            wait_for(lambda: not _processes_of(made))
        finally:
            subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)
        assert ended.read_text() == "143"
        assert 4 <= teacher.billed().total() < 12
        collect(made)
        survived(made, teacher)


def _processes_of(made: Workspace) -> list[str]:
    """Command lines of the stages that work in this workspace."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if COLLECT in command and str(made.config) in command:
            found.append(command)
    return found


# ---- F10, F11


def test_f10_a_second_collector_is_refused_and_a_dead_ones_lock_is_free(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, delay=1) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        put(made, prompts(4))
        first = Run(made)
        wait_for(lambda: len(teacher.sends()) == 4)
        said = collect(made, code=75)
        assert f"pid {first.process.pid} on {socket.gethostname()}" in said
        assert len(teacher.sends()) == 4
        assert first.kill()
        collect(made)
        survived(made, teacher, uncertain=[f"s{n:04}" for n in range(4)])


@pytest.mark.parametrize("retry_after", ["1", "date:+1"])
def test_f11_a_clock_that_jumps_changes_no_pause_and_is_named(tmp_path: Path, retry_after: str) -> None:
    with ledger_teacher(tmp_path, delay=0.4, fault="status:429", retry_after=retry_after, share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        start = time.monotonic()
        said = ask(made, prompts(16), before=_let_the_clock_jump)
        assert 1 <= time.monotonic() - start < 15
        pauses_are_kept(teacher, 1.0, slack=0.35)
        assert "the clock of this machine was set by" in said
        assert all(0 < row["latency_ms"] < 5000 for row in answers(made))
        survived(made, teacher)


def _let_the_clock_jump() -> None:
    """A day ahead, an hour back, an hour ahead and a day back, all the time; and it runs fast."""
    jumps, true, start = (0, 86400, -3600, 3600, -86400), time.time, time.monotonic()

    def jumping() -> float:
        step = int((time.monotonic() - start) / 0.1)
        return true() + jumps[step % 5] + 100 * step

    time.time = jumping
