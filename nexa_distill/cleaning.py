"""The answer itself, out of what the model said. Pure; by kind of answer (`cleaners:`).

    sql      the first fenced block marked sql, or the first fence, or from the first line that
             begins a statement; labels ("SQL:") and explanations after the last `;` go
    python   all fenced blocks marked python, or the first fence, or from the first line of code
    json     the first JSON object or array that stands in it, whole
    fenced   the inside of a fence that is the whole answer; everything else stays as it is

Reasoning in tags is taken apart before this (`text/reasoning.py`). A cleaner that finds nothing
leaves nothing: the answer is then empty, which the rules reject. It never repairs: a statement
after a statement stays, for the exec gate to refuse. Then personal data that `pii:` redacts goes.

Not covered: code that is spread over prose without fences; a fence inside a fence.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_distill import pii
from nexa_distill.config import AnswerKind, DistillConfig
from nexa_distill.filter_config import FilterConfig
from nexa_distill.settings_file import load_yaml

MOST_STARTS = 100  # brackets at which JSON is looked for: each look may read all of the text

# An opening fence, its word, and its inside up to the closing fence or, when cut off, to the end.
FENCE = re.compile(
    r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE
)
WITH_TABLE = (
    r"with\s+(?:recursive\s+)?[\w\"`\[\]]+\s*(?:\([^)]*\)\s*)?"
    r"as\s+(?:not\s+)?(?:materialized\s*)?\("
)
VERBS = (
    "select|insert|update|delete|create|drop|alter|pragma|attach|detach|explain|replace|vacuum|"
    "values"
)
STATEMENT = re.compile(
    rf"^[ \t]*(?:\W{{0,3}}(?:sql|sqlite|query|sql ?query|answer)\W{{0,3}}[:=][ \t*]*)?"
    rf"(?P<sql>\(*(?:{WITH_TABLE}|(?:{VERBS})\b))",
    re.IGNORECASE | re.MULTILINE,
)
LABEL = re.compile(
    r"^\W{0,3}(?:sql|sqlite|query|sql ?query|answer)\W{0,3}[:=][ \t*]*", re.IGNORECASE
)
PROSE = re.compile(r"\n(?=[ \t]*\n|\W{0,3}(?:explanation|note|this|the|here)\b)", re.IGNORECASE)
CODE = re.compile(
    r"^(?:def |class |import |from \w[\w.]* import |@\w|async def |[A-Za-z_]\w* *= *\S)",
    re.MULTILINE,
)
# Quoted text, comments, and what ends a statement; a quote that is not closed runs to the end.
TOKENS = re.compile(
    r"'(?:[^']|'')*(?:'|\Z)|\"(?:[^\"]|\"\")*(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|;", re.DOTALL
)


class Cleaner:
    """What is done to every answer: cut out by the kind of its task type, then redacted."""

    def __init__(self, kinds: Mapping[str, AnswerKind], redacted: list[pii.Kind]) -> None:
        self._kinds, self._redacted = kinds, redacted

    def __call__(self, task: str, said: str | None) -> tuple[str | None, str | None]:
        """(teacher_output, raw_output) of contracts.OUTPUTS."""
        kind = self._kinds.get(task)
        found = clean(said, kind) if said and kind else said
        if found and self._redacted:
            found = pii.redact(found, self._redacted)
        return found, said if found != said else None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, next to the answers."""
        return {"cleaners": dict(self._kinds), "redact": self._redacted}


def cleaner_of(config: DistillConfig) -> Cleaner:
    """As `cleaners:` and, in the filters file, `pii:` say."""
    filters = load_yaml(Path(config.filters), FilterConfig)
    return Cleaner(config.cleaners, filters.pii.of("redact"))


def clean(text: str, kind: AnswerKind) -> str | None:
    """The answer of this kind in `text`, without space around it; None when there is none."""
    found = CLEANERS[kind](text)
    return found.strip() or None if found else None


def _fences(text: str, *words: str) -> list[str]:
    """The insides of the fences marked with one of these words; without such, of the first."""
    every = [(match[1].lower(), match[2]) for match in FENCE.finditer(text)]
    marked = [inside for word, inside in every if word in words]
    return marked or [inside for _, inside in every[:1]]


def _sql(text: str) -> str | None:
    fenced = _fences(text, "sql", "sqlite", "sqlite3")
    if fenced:
        return LABEL.sub("", fenced[0].strip())
    begins = STATEMENT.search(text)
    return _without_explanation(text[begins.start("sql") :]) if begins else None


def _without_explanation(text: str) -> str:
    """Up to the last `;` that no further statement follows, or else to the first empty line."""
    for match in TOKENS.finditer(text):
        if match[0] == ";" and not STATEMENT.match(text[match.end() :].lstrip()):
            return text[: match.start()]
    return PROSE.split(text, maxsplit=1)[0]


def _python(text: str) -> str | None:
    fenced = _fences(text, "python", "py", "python3")
    if fenced:
        return "\n".join(fenced)
    begins = CODE.search(text)
    return text[begins.start() :] if begins else None


def _json(text: str) -> str | None:
    return next(_json_values(text), None)


def _json_values(text: str) -> Iterator[str]:
    """Objects and arrays of the text in order, as they are written there."""
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"[{\[]", text), MOST_STARTS):
        try:
            _, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        yield text[match.start() : end]


def _fenced(text: str) -> str:
    whole = FENCE.fullmatch(text.strip())
    return whole[2] if whole else text


CLEANERS: dict[AnswerKind, Callable[[str], str | None]] = {
    "sql": _sql,
    "python": _python,
    "json": _json,
    "fenced": _fenced,
}
