"""The answer itself, out of what the model said. Pure; by kind of answer (`cleaners:`).

    sql      the first fenced block marked sql, or the first fence with a statement, or from the
             first line that begins a statement, or the longest statement in backticks, or one
             behind a colon; labels ("SQL:") and explanations after the last `;` are removed
    python   all fenced blocks marked python, or the first fence with code, or from the first line
             of code, or the longest code in backticks
    json     the first JSON object or array: of a fence marked json, an object in
             backticks, of the text
    fenced   the inside of a fence that is the whole answer; everything else stays as it is

Reasoning in tags is taken apart before this (`text/reasoning.py`). A cleaner that finds nothing
leaves nothing: the answer is then empty, which the rules reject. It never repairs: a statement
after a statement stays, for the exec gate to refuse. Then personal data that `pii:` redacts goes.

A fence is three or more backticks or tildes (CommonMark 0.31), also behind words on its line; it is
closed by the same marks. Not covered: code that is spread over prose without fences.
"""

import itertools
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_distill.settings.filters import FilterConfig
from nexa_distill.settings.pipeline import AnswerKind, DistillConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.text import pii

SQL_WORDS = ("sql", "sqlite", "sqlite3", "postgresql", "postgres", "mysql", "tsql", "plsql")
MOST_STARTS = 100  # brackets at which JSON is looked for: each look may read all of the text

# An opening fence, its word, and its inside up to the closing fence or, when cut off, to the end.
FENCE = re.compile(
    r"(?:^|(?<=[ \t:]))[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<word>[\w+-]*)[^\n`]*\n"
    r"(?P<inside>.*?)(?:^[ \t]*(?P=fence)|\Z)",
    re.DOTALL | re.MULTILINE,
)
INLINE = re.compile(
    r"(?<!`)(?P<ticks>`+)(?!`)(?:(?:sql|sqlite|python|py|json) )?"
    r"(?P<code>[^\n]*?[^`\n])(?P=ticks)(?!`)"
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
# In the middle of a line, where only capitals tell a statement from a sentence; also full width.
AFTER_COLON = re.compile(
    rf"[:\uff1a][ \t*]*(?P<sql>(?:SELECT\b|{WITH_TABLE.replace('with', 'WITH', 1)})[^\n]*)"
)
# A whole line in bold, in quotation marks, in a tag, in a quotation or a list.
WRAPPED = re.compile(
    r"^[ \t]*(?:>|[-*+]|\d{1,2}[.)])?[ \t]*(?:<sql(?:_?query)?>|(?P<mark>\*\*|[\"'\u201c]?))\s*"
    rf"(?P<sql>(?:SELECT\b|{WITH_TABLE.replace('with', 'WITH', 1)})[^\n]*?)\s*"
    r"(?:</sql(?:_?query)?>|(?P=mark)|\u201d)[.;]?[ \t]*$",
    re.MULTILINE,
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


def _fences(text: str, kind: re.Pattern[str], *words: str) -> list[str]:
    """The insides of the fences marked with one of these words; without such, the first of a kind.

    Failing that, the first of all.
    """
    every = [(match["word"].lower(), match["inside"]) for match in FENCE.finditer(text)]
    marked = [inside for word, inside in every if word in words]
    likely = [inside for _, inside in every if kind.search(inside)]
    return marked or likely[:1] or [inside for _, inside in every[:1]]


def _inline(text: str, kind: re.Pattern[str]) -> str | None:
    """The longest code of this kind in backticks."""
    codes = [match["code"].strip() for match in INLINE.finditer(text)]
    return max((code for code in codes if kind.match(code)), key=len, default=None)


def _sql(text: str) -> str | None:
    fenced = _fences(text, STATEMENT, *SQL_WORDS)
    if fenced:
        return LABEL.sub("", fenced[0].strip())
    begins = STATEMENT.search(text)
    if begins:
        return _without_explanation(text[begins.start("sql") :])
    if inline := _inline(text, STATEMENT):
        return LABEL.sub("", inline)
    if wrapped := WRAPPED.search(text):
        return wrapped["sql"]
    begins = AFTER_COLON.search(text)
    return _without_explanation(text[begins.start("sql") :]) if begins else None


def _without_explanation(text: str) -> str:
    """Up to the last `;` that no further statement follows, or else to the first empty line."""
    for match in TOKENS.finditer(text):
        if match[0] == ";" and not STATEMENT.match(text[match.end() :].lstrip()):
            return text[: match.start()]
    return PROSE.split(text, maxsplit=1)[0]


def _python(text: str) -> str | None:
    fenced = _fences(text, CODE, "python", "py", "python3", "py3", "ipython")
    if fenced:
        return "\n".join(map(textwrap.dedent, fenced))
    begins = CODE.search(text)
    return text[begins.start() :] if begins else _inline(text, CODE)


def _json(text: str) -> str | None:
    fenced = [match["inside"] for match in FENCE.finditer(text) if match["word"].lower() == "json"]
    inline = [m["code"] for m in INLINE.finditer(text) if m["code"].lstrip().startswith("{")]
    values = (value for part in (*fenced, *inline, text) for value in _json_values(part))
    return next(values, None)


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
    return whole["inside"] if whole else text


CLEANERS: dict[AnswerKind, Callable[[str], str | None]] = {
    "sql": _sql,
    "python": _python,
    "json": _json,
    "fenced": _fenced,
}
