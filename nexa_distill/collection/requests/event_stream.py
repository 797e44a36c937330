"""Assemble a streamed chat completion (server-sent events) into one body.

Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html and the chunks
of OpenAI's API: `delta` objects by choice, the usage in the last chunk, then `data: [DONE]`.
"""

import json
import re
from collections.abc import Iterator

from nexa_distill.storage.atomic import Json

PARTIAL = "nexa_is_partial"  # key of a body that is a part of an answer: it may be billed
BOM = b"\xef\xbb\xbf"
# The beginnings of a line of a stream; neither JSON nor HTML begins so.
STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


def is_event_stream(raw: bytes) -> bool:
    return raw[:64].removeprefix(BOM).lstrip().startswith(STARTS)


def assemble_body(raw: bytes) -> Json:
    """The chat completion of the events; an `error` of any event becomes its `error`."""
    body: Json = {}
    message: Json = {"role": "assistant"}
    finish, done = None, False
    for event, data in _event_data(raw.removeprefix(BOM)):
        done = done or data.endswith("[DONE]")
        for chunk in _parse_chunks(data):
            finish = _add_chunk(chunk, body, message) or finish
            if event == "error":
                body.setdefault("error", chunk)
        if event == "error":
            body.setdefault("error", data)
    if finish or done:  # a stream with neither was cut: no choices
        choice: Json = {"index": 0, "message": message, "finish_reason": finish or "stop"}
        body["choices"] = [choice]
    elif len(message) > 1:
        body[PARTIAL] = True
    return body


def _parse_chunks(data: str) -> list[Json]:
    try:
        values = [json.loads(data)]
    except (ValueError, RecursionError):
        # A server without empty lines between its events: each line is an object. The test ends the recursion.
        lines = data.split("\n")
        values = [value for line in lines if line != data for value in _parse_chunks(line)]
    return [value for value in values if isinstance(value, dict)]


def _event_data(raw: bytes) -> Iterator[tuple[str, str]]:
    name, lines = "", list[str]()
    for line in re.split(r"\r\n|\n|\r", raw.decode("utf-8", "replace")):
        if line.startswith("data:"):
            # By the specification, the data lines of one event are joined by a line break.
            lines.append(line[5:].removeprefix(" "))
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif not line:
            if lines:
                yield name, "\n".join(lines)
            name, lines = "", []
    if lines:
        yield name, "\n".join(lines)


def _add_chunk(chunk: Json, body: Json, message: Json) -> str | None:
    """Add a chunk's fields to `body` and `message`; returns its finish_reason."""
    # Later chunks often repeat a field as null: only a value replaces one.
    for name in ("id", "model", "system_fingerprint", "usage", "error", "base_resp"):
        if chunk.get(name):
            body[name] = chunk[name]
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("index", 0) != 0:
        return None
    if choice.get("error"):
        body["error"] = choice["error"]
    if choice.get("usage") and not body.get("usage"):  # Moonshot: in the choice
        body["usage"] = choice["usage"]
    delta = choice.get("delta") or choice.get("message") or {}
    for name, value in delta.items() if isinstance(delta, dict) else ():
        if isinstance(value, str) and name != "role":
            message[name] = str(message.get(name) or "") + value
        elif isinstance(value, list) and value:
            message[name] = [*(message.get(name) or []), *value]
    finish = choice.get("finish_reason")
    return finish if isinstance(finish, str) and finish else None
