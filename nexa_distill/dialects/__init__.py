"""Dialects of the chat completions API: each file in `hosted/` and `self_hosted/` is one.

To add one, add a file with a `DIALECT`, which is loaded automatically, and run
`python -m nexa_distill.dialects.table --write` to put it into the guide.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from functools import cache

from nexa_distill.dialects.dialect import Dialect as Dialect
from nexa_distill.dialects.dialect import SystemRole as SystemRole


def _load_dialects() -> Iterator[Dialect]:
    paths = [m.name for m in pkgutil.walk_packages(__path__, f"{__name__}.") if not m.ispkg]
    modules = {path.rpartition(".")[2]: path for path in paths}
    # OpenAI's first: the others are described as changes to it.
    for name in sorted(modules.keys() - {"dialect", "table"}, key=lambda n: (n != "openai", n)):
        yield importlib.import_module(modules[name]).DIALECT


DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in _load_dialects()}
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


def normal_finish_reason(word: str | None) -> str | None:
    """The server's word in OpenAI's vocabulary; an unknown word is returned unchanged."""
    return None if word is None else FINISH_REASONS.get(word.strip().lower(), word)


def is_known_finish(word: str) -> bool:
    return word in NORMAL_FINISHES


def has_used_its_quota(text: str) -> bool:
    """Whether a refusal is about the account's quota or credit, not about a busy minute."""
    return bool(_QUOTA.search(text))


def is_loading(text: str) -> bool:
    return bool(_LOADING.search(text))


@cache
def dialect_of_host(host: str) -> Dialect:
    ends = ((end, d) for d in _EVERY for end in d.hosts if host == end or host.endswith(f".{end}"))
    # The longest suffix wins: a host may be listed more precisely than its domain.
    return max(ends, key=lambda pair: len(pair[0]), default=("", DIALECTS["openai"]))[1]


def dialect_avoiding(text: str, but: str) -> str | None:
    """The name of another dialect than `but` that avoids a refusal with this text, or None."""
    for dialect in _EVERY:
        if dialect.name != but and any(re.search(p, text, re.I) for p in dialect.refusals):
            return dialect.name
    return None
