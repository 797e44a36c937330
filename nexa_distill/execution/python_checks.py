"""The checks of a Python answer: it loads, and passes the tests of its task.

The answer is loaded as a module named `answer` (code below `if __name__ == "__main__":` is not
run), then the tests run in the same namespace, completed by `python_tests.py`. An exit before the
last test is a failure, whatever its status. Tests that also pass without a program, or that need a
missing module, are `not_decidable`. The isolation and its gaps: `sandbox.py`.
"""

import signal
from functools import lru_cache

from nexa_distill.execution import sandbox
from nexa_distill.execution.checks import Check, Job, failed_checks, make_check, undecided_checks
from nexa_distill.execution.job_timer import ANSWER, GOLD, JobTimer
from nexa_distill.execution.python_tests import complete_tests
from nexa_distill.execution.sql import Limits

REASONS = {"MemoryError": "memory_limit", "PermissionError": "forbidden_operation"}
READ_ONLY = "OSError: [Errno 30]"
NO_MODULE = "ModuleNotFoundError"
CACHED = 256  # tests; answers to one task are close together


class PythonChecks:
    """Checks each answer in its own sandbox."""

    def __init__(self, limits: Limits, watch: JobTimer | None = None) -> None:
        self._limits, self._watch = limits, watch
        self._error_alone = lru_cache(CACHED)(self._run_tests_alone)

    def check_answer(self, job: Job) -> list[Check]:
        """executes, and matches if there are tests (`job.known`)."""
        program = job.answer or ""
        tests = None if job.known is None else complete_tests(job.known, program)
        ran = sandbox.run_program(program, tests, self._limits)
        if ran.step is None:
            return self._unfinished_checks(job, ran)
        if ran.step == "load" and ran.error is not None:
            return failed_checks(job, _rejection_reason(ran.error, "not_executable"), ran.error)
        executes = make_check("executes", True)
        if job.known is None:
            return [executes]
        # Only a pass or a missing module can be due to the tests.
        if ran.error is None or ran.error.startswith(NO_MODULE):
            doubt = self._why_undecidable(job.known, ran.error)
            if doubt:
                return [executes, make_check("matches", None, "not_decidable", doubt)]
        reason = _rejection_reason(ran.error, "tests_failed") if ran.error else None
        return [executes, make_check("matches", ran.error is None, reason, ran.error)]

    def _why_undecidable(self, tests: str, error: str | None) -> str | None:
        """Why the tests cannot decide, from a run without a program; None = they can."""
        alone = self._error_alone(tests)
        if alone == "":
            return "the tests also pass without the program: they never call it, or assert nothing"
        return f"the tests cannot be run here: {error}" if error and error == alone else None

    def _run_tests_alone(self, tests: str) -> str | None:
        """The error of the tests without a program; "" if they pass."""
        if self._watch:
            self._watch.start(GOLD)
        ran = sandbox.run_program("", complete_tests(tests, ""), self._limits)
        if self._watch:
            self._watch.start(ANSWER)
        return "" if ran.step == "tests" and ran.error is None else ran.error

    def _unfinished_checks(self, job: Job, ran: sandbox.SandboxResult) -> list[Check]:
        if ran.stopped == "output":
            limit = f"printed more than {self._limits.max_output_bytes} bytes"
            return failed_checks(job, "output_limit", limit)
        # bwrap reports a signal as 128 and its number, as shells do.
        if ran.stopped == "time" or ran.code == 128 + signal.SIGXCPU:
            limit = f"more than {self._limits.timeout_seconds} s"
            return failed_checks(job, "execution_timeout", limit)
        if ran.output.startswith("bwrap: "):
            return undecided_checks("check_missing", ran.output)
        if ran.code > 128:
            return failed_checks(job, "execution_crashed", f"ended by signal {ran.code - 128}")
        exited = f"exited with status {ran.code} before the tests were done"
        return failed_checks(job, "not_executable", exited)


def _rejection_reason(error: str, otherwise: str) -> str:
    if error.startswith(READ_ONLY):
        return "forbidden_operation"
    return REASONS.get(error.partition(":")[0], otherwise)
