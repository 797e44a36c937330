"""The checks of a Python answer: it can be loaded, and passes the tests of its task.

The answer is loaded as a module named `answer` (what stands below `if __name__ == "__main__":` is
not run), then the tests run in the same namespace: statements, of which a right program passes
every `assert`, and what they define and do not call (`python_tests.py`). An exit, whatever its
status, before the last test is a failure. Tests that also pass without a program, or that need a
module which is not there, decide nothing: `not_decidable`. See `sandbox.py` for what holds the
program and what does not.
"""

import signal

from nexa_distill.execution import sandbox
from nexa_distill.execution.checks import Check, Job, check, failed, undecided
from nexa_distill.execution.job_timer import ANSWER, GOLD, Stopwatch
from nexa_distill.execution.python_tests import complete_tests
from nexa_distill.execution.sql import Limits

REASONS = {"MemoryError": "memory_limit", "PermissionError": "forbidden_operation"}
READ_ONLY = "OSError: [Errno 30]"
NO_MODULE = "ModuleNotFoundError"
CACHED = 256  # tests: the answers to one task are near each other


class PythonChecks:
    """Each answer in a sandbox of its own."""

    def __init__(self, limits: Limits, watch: Stopwatch | None = None) -> None:
        self._limits, self._watch = limits, watch
        self._doubts: dict[str, str | None] = {}

    def check(self, job: Job) -> list[Check]:
        """executes; and matches where there are tests (`job.known`)."""
        program = job.answer or ""
        tests = None if job.known is None else complete_tests(job.known, program)
        ran = sandbox.run(program, tests, self._limits)
        known = job.known is not None
        if ran.step is None:
            return self._cut_off(ran, known=known)
        if ran.step == "load" and ran.error is not None:
            return failed(_reason(ran.error, "not_executable"), ran.error, known=known)
        executes = check("executes", True)
        if not known:
            return [executes]
        if ran.error is None or ran.error.startswith(NO_MODULE):
            doubt = self._doubt(job.known or "", ran.error)
            if doubt:
                return [executes, check("matches", None, "not_decidable", doubt)]
        reason = _reason(ran.error, "tests_failed") if ran.error else None
        return [executes, check("matches", ran.error is None, reason, ran.error)]

    def _doubt(self, tests: str, error: str | None) -> str | None:
        """Why the tests decide nothing: what they do without a program. None = they decide."""
        if tests not in self._doubts:
            if self._watch:
                self._watch.start(GOLD)
            ran = sandbox.run("", complete_tests(tests, ""), self._limits)
            if self._watch:
                self._watch.start(ANSWER)
            passes = ran.step == "tests" and ran.error is None
            if len(self._doubts) >= CACHED:
                self._doubts.clear()
            self._doubts[tests] = "" if passes else ran.error
        alone = self._doubts[tests]
        if alone == "":
            return "the tests also pass without the program: they never call it, or assert nothing"
        return f"the tests cannot be run here: {error}" if error and error == alone else None

    def _cut_off(self, ran: sandbox.Ran, *, known: bool) -> list[Check]:
        """It did not come to its report."""
        if ran.stopped == "output":
            most = self._limits.max_output_bytes
            return failed("output_limit", f"printed more than {most} bytes", known=known)
        if ran.stopped == "time" or ran.code == 128 + signal.SIGXCPU:
            limit = f"more than {self._limits.timeout_seconds} s"
            return failed("execution_timeout", limit, known=known)
        if ran.output.startswith("bwrap: "):
            return undecided("check_missing", ran.output)
        if ran.code > 128:
            return failed("execution_crashed", f"ended by signal {ran.code - 128}", known=known)
        ended = f"ended itself with status {ran.code} before the tests were done"
        return failed("not_executable", ended, known=known)


def _reason(error: str, otherwise: str) -> str:
    if error.startswith(READ_ONLY):
        return "forbidden_operation"
    return REASONS.get(error.partition(":")[0], otherwise)
