"""Why a request has to be sent: it is new, it has changed, or it was sent without an answer.

The earlier requests of the sample are compared with the new one, key by key of the JSON.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nexa_distill.collection.requests.body import PromptRequest
from nexa_distill.collection.requests.retry_policy import give_up_reason
from nexa_distill.journal.journal import ReadOnlyJournal, RequestState

COMPARED_REQUESTS = 8  # newest requests of a sample
SHOWN_CHARACTERS = 40


class EarlierRequests:
    """The journal's requests by sample; indexed in a temporary table at the first look-up."""

    def __init__(self, journal: ReadOnlyJournal) -> None:
        self._journal, self._is_indexed = journal, False

    def find_bodies(self, sample: str) -> Iterator[dict[str, Any]]:
        if not self._is_indexed:
            named = "SELECT sample_id, id FROM requests WHERE sample_id NOT NULL"
            self._journal.read_rows(f"CREATE TEMP TABLE earlier AS {named}")
            self._journal.read_rows("CREATE INDEX temp.earlier_by_sample ON earlier (sample_id, id)")
            self._is_indexed = True
        # Ids ascend with time: the newest requests first.
        newest = "SELECT id FROM earlier WHERE sample_id = ? ORDER BY id DESC LIMIT ?"
        for (id_,) in self._journal.read_rows(newest, sample, COMPARED_REQUESTS).fetchall():
            for (body,) in self._journal.read_rows("SELECT body FROM requests WHERE id = ?", id_):
                yield json.loads(body)


def why_sent(request: PromptRequest, known: RequestState | None, earlier: EarlierRequests) -> str:
    if known is None:
        changes = [describe_changes(body, request.body) for body in earlier.find_bodies(request.sample_id)]
        if not changes:
            return "never asked"
        # The most similar earlier request explains the change best.
        fewest = min(changes, key=len)
        return f"changed: {', '.join(fewest)}" if fewest else "one more answer of the same prompt"
    if not known.attempts or known.attempts[-1].outcome == "not_sent":
        return "not sent before the run stopped"
    if known.attempts[-1].outcome == "uncertain":
        return "sent before without a complete answer, perhaps billed"
    if known.attempts[-1].status == 200:
        return "answered before without a chat completion"
    refused = give_up_reason(known.attempts, 1) == "request_refused"
    return "refused before" if refused else "failed before"


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    changes = list[str]()
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "model", key)):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if key == "messages":
            changes += _changed_messages(before or [], after or [])
        elif isinstance(before, dict | list) or isinstance(after, dict | list):
            changes.append(key)
        else:
            changes.append(f"{key} {_shorten_value(before)} -> {_shorten_value(after)}")
    return changes


def _changed_messages(old: list[Any], new: list[Any]) -> list[str]:
    def select_role(messages: list[Any], system: bool) -> list[Any]:
        return [message for message in messages if (message["role"] == "system") == system]

    names = {"system prompt": True, "prompt": False}
    return [name for name, system in names.items() if select_role(old, system) != select_role(new, system)]


def _shorten_value(value: object) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
