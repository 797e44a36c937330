"""Dialects of the chat completions API: each file in `hosted/` and `self_hosted/` is one.

To add one, add a file with a `DIALECT`: it is found by its being there, and
`python -m nexa_distill.dialects.table --write` puts it into the guide.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from functools import cache

from nexa_distill.dialects.dialect import Dialect, SystemRole

__all__ = ["DIALECTS", "ERROR_STATUSES", "FINISH_REASONS", "REASONING_FIELDS", "Dialect",
           "SystemRole", "avoiding", "by_host", "finish_reason", "has_used_its_quota",
           "is_known_finish", "is_loading"]  # fmt: skip


def _load() -> Iterator[Dialect]:
    """OpenAI's first: the others are read as changes to it."""
    found = [m.name for m in pkgutil.walk_packages(__path__, f"{__name__}.") if not m.ispkg]
    modules = {name.rpartition(".")[2]: name for name in found}
    for name in sorted(modules.keys() - {"dialect", "table"}, key=lambda n: (n != "openai", n)):
        yield importlib.import_module(modules[name]).DIALECT


DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in _load()}
_EVERY = list(DIALECTS.values())
NORMAL_FINISHES = ("stop", "length", "content_filter", "tool_calls", "error")
FINISH_REASONS: dict[str, str] = {
    **{word: word for word in NORMAL_FINISHES},
    **{word: normal for d in _EVERY for word, normal in d.finish_reasons.items()},
}
ERROR_STATUSES = {code: status for d in _EVERY for code, status in d.error_statuses.items()}
REASONING_FIELDS = tuple(dict.fromkeys(name for d in _EVERY for name in d.reasoning_fields))


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{p})" for p in patterns), re.IGNORECASE)


_QUOTA = _any_of(p for d in _EVERY for p in d.quota)
_LOADING = _any_of(p for d in _EVERY for p in d.loading)


def finish_reason(word: str | None) -> str | None:
    """The normal word for a server's; an unknown one as it is."""
    return None if word is None else FINISH_REASONS.get(word.strip().lower(), word)


def is_known_finish(word: str) -> bool:
    """Whether a (normalised) finish reason is one that the rules understand."""
    return word in NORMAL_FINISHES


def has_used_its_quota(text: str) -> bool:
    """Whether a refusal's words mean the account's quota or credit, not a busy minute."""
    return bool(_QUOTA.search(text))


def is_loading(text: str) -> bool:
    """Whether the words of a failure mean that the server's model is not loaded yet."""
    return bool(_LOADING.search(text))


@cache
def by_host(host: str) -> Dialect:
    """The dialect of a host name; OpenAI's where none claims it."""
    ends = ((end, d) for d in _EVERY for end in d.hosts if host == end or host.endswith(f".{end}"))
    return max(ends, key=lambda pair: len(pair[0]), default=("", DIALECTS["openai"]))[1]


def avoiding(text: str, but: str) -> str | None:
    """The name of a dialect that would avoid a refusal with these words, other than `but`."""
    for dialect in _EVERY:
        if dialect.name != but and any(re.search(p, text, re.I) for p in dialect.refusals):
            return dialect.name
    return None
