"""4,000 JSON answers in two workers: our pool against pebble's `ProcessPool`."""

import importlib
import multiprocessing
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.libraries.rounds import run_rounds
from nexa_distill.execution.checks import Job
from nexa_distill.execution.pool import WorkerPool
from nexa_distill.execution.worker import Checker, limit_process, load_checkers, run_job

ANSWERS, WORKERS = 4000, 2
LIMITS = {
    "timeout_seconds": 5.0, "memory_mb": 2048, "max_sql_steps": 10**6, "max_rows": 10**6, "max_output_bytes": 10**6,
}  # fmt: skip
SETTING = {"limits": LIMITS, "kinds": ["json"], "databases": {}, "schemas": {}}
JOBS = [Job("json", f'{{"a": {number}}}') for number in range(ANSWERS)]
_by_kind: dict[str, Checker] = {}


def start_worker() -> None:
    limit_process(2048)
    _by_kind.update(load_checkers(SETTING, None))  # type: ignore[arg-type]  # JSON answers have no timer


def check_job(job: Job) -> dict[str, Any]:
    return run_job(job, _by_kind)


def time_results(results: Callable[[], Iterable[object]]) -> str:
    started = time.perf_counter()
    first = None
    for _ in results():
        first = first or time.perf_counter()
    ended, first = time.perf_counter(), first or started
    return f"first answer after {first - started:.2f} s, then {ANSWERS / (ended - first):,.0f} answers/s"


def measure_ours() -> str:
    with WorkerPool(SETTING, WORKERS) as pool:
        return time_results(lambda: pool.map_jobs(JOBS))


def measure_pebble() -> str:
    pebble = importlib.import_module("pebble")
    context = multiprocessing.get_context("spawn")
    with pebble.ProcessPool(WORKERS, initializer=start_worker, context=context) as pool:
        return time_results(lambda: pool.map(check_job, JOBS, timeout=5.5).result())


if __name__ == "__main__":
    run_rounds("benchmarks.libraries.worker_pool", {"ours": measure_ours, "pebble": measure_pebble})
