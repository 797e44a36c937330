"""The worker process: checks answers from its standard input, a socket, until that is closed.

`python -m nexa_distill.execution.worker`, started by `pool.py` with an environment of its own. The
first line is what it needs to know, every other one a job; each is answered by a line, in order.
Lines are JSON: `{"checks": [...]}`, or `{"bug": ...}` when a checker raised. The stopwatch of the
descriptor in its argument says since when it is at a job. It ends with its parent, whatever that
one's end.
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

from nexa_distill.execution.checks import Check, Job, failed
from nexa_distill.execution.job_timer import ANSWER, Stopwatch
from nexa_distill.execution.sql import Limits

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
Checker = Callable[[Job], list[Check]]


def checkers(setting: Mapping[str, Any], watch: Stopwatch) -> dict[str, Checker]:
    """By kind, those that are needed: the others' libraries are not imported."""
    limits, kinds = Limits(**setting["limits"]), setting["kinds"]
    found: dict[str, Checker] = {}
    if "sql" in kinds:
        from nexa_distill.execution.sql_checks import SqlChecks

        found["sql"] = SqlChecks(setting["databases"], limits, watch).check
    if "python" in kinds:
        from nexa_distill.execution.python_checks import PythonChecks

        found["python"] = PythonChecks(limits, watch).check
    if "math" in kinds:
        from nexa_distill.execution.math_and_json_checks import MathChecks

        found["math"] = MathChecks().check
    if "json" in kinds:
        from nexa_distill.execution.math_and_json_checks import JsonChecks
        from nexa_distill.text.json_schemas import compiled

        found["json"] = JsonChecks(compiled(setting["schemas"])).check
    return found


def answer_to(job: Job, found: Mapping[str, Checker]) -> dict[str, Any]:
    """The line that ends the job."""
    if not (job.answer or "").strip():
        return {"checks": failed("empty_output", known=job.known is not None)}
    try:
        return {"checks": found[job.kind](job)}
    except MemoryError:
        return {"checks": failed("memory_limit", "out of memory", known=job.known is not None)}
    except Exception:  # noqa: BLE001 - a bug here must not be this answer's verdict
        return {"bug": traceback.format_exc()[-300:]}


def contain(memory_mb: int) -> None:
    """Limits of this process and its children; no dump; the end of the parent is its end."""
    memory = memory_mb * 2**20
    for limit, value in (("AS", memory), ("CORE", 0), ("FSIZE", 2**24)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (value, value))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def main() -> None:
    """Serve until the socket is closed."""
    connection = socket.socket(fileno=os.dup(0))
    lines = connection.makefile("rb")

    def say(line: Mapping[str, Any]) -> None:
        connection.sendall(json.dumps(line).encode() + b"\n")

    setting = json.loads(lines.readline())
    contain(setting["limits"]["memory_mb"])
    watch = Stopwatch(int(sys.argv[1]))
    found = checkers(setting, watch)
    say({"ready": True})
    for line in lines:
        watch.start(ANSWER)
        say(answer_to(Job(*json.loads(line)), found))


if __name__ == "__main__":
    main()
