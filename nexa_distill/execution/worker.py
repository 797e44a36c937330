"""The worker process: checks answers from its standard input, a socket, until that is closed.

`python -m nexa_distill.execution.worker DESCRIPTOR`, started by `pool.py`. The first line contains
the settings, each further line a job, answered by one line in order. Lines are JSON:
`{"checks": [...]}`, or `{"bug": ...}` if a checker raised. DESCRIPTOR is the shared memory of the
job timer.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from nexa_distill.execution.checks import Check, Job, failed_checks
from nexa_distill.execution.job_timer import ANSWER, JobTimer
from nexa_distill.execution.sql import Limits

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
Checker = Callable[[Job], list[Check]]


def load_checkers(setting: Mapping[str, Any], watch: JobTimer) -> dict[str, Checker]:
    """Kind -> checker, for the kinds in `setting`; libraries of other kinds are not imported."""
    limits, kinds = Limits(**setting["limits"]), setting["kinds"]
    by_kind: dict[str, Checker] = {}
    if "sql" in kinds:
        from nexa_distill.execution.sql_checks import SqlChecks

        by_kind["sql"] = SqlChecks(setting["databases"], limits, watch).check_answer
    if "python" in kinds:
        from nexa_distill.execution.python_checks import PythonChecks

        by_kind["python"] = PythonChecks(limits, watch).check_answer
    if "math" in kinds:
        from nexa_distill.execution.math_and_json_checks import MathChecks

        by_kind["math"] = MathChecks().check_answer
    if "json" in kinds:
        from nexa_distill.execution.math_and_json_checks import JsonChecks
        from nexa_distill.text.json_schemas import compile_schemas

        by_kind["json"] = JsonChecks(compile_schemas(setting["schemas"])).check_answer
    return by_kind


def run_job(job: Job, by_kind: Mapping[str, Checker]) -> dict[str, Any]:
    if not (job.answer or "").strip():
        return {"checks": failed_checks(job, "empty_output")}
    try:
        return {"checks": by_kind[job.kind](job)}
    except MemoryError:
        return {"checks": failed_checks(job, "memory_limit", "out of memory")}
    except Exception:  # noqa: BLE001 - a bug here must not be this answer's verdict
        return {"bug": traceback.format_exc()[-300:]}


def limit_process(memory_mb: int) -> None:
    """Set limits for this process and its children; no core dump; end with the parent."""
    memory = memory_mb * 2**20
    for limit, value in (("AS", memory), ("CORE", 0), ("FSIZE", 2**24)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (value, value))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def main() -> None:
    connection = socket.socket(fileno=os.dup(0))
    lines = connection.makefile("rb")

    def send_line(line: Mapping[str, Any]) -> None:
        connection.sendall(json.dumps(line).encode() + b"\n")

    setting = json.loads(lines.readline())
    # Before the checkers are loaded: their libraries count towards the limit.
    limit_process(setting["limits"]["memory_mb"])
    watch = JobTimer(int(sys.argv[1]))
    by_kind = load_checkers(setting, watch)
    send_line({"ready": True})
    for line in lines:
        watch.start(ANSWER)
        send_line(run_job(Job(*json.loads(line)), by_kind))


if __name__ == "__main__":
    main()
