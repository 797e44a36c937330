"""Extract the answer from a model's reply, by kind of answer (`cleaners:`). Pure.

    sql      the first fenced block marked sql, or the first fence with a statement, or from the
             first line that begins a statement, or the longest statement in backticks, or one
             behind a colon; labels ("SQL:") and explanations after the last `;` are removed
    python   all fenced blocks marked python, or the first fence with code, or from the first line
             of code, or the longest code in backticks
    json     the first JSON object or array in a fence marked json, in backticks (objects only),
             or in the text
    fenced   the inside of a fence that is the whole answer; any other text is unchanged

An answer without such a part becomes empty, and the rules reject it. Nothing is repaired: a second
statement stays, and the exec gate refuses it. Not covered: code spread over prose without fences.
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
MAX_JSON_STARTS = 100  # brackets at which JSON is looked for: each try may read the whole text

# An opening fence, its word, and its inside up to the closing fence or, if cut off, to the end.
# Three or more backticks or tildes (CommonMark 0.31), also behind other words on the line.
FENCE = re.compile(
    r"(?:^|(?<=[ \t:]))[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<word>[\w+-]*)[^\n`]*\n"
    r"(?P<inside>.*?)(?:^[ \t]*(?P=fence)|\Z)",
    re.DOTALL | re.MULTILINE,
)
# Code in backticks within a line, perhaps behind its language; as many close it as have opened it.
INLINE = re.compile(
    r"(?<!`)(?P<ticks>`+)(?!`)(?:(?:sql|sqlite|python|py|json) )?"
    r"(?P<code>[^\n]*?[^`\n])(?P=ticks)(?!`)"
)
# `with` alone begins many sentences; `with NAME as (` begins only statements.
WITH_TABLE = (
    r"with\s+(?:recursive\s+)?[\w\"`\[\]]+\s*(?:\([^)]*\)\s*)?"
    r"as\s+(?:not\s+)?(?:materialized\s*)?\("
)
VERBS = "select|insert|update|delete|create|drop|alter|pragma|attach|detach|explain|replace|vacuum|values"
STATEMENT = re.compile(
    rf"^[ \t]*(?:\W{{0,3}}(?:sql|sqlite|query|sql ?query|answer)\W{{0,3}}[:=][ \t*]*)?"
    rf"(?P<sql>\(*(?:{WITH_TABLE}|(?:{VERBS})\b))",
    re.IGNORECASE | re.MULTILINE,
)
# In the middle of a line, where only capitals tell a statement from a sentence; also full width.
AFTER_COLON = re.compile(rf"[:\uff1a][ \t*]*(?P<sql>(?:SELECT\b|{WITH_TABLE.replace('with', 'WITH', 1)})[^\n]*)")
# A whole line in bold, in quotation marks, in a tag, in a quotation or a list.
WRAPPED = re.compile(
    r"^[ \t]*(?:>|[-*+]|\d{1,2}[.)])?[ \t]*(?:<sql(?:_?query)?>|(?P<mark>\*\*|[\"'\u201c]?))\s*"
    rf"(?P<sql>(?:SELECT\b|{WITH_TABLE.replace('with', 'WITH', 1)})[^\n]*?)\s*"
    r"(?:</sql(?:_?query)?>|(?P=mark)|\u201d)[.;]?[ \t]*$",
    re.MULTILINE,
)
LABEL = re.compile(r"^\W{0,3}(?:sql|sqlite|query|sql ?query|answer)\W{0,3}[:=][ \t*]*", re.IGNORECASE)
PROSE = re.compile(r"\n(?=[ \t]*\n|\W{0,3}(?:explanation|note|this|the|here)\b)", re.IGNORECASE)
# The first line of a program; an assignment counts, because scripts begin with one.
CODE = re.compile(r"^(?:def |class |import |from \w[\w.]* import |@\w|async def |[A-Za-z_]\w* *= *\S)", re.MULTILINE)
# Quoted text, comments, and the end of a statement; an unclosed quote extends to the end.
TOKENS = re.compile(r"'(?:[^']|'')*(?:'|\Z)|\"(?:[^\"]|\"\")*(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|;", re.DOTALL)


class Cleaner:
    """Extracts an answer by the kind of its task type, then redacts personal data (`pii:`)."""

    def __init__(self, kinds: Mapping[str, AnswerKind], redacted: list[pii.Kind]) -> None:
        self._kinds, self._redacted = kinds, redacted

    def __call__(self, task: str, raw_text: str | None) -> tuple[str | None, str | None]:
        """(teacher_output, raw_output) of contracts.OUTPUTS."""
        kind = self._kinds.get(task)
        text = extract_answer(raw_text, kind) if raw_text and kind else raw_text
        if text and self._redacted:
            text = pii.redact_text(text, self._redacted)
        return text, raw_text if text != raw_text else None

    @property
    def relevant_settings(self) -> dict[str, Any]:
        return {"cleaners": dict(self._kinds), "redact": self._redacted}


def build_cleaner(config: DistillConfig) -> Cleaner:
    filters = load_yaml(Path(config.filters), FilterConfig)
    return Cleaner(config.cleaners, filters.pii.kinds_with("redact"))


def extract_answer(text: str, kind: AnswerKind) -> str | None:
    return (CLEANERS[kind](text) or "").strip() or None


def _fenced_blocks(text: str, kind: re.Pattern[str], *words: str) -> list[str]:
    every = [(match["word"].lower(), match["inside"]) for match in FENCE.finditer(text)]
    marked = [inside for word, inside in every if word in words]
    likely = [inside for _, inside in every if kind.search(inside)]
    # A mark is surer than a guess from the content; of guesses only the first block counts.
    return marked or likely[:1] or [inside for _, inside in every[:1]]


def _longest_inline(text: str, kind: re.Pattern[str]) -> str | None:
    # The longest, because the short ones are names of tables and columns in an explanation.
    codes = [match["code"].strip() for match in INLINE.finditer(text)]
    return max((code for code in codes if kind.match(code)), key=len, default=None)


def _extract_sql(text: str) -> str | None:
    # From the surest sign to the weakest: fence, line, backticks, wrapped line, colon.
    fenced = _fenced_blocks(text, STATEMENT, *SQL_WORDS)
    if fenced:
        return LABEL.sub("", fenced[0].strip())
    match = STATEMENT.search(text)
    if not match and (inline := _longest_inline(text, STATEMENT)):
        return LABEL.sub("", inline)
    if not match and (wrapped := WRAPPED.search(text)):
        return wrapped["sql"]
    match = match or AFTER_COLON.search(text)
    return _cut_explanation(text[match.start("sql") :]) if match else None


def _cut_explanation(text: str) -> str:
    """The text up to the first `;` without a statement after it, else up to the prose."""
    for match in TOKENS.finditer(text):
        if match[0] == ";" and not STATEMENT.match(text[match.end() :].lstrip()):
            return text[: match.start()]
    return PROSE.split(text, maxsplit=1)[0]


def _extract_python(text: str) -> str | None:
    fenced = _fenced_blocks(text, CODE, "python", "py", "python3", "py3", "ipython")
    if fenced:
        return "\n".join(map(textwrap.dedent, fenced))
    match = CODE.search(text)
    return text[match.start() :] if match else _longest_inline(text, CODE)


def _extract_json(text: str) -> str | None:
    fenced = [match["inside"] for match in FENCE.finditer(text) if match["word"].lower() == "json"]
    inline = [m["code"] for m in INLINE.finditer(text) if m["code"].lstrip().startswith("{")]
    values = (value for part in (*fenced, *inline, text) for value in _json_values(part))
    return next(values, None)


def _json_values(text: str) -> Iterator[str]:
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"[{\[]", text), MAX_JSON_STARTS):
        try:
            _, end = decoder.raw_decode(text, match.start())
        # A bracket of the prose does not parse: the next one is tried.
        except (ValueError, RecursionError):
            continue
        # As written, so that spacing and the order of keys stay the model's own.
        yield text[match.start() : end]


def _strip_fence(text: str) -> str:
    whole = FENCE.fullmatch(text.strip())
    return whole["inside"] if whole else text


CLEANERS: dict[AnswerKind, Callable[[str], str | None]] = {
    "sql": _extract_sql,
    "python": _extract_python,
    "json": _extract_json,
    "fenced": _strip_fence,
}
