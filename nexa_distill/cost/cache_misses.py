"""Why a request has to be sent: it is new, it has changed, or it was sent without an answer.

The earlier requests of the sample are compared with the new one, key by key of the JSON.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nexa_distill.collection.requests.body import PromptRequest
from nexa_distill.collection.requests.retry_policy import given_up
from nexa_distill.journal.journal import Known, ReadOnlyJournal

COMPARED = 8  # newest requests of a sample
SHOWN_CHARACTERS = 40


class Earlier:
    """The journal's requests by sample, in 16 bytes each; read at the first look-up."""

    def __init__(self, journal: ReadOnlyJournal) -> None:
        self._journal = journal
        self._index: np.ndarray[Any, Any] | None = None

    def bodies(self, sample: str) -> Iterator[dict[str, Any]]:
        """Earlier request bodies of the sample, newest first."""
        if self._index is None:
            self._index = self._read()
        start, end = np.searchsorted(self._index["sample"], [hash(sample), hash(sample) + 1])
        for id_ in self._index["id"][max(start, end - COMPARED) : end][::-1].tolist():
            sql = "SELECT body FROM requests WHERE id=? AND sample_id=?"
            for (body,) in self._journal.read(sql, id_, sample):
                yield json.loads(body)

    def _read(self) -> np.ndarray[Any, Any]:
        rows = self._journal.read("SELECT sample_id, id FROM requests WHERE sample_id NOT NULL")
        kind = np.dtype([("sample", np.int64), ("id", np.int64)])
        return np.sort(np.fromiter(((hash(name), id_) for name, id_ in rows), kind))


def why_sent(request: PromptRequest, known: Known | None, earlier: Earlier) -> str:
    """The reason for sending a request, for the estimate."""
    if known is None:
        changes = [differences(body, request.body) for body in earlier.bodies(request.sample_id)]
        if not changes:
            return "never asked"
        fewest = min(changes, key=len)
        return f"changed: {', '.join(fewest)}" if fewest else "one more answer of the same prompt"
    if not known.attempts or known.attempts[-1].outcome == "not_sent":
        return "not sent before the run stopped"
    if known.attempts[-1].outcome == "uncertain":
        return "sent before without a complete answer, perhaps billed"
    if known.attempts[-1].status == 200:
        return "answered before without a chat completion"
    refused = given_up(known.attempts, 1) == "request_refused"
    return "refused before" if refused else "failed before"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys that differ; for single values also the old and the new one."""
    changes = list[str]()
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "model", key)):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if key == "messages":
            changes += _messages(before or [], after or [])
        elif isinstance(before, dict | list) or isinstance(after, dict | list):
            changes.append(key)
        else:
            changes.append(f"{key} {_shown(before)} -> {_shown(after)}")
    return changes


def _messages(old: list[Any], new: list[Any]) -> list[str]:
    def part(messages: list[Any], system: bool) -> list[Any]:
        return [message for message in messages if (message["role"] == "system") == system]

    names = {"system prompt": True, "prompt": False}
    return [name for name, system in names.items() if part(old, system) != part(new, system)]


def _shown(value: object) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
