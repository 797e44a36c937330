"""What one kind of server is sent, and the words that it answers with.

What must be known before a request is sent is chosen by `providers.NAME.dialect`. What can be told
from a response is read of every server, by the words of all dialects together (`__init__.py`): a
gateway answers in the words of whatever it forwards to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# system: a message of that role; user: merged into the user message; none: it is not sent.
SystemRole = Literal["system", "developer", "user", "none"]


@dataclass(frozen=True)
class Dialect:
    """One kind of server. Patterns are regular expressions, matched whatever the case.

    Sent: `limit_key` is the parameter that limits the answer's tokens; `key_prefix` comes before
    the key in the header `key_header`; `query`, `headers` and `body` are added to every request.
    `hosts`: ends of host names that speak it, for a provider whose `dialect` is null.

    Read, of every server: `finish_reasons` word -> stop, length, content_filter, tool_calls or
    error; `error_statuses` code of an error object -> HTTP status; `reasoning_fields` of a message;
    `quota`: the account can do no more today; `loading`: the server is not ready yet; `refusals`
    that sending in this dialect would avoid.
    """

    name: str
    servers: str
    limit_key: str = "max_tokens"
    sends_temperature: bool = True
    system_role: SystemRole = "system"
    stream: bool = False
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    finish_reasons: Mapping[str, str] = field(default_factory=dict)
    error_statuses: Mapping[str, int] = field(default_factory=dict)
    reasoning_fields: tuple[str, ...] = ()
    quota: tuple[str, ...] = ()
    loading: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    billing: str = "prompt_tokens and completion_tokens"

    def sent(self) -> str:
        """What differs from the plain request, for a person."""
        parts = [f"`{self.limit_key}`" if self.limit_key != "max_tokens" else ""]
        parts += [] if self.sends_temperature else ["no `temperature`"]
        roles = {"developer": "role `developer`", "user": "system prompt in the user message",
                 "none": "no system prompt", "system": ""}  # fmt: skip
        parts += [roles[self.system_role], "`stream: true`" if self.stream else ""]
        if self.key_header != "Authorization":
            parts.append(f"the key in `{self.key_header}`")
        parts += [f"query `{name}={value}`" for name, value in self.query.items()]
        parts += [f"header `{name}`" for name in self.headers]
        parts += [f"`{name}`" for name in self.body]
        return ", ".join(filter(None, parts)) or "as OpenAI's API documents it"
