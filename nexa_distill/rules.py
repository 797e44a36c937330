"""The rules: pure checks of an answer's text against `configs/filters.yaml`, a batch at a time.

Reads nothing and writes nothing: `Rules(config).measure(rows)` gives one `Measured` per rule, in
a fixed order, for the columns `teacher_output`, `finish_reason`, `template_name`, `answer_flag`.

What is measured:
- a character is a Unicode code point;
- a token is a word or a punctuation mark, counted without a tokenizer, and repetition the share
  (0..1) of the answer that was said before in it (both defined in `nexa_distill/repetition.py`);
- patterns are RE2, on the answer with A-Z lower-cased; personal data and secrets (`safety.pii_*`,
  value = how many) as `nexa_distill/pii.py` says, and an answer with some passes if it is `flag`.

Not covered: loops shorter than a window without spaces ("aaaa" counts as one word, so the minimum
of tokens meets it), refusals in other languages than the patterns', irregular verb forms.
An answer of null has only `rules.answer_flag` and `rules.empty_output`; its other checks are null:
they cannot be made.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill import pii
from nexa_distill.contracts import FLAG_REASONS
from nexa_distill.errors import InputError
from nexa_distill.filter_config import FilterConfig
from nexa_distill.repetition import Tokens, repetition

COLUMNS = ("teacher_output", "finish_reason", "template_name", "answer_flag")
BATCH_ROWS = 8192
FENCE = "```"
EVIDENCE_BYTES = 80
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One rule on every answer of a batch. `ok` counts only where `known`; `detail` by row.

    `reasons` by row, where a row fails for another than the rule's usual `reason`.
    """

    check: str
    reason: str
    ok: Flags
    known: Flags
    value: Numbers | None
    detail: dict[int, str]
    reasons: Mapping[int, str] = field(default_factory=dict)

    def count(self, rows: Flags) -> Counter[str]:
        """The reasons of these rows, all of which fail."""
        found = Counter(why for row, why in self.reasons.items() if rows[row])
        found[self.reason] += int(rows.sum()) - found.total()
        return +found


@dataclass(frozen=True)
class PatternRule:
    """Patterns that must not occur, joined into one."""

    check: str
    reason: str
    pattern: str


class Answers:
    """The texts of a batch in the forms that the rules look at. A null text is kept as empty."""

    def __init__(self, rows: pa.Table) -> None:
        column = rows["teacher_output"].combine_chunks()
        self.known: Flags = _flags(column.is_valid())
        self.text = pc.fill_null(column, "").cast(pa.string())
        self.low = pa.concat_arrays([pc.ascii_lower(self.text)])
        self.tokens = Tokens(self.low)
        self.finish = rows["finish_reason"]
        self.task = rows["template_name"]
        self.flag = rows["answer_flag"]


def inflected(verb: str) -> str:
    """Pattern of a regular verb's forms: measure -> measure(s), measured, measuring."""
    if verb.endswith("e"):
        return f"{verb[:-1]}(?:e|es|ed|ing)"
    if verb.endswith("y") and verb[-2:-1] not in tuple("aeiou"):
        return f"{verb[:-1]}(?:y|ies|ied|ying)"
    return f"{verb}(?:e?s|{verb[-1]}?ed|{verb[-1]}?ing)?"


def _pattern_rules(config: FilterConfig) -> list[PatternRule]:
    listed = [
        ("rules.citations", "banned_citation", config.ban_citations, config.citation_patterns),
        ("rules.forbidden_patterns", "forbidden_pattern", True, config.forbidden_patterns),
        ("rules.template_leftovers", "template_leftover", True, config.template_patterns),
        ("rules.refusal", "refusal", config.ban_refusals, config.refusal_patterns),
        *(
            (f"safety.{name}", "safety_flag", True, [pattern])
            for name, pattern in config.safety_patterns.items()
        ),
    ]
    return [
        PatternRule(check, reason, "|".join(f"(?:{p})" for p in patterns))
        for check, reason, wanted, patterns in listed
        if wanted and patterns
    ]


