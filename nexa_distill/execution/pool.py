"""Worker processes that check answers, each answer within a hard wall.

A worker that passes the wall, or dies, is replaced, and the verdict is about the answer that it was
at: `execution_timeout` or `execution_crashed`. Workers have an environment of their own (nothing
but PYTHONPATH), a process group, limits on memory and file size, and end with their parent. The
memory here does not depend on what an answer returns: of a worker's line only `LINE_BYTES` are
read.

    with Pool(setting, workers=2) as pool:
        for checks in pool.map(jobs): ...      # in the order of the jobs
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
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nexa_distill
from nexa_distill.errors import NexaError
from nexa_distill.execution.checks import Check, Job, failed, scored, undecided
from nexa_distill.execution.job_timer import FORM, GOLD, Stopwatch

JOBS_AT_ONCE, CHARACTERS_AT_ONCE = 16, 16_384  # sent ahead: a worker never waits, nor do we for it
GRACE_SECONDS = 0.5  # after the answer's own limit, which the worker keeps by itself
START_SECONDS = 120.0
LINE_BYTES = 1 << 20
PACKAGES = str(Path(nexa_distill.__file__).resolve().parent.parent)


class Pool:
    """`setting` is what a worker needs to know (`worker.checkers`); use as a context manager."""

    def __init__(self, setting: Mapping[str, Any], workers: int) -> None:
        self._setting, self._wall = setting, setting["limits"]["timeout_seconds"] + GRACE_SECONDS
        self._count, self._own, self._all = workers, threading.local(), list[_Worker]()
        self._closing, self._lock = False, threading.Lock()

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(self._count, "exec")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closing = True
            for worker in self._all:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.close()

    def map(self, jobs: Iterable[Job]) -> Iterator[list[Check]]:
        """The checks of each job, with its score, in order."""
        waiting: deque[Future[list[list[Check]]]] = deque()
        for part in _parts(jobs):
            waiting.append(self._threads.submit(self._checks, part))
            if len(waiting) > 4 * self._count:
                yield from map(scored, waiting.popleft().result())
        while waiting:
            yield from map(scored, waiting.popleft().result())

    def _checks(self, jobs: Sequence[Job]) -> list[list[Check]]:
        """In this thread's worker, and in a new one from where the last one ended."""
        found: list[list[Check]] = []
        while len(found) < len(jobs):
            worker = self._worker()
            left = jobs[len(found) :]
            worker.send(left)
            for job in left:
                checks = worker.receive(job)
                found.append(checks)
                if worker.ended:
                    break
        return found

    def _worker(self) -> "_Worker":
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


def _parts(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    part, size = list[Job](), 0
    for job in jobs:
        length = sum(len(text or "") for text in job)
        if part and (len(part) == JOBS_AT_ONCE or size + length > CHARACTERS_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(job)
        size += length
    if part:
        yield part


class _Worker:
    """One process, the socket to it, and its stopwatch."""

    def __init__(self, wall: float) -> None:
        self._wall, self.ended, self._buffer = wall, False, b""
        self._socket, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as shared:
            shared.truncate(FORM.size)
            self._watch = Stopwatch(shared.fileno())
            descriptor = str(shared.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nexa_distill.execution.worker", descriptor],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": PACKAGES},
                start_new_session=True,
                pass_fds=(shared.fileno(),),
            )

    def start(self, setting: Mapping[str, Any]) -> None:
        """Wait until it is ready. Raises NexaError when it does not come up."""
        self._sent = time.monotonic() + START_SECONDS
        self._socket.settimeout(START_SECONDS)
        try:
            self._socket.sendall(json.dumps(setting).encode() + b"\n")
            self._line()
        except OSError:
            self.kill()
            raise NexaError(
                "a worker of the exec gate did not start (its error stands above); with little "
                "memory, raise execution.memory_mb"
            ) from None
        self._socket.settimeout(self._wall)

    def send(self, jobs: Sequence[Job]) -> None:
        """Hand them in; that it has died is found out when the first answer is read."""
        lines = b"".join(json.dumps(job).encode() + b"\n" for job in jobs)
        self._sent = time.monotonic()
        try:
            self._socket.sendall(lines)
        except OSError:
            self.kill()

    def receive(self, job: Job) -> list[Check]:
        """The checks of the next job, which is this one."""
        try:
            said = json.loads(self._line())
        except (OSError, ValueError) as error:
            self.kill()
            return _blamed(job, self._watch.read()[1], late=isinstance(error, TimeoutError))
        if "bug" in said:
            return undecided("check_missing", said["bug"])
        return [Check(*row) for row in said["checks"]]

    def _line(self) -> bytes:
        """The next line. Raises OSError when it has ended, TimeoutError when it takes too long."""
        while b"\n" not in self._buffer:
            while not select.select([self._socket], [], [], max(self._left(), 0))[0]:
                if self._left() <= 0:
                    raise TimeoutError
            part = self._socket.recv(65536)
            if not part or len(self._buffer) > LINE_BYTES:
                raise ConnectionError
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _left(self) -> float:
        """Seconds until the wall of what it is at, or of what it was handed since."""
        return max(self._watch.read()[0], self._sent) + self._wall - time.monotonic()

    def kill(self) -> None:
        """End it and all that it started."""
        self.ended = True
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """After `kill`, and when nobody reads any more."""
        self._socket.close()


def _blamed(job: Job, whose: int, *, late: bool) -> list[Check]:
    """The verdict on the job at which a worker ended."""
    if whose == GOLD:
        return undecided("not_decidable", "the known query ended the process that ran it")
    if late:
        return failed("execution_timeout", "stopped at its wall", known=job.known is not None)
    detail = "the process that ran it died"
    return failed("execution_crashed", detail, known=job.known is not None)
