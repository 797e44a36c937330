"""The request format of one kind of server, and the words of its responses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")
# system: a message of that role; user: merged into the user message; none: it is not sent.
SystemRole = Literal["system", "developer", "user", "none"]
ROLE_NOTES = {
    "system": "",
    "developer": "role `developer`",
    "user": "system prompt in the user message",
    "none": "no system prompt",
}


def invert_groups(groups: Mapping[T, str]) -> dict[str, T]:
    """{value: "word word"} -> {word: value}."""
    return {word: value for value, words in groups.items() for word in words.split()}


@dataclass(frozen=True)
class Dialect:
    """One kind of server. Patterns are regular expressions; their case is ignored."""

    name: str
    servers: str
    # The request: `providers.NAME.dialect` chooses the dialect before anything is sent.
    limit_key: str = "max_tokens"  # the parameter that limits the tokens of an answer
    sends_temperature: bool = True
    system_role: SystemRole = "system"
    stream: bool = False
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    # Added to every request.
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()  # suffixes of host names that use it, for a provider whose `dialect` is null
    # The response: the words of all dialects are read from every server (`__init__.py`), because a
    # gateway answers in the words of the server behind it.
    finish_reasons: Mapping[str, str] = field(default_factory=dict)  # word -> NORMAL_FINISHES
    error_statuses: Mapping[str, int] = field(default_factory=dict)  # error code -> HTTP status
    reasoning_fields: tuple[str, ...] = ()  # of a message
    quota: tuple[str, ...] = ()  # the account is used up for today
    loading: tuple[str, ...] = ()  # the server is not ready yet
    refusals: tuple[str, ...] = ()  # requests in this dialect avoid them
    billing: str = "prompt_tokens and completion_tokens"

    def describe_request(self) -> str:
        """Differences from OpenAI's request, as Markdown for the guide."""
        parts = [f"`{self.limit_key}`" if self.limit_key != "max_tokens" else ""]
        parts += [] if self.sends_temperature else ["no `temperature`"]
        parts += [ROLE_NOTES[self.system_role], "`stream: true`" if self.stream else ""]
        if self.key_header != "Authorization":
            parts.append(f"the key in `{self.key_header}`")
        parts += [f"query `{name}={value}`" for name, value in self.query.items()]
        parts += [f"header `{name}`" for name in self.headers]
        parts += [f"`{name}`" for name in self.body]
        return ", ".join(filter(None, parts)) or "as OpenAI's API documents it"
