"""The checks of maths answers (final answer equals the reference's) and of JSON answers (schema).

A final answer is the text after the last `####`, or else what math-verify extracts: the last
\\\\boxed{}, an expression after "the answer is", the last number. Equality is math-verify's
(`verify`: numbers to six decimal places, expressions by simplification, 72 % equals 72/100 or 72).
Not covered: units are not compared (72 km equals 72 miles).
"""

import re

from nexa_distill.execution.checks import Check, Job, failed_checks, make_check
from nexa_distill.text.json_schemas import ResponseSchemas, parse_json
from nexa_distill.text.numbers import with_plain_numbers

FINAL = re.compile(r"####[ \t]*([^\n]+)")


class MathChecks:
    """Importing sympy takes a second, so a worker creates this before its first answer."""

    def __init__(self) -> None:
        import logging

        import math_verify

        logging.getLogger("math_verify").setLevel(logging.ERROR)
        self._parse, self._verify = math_verify.parse, math_verify.verify

    def _final_answer(self, text: str) -> list[object]:
        # Answer and reference are read the same way: a reference may be a worked solution.
        text = with_plain_numbers(text)
        marked = FINAL.findall(text)
        # math-verify passes only digits, operators and brackets to sympy's evaluating parser. The
        # worker's limits end an expression that never ends or fills the memory (9**9**9**9).
        answers: list[object] = self._parse(marked[-1] if marked else text, parsing_timeout=None)
        return answers

    def check_answer(self, job: Job) -> list[Check]:
        """executes = a final answer was found; matches = it equals the reference's."""
        answer = self._final_answer(job.answer or "")
        if not answer:
            return failed_checks(job, "no_final_answer")
        executes = make_check("executes", True, None, answer[-1])
        if job.known is None:
            return [executes]
        reference = self._final_answer(job.known)
        if not reference:
            detail = "the reference has no final answer"
            return [executes, make_check("matches", None, "not_decidable", detail)]
        # Not symmetric: the reference comes first.
        if self._verify(reference, answer, timeout_seconds=None):
            return [executes, make_check("matches", True)]
        shown = f"{answer[-1]}, expected {reference[-1]}"
        return [executes, make_check("matches", False, "wrong_result", shown)]


class JsonChecks:
    """Checks answers against the schemas of `collection.response_schemas`."""

    def __init__(self, schemas: ResponseSchemas) -> None:
        self._schemas = schemas

    def check_answer(self, job: Job) -> list[Check]:
        """executes = it is JSON as a whole; matches = it satisfies the task type's schema."""
        text = job.answer or ""
        try:
            parse_json(text)
        except ValueError as error:
            return failed_checks(job, "invalid_json", error)
        executes = make_check("executes", True)
        if job.known is None:
            return [executes]
        satisfied = self._schemas.is_satisfied(job.known, text)
        return [executes, make_check("matches", satisfied, "schema_mismatch")]
