"""The lines of a batch's files: requests in the input, answers and errors in the output.

Source of the format: OpenAI's Batch API, https://platform.openai.com/docs/guides/batch.
"""

import json
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from nexa_distill.collection.requests.transport import classify_response
from nexa_distill.journal.journal import Outcome

ENDPOINT_PATH = "/v1/chat/completions"
MAX_FILE_BYTES = 200 * 10**6  # the API accepts no larger input file
MAX_LINE_BYTES = 64 * 2**20
NEVER_RUN = {"batch_expired", "batch_cancelled"}  # error codes of requests that were not billed


class ResultLine(NamedTuple):
    """The provider's result for one request."""

    custom_id: str
    outcome: Outcome


def request_line(key: str, body: bytes) -> bytes:
    """One line of the input file. ASCII: some readers treat a U+2028 as the end of a line."""
    request = {"custom_id": key, "method": "POST", "url": ENDPOINT_PATH, "body": json.loads(body)}
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not blank. One over MAX_LINE_BYTES comes in pieces, which are not JSON."""
    while line := file.readline(MAX_LINE_BYTES):
        if line.strip():
            yield line


def read_line(line: bytes) -> ResultLine | None:
    """One line of an output or error file; None if it does not name a request."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or not isinstance(result.get("custom_id"), str):
        return None
    return ResultLine(result["custom_id"], _line_outcome(result.get("response"), result.get("error")))


def _line_outcome(response: object, error: object) -> Outcome:
    if isinstance(response, dict):
        status = response.get("status_code")
        # The completion is a value inside the line: serialise it again, which loses nothing.
        raw = json.dumps(response.get("body"), separators=(",", ":")).encode()
        return classify_response(status if isinstance(status, int) else None, raw)
    if isinstance(error, dict):
        kind = "not_sent" if error.get("code") in NEVER_RUN else "rejected"
        return Outcome(kind, error=format_error(error))
    return Outcome("uncertain", error="its line has neither a response nor an error")


def format_error(error: dict[str, Any]) -> str:
    """An error object of the API as one line of valid UTF-8 text."""
    parts = [error.get("code"), error.get("message")]
    where = f" (line {error['line']})" if error.get("line") else ""
    text = ": ".join(str(part) for part in parts if part) or "(no text)"
    return " ".join((text + where).encode("utf-8", "replace").decode().split())[:500]
