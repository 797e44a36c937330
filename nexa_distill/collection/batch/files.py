"""The lines of a batch's files: requests going in, answers and errors coming out.

Source of the format: OpenAI's Batch API, https://platform.openai.com/docs/guides/batch.
"""

import json
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from nexa_distill.collection.requests.transport import outcome_of
from nexa_distill.journal.journal import Outcome

URL = "/v1/chat/completions"
MAX_FILE_BYTES = 200 * 10**6  # of the requests; the API takes no larger file
MAX_LINE_BYTES = 64 * 2**20
NEVER_RUN = {"batch_expired", "batch_cancelled"}  # error codes of requests that were not billed


class Line(NamedTuple):
    """What the provider says about one request."""

    custom_id: str
    outcome: Outcome


def request_line(key: str, body: bytes) -> bytes:
    """One request. ASCII only: some readers take a U+2028 within a text for the line's end."""
    asked = {"custom_id": key, "method": "POST", "url": URL, "body": json.loads(body)}
    return json.dumps(asked, separators=(",", ":")).encode() + b"\n"


def lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines that are not blank. One that is too long comes in pieces, which are no lines."""
    while line := file.readline(MAX_LINE_BYTES):
        if line.strip():
            yield line


def read_line(line: bytes) -> Line | None:
    """One line of an output or error file; None when it does not name a request."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("custom_id"), str):
        return None
    return Line(said["custom_id"], _outcome(said.get("response"), said.get("error")))


def _outcome(response: object, error: object) -> Outcome:
    """The chat completion is a value within the line, so its bytes are made anew from that value.

    Nothing of it is lost: numbers and strings come back as they are, escapes are written as ASCII.
    """
    if isinstance(response, dict):
        status = response.get("status_code")
        raw = json.dumps(response.get("body"), separators=(",", ":")).encode()
        return outcome_of(status if isinstance(status, int) else None, raw)
    if isinstance(error, dict):
        kind = "not_sent" if error.get("code") in NEVER_RUN else "rejected"
        return Outcome(kind, error=words(error))
    return Outcome("uncertain", error="its line has neither response nor error")


def words(error: dict[str, Any]) -> str:
    """An error object of the API in a line of text that UTF-8 can carry."""
    parts = [error.get("code"), error.get("message")]
    where = f" (line {error['line']})" if error.get("line") else ""
    said = ": ".join(str(part) for part in parts if part) or "(no text)"
    return " ".join((said + where).encode("utf-8", "replace").decode().split())[:500]
