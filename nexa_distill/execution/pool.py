"""Worker processes that check answers, each answer within a hard wall-clock limit.

A worker that exceeds the limit, or dies, is replaced; its current answer gets `execution_timeout`
or `execution_crashed`. Workers have only PYTHONPATH in their environment, a process group of their
own, limits on memory and file size, and end with their parent.

    with WorkerPool(setting, workers=2) as pool:
        for checks in pool.map_jobs(jobs): ...  # in the order of the jobs
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import nexa_distill
from nexa_distill.errors import NexaError
from nexa_distill.execution.checks import Check, Job, failed_checks, undecided_checks, with_score
from nexa_distill.execution.job_timer import GOLD, TIMER_FORMAT, JobTimer
from nexa_distill.storage.thread_pool import submit_in_order

JOBS_AT_ONCE, CHARACTERS_AT_ONCE = 16, 16_384  # sent ahead, so that neither side waits
GRACE_SECONDS = 0.5  # after the answer's own limit, which the worker enforces itself
START_SECONDS = 120.0
LINE_BYTES = 1 << 20  # read of a worker's line, whatever an answer returns
PACKAGES = str(Path(nexa_distill.__file__).resolve().parent.parent)


class WorkerPool:
    """`setting` configures the workers (`worker.load_checkers`); use as a context manager."""

    def __init__(self, setting: Mapping[str, Any], workers: int) -> None:
        self._setting, self._wall = setting, setting["limits"]["timeout_seconds"] + GRACE_SECONDS
        self._count, self._own, self._all = workers, threading.local(), list[_Worker]()
        self._closing, self._lock = False, threading.Lock()

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(self._count, "exec")
        return self

    def __exit__(self, *_: object) -> None:
        # Killed first, so that no thread waits for a worker; closed when no thread reads any more.
        with self._lock:
            self._closing = True
            for worker in self._all:
                worker.kill_group()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.close()

    def map_jobs(self, jobs: Iterable[Job]) -> Iterator[list[Check]]:
        """The checks of each job, with its score, in order."""
        for part in submit_in_order(self._threads, self._run_jobs, _split_jobs(jobs), ahead=4 * self._count):
            yield from map(with_score, part)

    def _run_jobs(self, jobs: Sequence[Job]) -> list[list[Check]]:
        results: list[list[Check]] = []
        while len(results) < len(jobs):
            # A new worker if the last one ended: it continues after the job that ended it.
            worker = self._current_worker()
            remaining = jobs[len(results) :]
            worker.send(remaining)
            for job in remaining:
                results.append(worker.receive_checks(job))
                if worker.ended:
                    break
        return results

    def _current_worker(self) -> "_Worker":
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None or worker.ended:
            with self._lock:
                if self._closing:
                    raise RuntimeError("the pool is closed")
                if worker is not None:
                    self._all.remove(worker)
                    worker.close()
                worker = self._own.worker = _Worker(self._wall)
                self._all.append(worker)
            worker.start(self._setting)
        return worker


def _split_jobs(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    part, size = list[Job](), 0
    for job in jobs:
        length = sum(len(text or "") for text in job)
        # By characters too: one part of long answers would occupy a worker while others wait.
        if part and (len(part) == JOBS_AT_ONCE or size + length > CHARACTERS_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(job)
        size += length
    if part:
        yield part


class _Worker:
    """One process, the socket to it, and its timer."""

    def __init__(self, wall: float) -> None:
        self._wall, self.ended, self._buffer = wall, False, b""
        self._socket, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as shared:
            shared.truncate(TIMER_FORMAT.size)
            self._watch = JobTimer(shared.fileno())
            descriptor = str(shared.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nexa_distill.execution.worker", descriptor],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                # Answers must not see the keys in this environment.
                env={"PYTHONPATH": PACKAGES},
                start_new_session=True,
                pass_fds=(shared.fileno(),),
            )

    def start(self, setting: Mapping[str, Any]) -> None:
        """Wait until it is ready. Raises NexaError if it does not start."""
        # In the future, so that the start has a limit of its own.
        self._sent = time.monotonic() + START_SECONDS
        self._socket.settimeout(START_SECONDS)
        try:
            self._socket.sendall(json.dumps(setting).encode() + b"\n")
            self._read_line()
        except OSError:
            self.kill_group()
            raise NexaError(
                "a worker of the exec gate did not start (its error is printed above); if memory "
                "is short, raise execution.memory_mb"
            ) from None
        self._socket.settimeout(self._wall)

    def send(self, jobs: Sequence[Job]) -> None:
        lines = b"".join(json.dumps(job).encode() + b"\n" for job in jobs)
        self._sent = time.monotonic()
        try:
            self._socket.sendall(lines)
        # It has died: `receive_checks` notices that at the first job, and blames it.
        except OSError:
            self.kill_group()

    def receive_checks(self, job: Job) -> list[Check]:
        """The checks of `job`, which must be the next one."""
        try:
            result = json.loads(self._read_line())
        except (OSError, ValueError) as error:
            self.kill_group()
            return _blame_job(job, self._watch.read()[1], late=isinstance(error, TimeoutError))
        if "bug" in result:
            return undecided_checks("check_missing", result["bug"])
        return [Check(*row) for row in result["checks"]]

    def _read_line(self) -> bytes:
        """The next line. Raises OSError if the worker has ended, TimeoutError past the limit."""
        while b"\n" not in self._buffer:
            # The worker restarts its timer at each job, so that time may be added meanwhile.
            while not select.select([self._socket], [], [], max(self._seconds_left(), 0))[0]:
                if self._seconds_left() <= 0:
                    raise TimeoutError
            part = self._socket.recv(65536)
            if not part or len(self._buffer) > LINE_BYTES:
                raise ConnectionError
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _seconds_left(self) -> float:
        # Until the worker starts a job, the time of the job runs from its sending.
        return max(self._watch.read()[0], self._sent) + self._wall - time.monotonic()

    def kill_group(self) -> None:
        self.ended = True
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Close the socket, after `kill_group` and when no thread reads it any more."""
        self._socket.close()


def _blame_job(job: Job, whose: int, *, late: bool) -> list[Check]:
    # The known query is to blame, so nothing is known about the answer.
    if whose == GOLD:
        return undecided_checks("not_decidable", "the known query ended the process that ran it")
    if late:
        return failed_checks(job, "execution_timeout", "stopped at its wall")
    return failed_checks(job, "execution_crashed", "the process that ran it died")
