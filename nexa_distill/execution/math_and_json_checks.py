"""The checks of a maths answer (it has a final answer, and that is the reference's), and of JSON
(it is that as a whole, and satisfies its schema).

The final answer is what stands after the last `####`, or else what math-verify extracts: the last
\\\\boxed{}, an expression after "the answer is", the last number. Both texts are read the same way
(numbers of other scripts and countries: `text/numbers.py`): a reference may be a worked solution.
Equality is math-verify's (`verify`: numbers to six decimal places, expressions by simplification,
72 % equals 72/100 or 72).

math-verify hands sympy's evaluating parser only digits, operators and brackets; LaTeX goes through
a grammar. An expression that never ends or fills the memory (9**9**9**9) is ended by the worker's
limits. Not covered: units are not compared (72 km is 72 miles).
"""

import re

from nexa_distill.execution.checks import Check, Job, check, failed
from nexa_distill.text.json_schemas import ResponseSchemas, parse_json
from nexa_distill.text.numbers import with_plain_numbers

FINAL = re.compile(r"####[ \t]*([^\n]+)")


class MathChecks:
    """Imports sympy, which takes a second: made in the worker, before its first answer."""

    def __init__(self) -> None:
        import logging

        import math_verify

        logging.getLogger("math_verify").setLevel(logging.ERROR)
        self._parse, self._verify = math_verify.parse, math_verify.verify

    def _final(self, text: str) -> list[object]:
        text = with_plain_numbers(text)
        marked = FINAL.findall(text)
        found: list[object] = self._parse(marked[-1] if marked else text, parsing_timeout=None)
        return found

    def check(self, job: Job) -> list[Check]:
        """executes = a final answer was found; matches = it equals the reference's."""
        found = self._final(job.answer or "")
        if not found:
            return failed("no_final_answer", None, known=job.known is not None)
        executes = check("executes", True, None, found[-1])
        if job.known is None:
            return [executes]
        known = self._final(job.known)
        if not known:
            detail = "the reference holds no final answer"
            return [executes, check("matches", None, "not_decidable", detail)]
        if self._verify(known, found, timeout_seconds=None):
            return [executes, check("matches", True)]
        shown = f"{found[-1]}, expected {known[-1]}"
        return [executes, check("matches", False, "wrong_result", shown)]


class JsonChecks:
    """By the schemas of `collection.response_schemas`."""

    def __init__(self, schemas: ResponseSchemas) -> None:
        self._schemas = schemas

    def check(self, job: Job) -> list[Check]:
        """executes; and matches for a task type (`job.known`) that has a schema."""
        text = job.answer or ""
        try:
            parse_json(text)
        except ValueError as error:
            return failed("invalid_json", error, known=job.known is not None)
        executes = check("executes", True)
        if job.known is None:
            return [executes]
        satisfied = self._schemas.satisfied(job.known, text)
        return [executes, check("matches", satisfied, "schema_mismatch")]