class Rules:
    """The rules that are on. Raises InputError when the patterns are too large together."""

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        self.patterns = _pattern_rules(config)
        fence = [FENCE] if config.ban_unbalanced_code_fences else []
        personal = [pii.SCREEN[kind] for kind in config.pii.of()]
        self.screen = "|".join([*fence, *personal, *(rule.pattern for rule in self.patterns)])
        verbs = "|".join(inflected(verb) for verb in config.allowed_action_verbs)
        self.verbs = rf"\b(?:{verbs})\b" if config.require_action_verb else None
        try:
            for pattern in (self.screen, self.verbs or ""):
                pc.match_substring_regex(pa.array([""]), pattern)
        except pa.ArrowInvalid as error:
            raise InputError(f"filters: the patterns are too large together: {error}") from None

    def measure(self, rows: pa.Table) -> list[Measured]:
        """Every rule that is on, in a fixed order, on every row of one batch."""
        answers = Answers(rows)
        found = [*self._flag(answers), *self._ends(answers), *self._lengths(answers)]
        return [*found, *self._content(answers), *self._patterns(answers)]

    def _flag(self, answers: Answers) -> list[Measured]:
        """First, for it says why there is no text or no `stop`."""
        if not self.config.reject_flags:
            return []
        bad = _flags(pc.is_in(answers.flag, pa.array(self.config.reject_flags)))
        flags = {i: answers.flag[i].as_py() for i in np.flatnonzero(bad).tolist()}
        reasons = {i: FLAG_REASONS[flag] for i, flag in flags.items()}
        every, usual = np.ones(len(bad), np.bool_), FLAG_REASONS["malformed"]
        return [Measured("rules.answer_flag", usual, ~bad, every, None, flags, reasons)]

    def _ends(self, answers: Answers) -> list[Measured]:
        found = []
        some = (answers.tokens.per_text > 0) & answers.known
        every = np.ones(len(some), np.bool_)
        if self.config.require_stop:
            stop, said = pc.equal(answers.finish, "stop"), _flags(answers.finish.is_valid())
            ok = _flags(pc.fill_null(stop, False))
            other = {i: answers.finish[i].as_py() for i in np.flatnonzero(said & ~ok).tolist()}
            calls = {i: "empty_output" for i in other if other[i] == "tool_calls" and not some[i]}
            found.append(Measured("rules.finish_reason", "truncated", ok, said, None, other, calls))
        found.append(Measured("rules.empty_output", "empty_output", some, every, None, {}))
        return found

    def _lengths(self, answers: Answers) -> list[Measured]:
        config = self.config
        chars = pc.utf8_length(answers.text).to_numpy().astype(np.float64)
        tokens = answers.tokens.counts.astype(np.float64)
        limits = [
            ("min_char_length", "too_short", chars, config.min_char_length, np.greater_equal),
            ("max_char_length", "too_long", chars, config.max_char_length, np.less_equal),
            ("min_token_length", "too_few_tokens", tokens, config.min_token_length,
             np.greater_equal),
            ("max_token_length", "too_many_tokens", tokens, config.max_token_length,
             np.less_equal),
        ]  # fmt: skip
        return [
            Measured(f"rules.{name}", reason, within(value, limit), answers.known, value, {})
            for name, reason, value, limit, within in limits
            if limit is not None
        ]

    def _content(self, answers: Answers) -> list[Measured]:
        config, known, found = self.config, answers.known, []
        if self.verbs:
            ok = _flags(pc.match_substring_regex(answers.low, self.verbs))
            found.append(Measured("rules.action_verb", "no_action_verb", ok, known, None, {}))
        if config.max_repetition is not None:
            share = repetition(answers.tokens)
            ok = share <= config.max_repetition
            found.append(Measured("rules.repetition", "repetition", ok, known, share, {}))
        if config.require_json_for:
            found.append(self._json(answers))
        return found

    def _json(self, answers: Answers) -> Measured:
        asked = pc.is_in(answers.task, pa.array(self.config.require_json_for))
        errors = {
            i: error
            for i in np.flatnonzero(_flags(asked) & answers.known).tolist()
            if (error := json_error(answers.text[i].as_py()))
        }
        ok = np.ones(len(answers.low), np.bool_)
        ok[list(errors)] = False
        return Measured("rules.json", "invalid_json", ok, answers.known, None, errors)

    def _patterns(self, answers: Answers) -> list[Measured]:
        """One scan for all patterns together; each rule looks only at the answers it stopped at."""
        if not self.screen:
            return []
        suspects = np.flatnonzero(_flags(pc.match_substring_regex(answers.low, self.screen)))
        low = answers.low.take(pa.array(suspects))
        found = [self._pattern(rule, answers, suspects, low) for rule in self.patterns]
        found += [self._pii(kind, answers, suspects, low) for kind in self.config.pii.of()]
        if self.config.ban_unbalanced_code_fences:
            fences = np.zeros(len(answers.low))
            fences[suspects] = pc.count_substring(low, FENCE).to_numpy()
            ok, reason = fences % 2 == 0, "unbalanced_code_fence"
            found.append(Measured("rules.code_fences", reason, ok, answers.known, fences, {}))
        return found

    def _pattern(
        self, rule: PatternRule, answers: Answers, suspects: npt.NDArray[np.int64], low: pa.Array
    ) -> Measured:
        hits = _flags(pc.match_substring_regex(low, rule.pattern))
        ok = np.ones(len(answers.low), np.bool_)
        ok[suspects[hits]] = False
        at = pc.find_substring_regex(low.filter(pa.array(hits)), rule.pattern)
        places = zip(suspects[hits].tolist(), at.to_pylist(), strict=True)
        detail = {i: _evidence(answers.text[i].as_py(), start) for i, start in places}
        return Measured(rule.check, rule.reason, ok, answers.known, None, detail)

    def _pii(
        self, kind: pii.Kind, answers: Answers, suspects: npt.NDArray[np.int64], low: pa.Array
    ) -> Measured:
        looked_at = suspects[_flags(pc.match_substring_regex(low, pii.SCREEN[kind]))].tolist()
        places = {i: list(pii.find(answers.text[i].as_py(), kind)) for i in looked_at}
        count = np.zeros(len(answers.low))
        count[list(places)] = [len(found) for found in places.values()]
        # Where, and not what: the evidence must not spread it.
        detail = {i: f"at character {found[0][0]}" for i, found in places.items() if found}
        reason = "secret" if kind == "secret" else "personal_data"
        ok = (count == 0) | (getattr(self.config.pii, kind) == "flag")
        return Measured(f"safety.pii_{kind}", reason, ok, answers.known, count, detail)


def json_error(text: str) -> str | None:
    """Why `text` is not one JSON value (NaN and Infinity are not JSON), or None."""
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return str(error)[:EVIDENCE_BYTES]
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _evidence(text: str, start: int) -> str:
    return text.encode()[start : start + EVIDENCE_BYTES].decode(errors="ignore")


def _flags(values: pa.Array | pa.ChunkedArray) -> Flags:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)
