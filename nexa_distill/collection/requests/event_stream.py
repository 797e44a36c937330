"""A streamed chat completion (server-sent events), put together to one body.

Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html and the chunks
of OpenAI's API: `delta` objects by choice, the usage in the last chunk, then `data: [DONE]`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


def is_event_stream(raw: bytes) -> bool:
    """Whether a body is a stream of events; JSON and HTML begin otherwise."""
    return raw[:64].lstrip().startswith(STARTS)


def assemble(raw: bytes) -> Json:
    """The chat completion that the events are pieces of; an `error` of any event is its `error`.

    A stream that ended by `[DONE]` without a finish_reason ended by itself: "stop". One with
    neither was cut, and has no choices.
    """
    body: Json = {}
    message: Json = {"role": "assistant"}
    finish, done = None, False
    for data in _events(raw):
        if data == "[DONE]":
            done = True
            continue
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            continue
        if isinstance(chunk, dict):
            finish = _add(chunk, body, message) or finish
    if finish or done:
        finish = finish or "stop"
        choice: Json = {"index": 0, "message": message, "finish_reason": finish}
        body["choices"] = [choice]
    return body


def _events(raw: bytes) -> Iterator[str]:
    """The data of each event; several data lines of one event are joined by a line break."""
    lines: list[str] = []
    for line in re.split(r"\r\n|\n|\r", raw.decode("utf-8", "replace")):
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _add(chunk: Json, body: Json, message: Json) -> str | None:
    """Add a chunk's fields; its finish_reason."""
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
