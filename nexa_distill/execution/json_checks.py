"""The checks of an answer that is to be JSON: it is that as a whole, and satisfies its schema."""

from nexa_distill.execution.checks import Check, Job, check, failed
from nexa_distill.text.json_schemas import ResponseSchemas, parse_json


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
