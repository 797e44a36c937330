"""The rules: pure checks of an answer's text against `configs/filters.yaml`, a batch at a time.

Reads nothing and writes nothing: `Rules(config).measure(rows)` gives one `Measured` per rule, in
a fixed order, for the columns `teacher_output`, `finish_reason`, `template_name`, `answer_flag`.

What is measured:
- a character is a Unicode code point;
- a token is a word or a punctuation mark, counted without a tokenizer, and repetition the share
  (0..1) of the answer that was said before in it (both defined in `text/repetition.py`);
- patterns are RE2, on the folded answer (`text/folding.py`); what a match must be to count is said
  in `text_rules.py`. Personal data and secrets (`safety.pii_*`, value = how many) as
  `nexa_distill/text/pii.py` says, and an answer with some passes if it is `flag`;
- an action verb is looked for in the language of the answer's prose (`text/language.py`).

A rule whose lists do not know the answer's language is not applied to it: its check is null with
the reason `not_applied` and the language as its detail, and holds nothing against the answer.
An answer of null has only `rules.answer_flag` and `rules.empty_output`; its other checks are null:
they cannot be made.

Not covered: loops shorter than a window without spaces ("aaaa" counts as one word, so the minimum
of tokens meets it), irregular verb forms.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import FLAG_REASONS
from nexa_distill.errors import InputError
from nexa_distill.gating.text_rules import Suspect, TextRule, cut_bytes, pattern_rules
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.text import pii
from nexa_distill.text.folding import fold_pattern, fold_texts
from nexa_distill.text.language import ANY, LETTERS, UNKNOWN, identify_prose, may_be
from nexa_distill.text.regions import has_open_fence
from nexa_distill.text.repetition import Tokens, repetition

COLUMNS = ("teacher_output", "finish_reason", "template_name", "answer_flag")
BATCH_ROWS = 16_384  # patterns are compiled once per batch: 25 ms
FENCES = "```|~~~"
EVIDENCE_BYTES = 80
# Any one of them makes a text of Latin letters English, where nothing but a count depends on it.
ENGLISH_WORDS = r"\b(?:the|this|that|these|you|your|with|which|we)\b"
MOSTLY_ASCII = 1.1  # bytes per character
UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "bo")  # a verb may begin and end anywhere
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One rule on every answer of a batch. `ok` counts only where `known`; `detail` by row.

    `reasons` by row, where a row fails for another than the rule's usual `reason`. `not_applied`:
    rows in a language that the rule has no list for, with the language; they are not `known`.
    """

    check: str
    reason: str
    ok: Flags
    known: Flags
    value: Numbers | None
    detail: dict[int, str]
    reasons: Mapping[int, str] = field(default_factory=dict)
    not_applied: Mapping[int, str] = field(default_factory=dict)

    @property
    def passed(self) -> Flags:
        """Rows against which the rule has nothing."""
        passed = self.ok & self.known
        passed[list(self.not_applied)] = True
        return passed

    def count(self, rows: Flags) -> Counter[str]:
        """The reasons of these rows, all of which fail."""
        found = Counter(why for row, why in self.reasons.items() if rows[row])
        found[self.reason] += int(rows.sum()) - found.total()
        return +found


class Answers:
    """The texts of a batch in the forms that the rules look at. A null text is kept as empty."""

    def __init__(self, rows: pa.Table) -> None:
        column = rows["teacher_output"].combine_chunks()
        self.known: Flags = _flags(column.is_valid())
        self.text = pc.fill_null(column, "").cast(pa.string())
        self.chars: npt.NDArray[np.int64] = pc.utf8_length(self.text).to_numpy()
        self.folded = fold_texts(self.text)
        self.low: pa.StringArray = self.folded.texts
        self.tokens = Tokens(self.folded.lowered, self.folded.is_ascii)
        self._languages: dict[int, str] = {}
        self.finish = rows["finish_reason"]
        self.task = rows["template_name"]
        self.flag = rows["answer_flag"]

    @cached_property
    def english(self) -> Flags:
        """Texts of nearly only ASCII with a common English word: a guess, for counting."""
        lengths = pc.binary_length(self.text).to_numpy()
        mostly_ascii: Flags = lengths < MOSTLY_ASCII * self.chars
        return mostly_ascii & _flags(pc.match_substring_regex(self.low, ENGLISH_WORDS))

    @cached_property
    def _foreign_letters(self) -> npt.NDArray[np.int64]:
        """Rows with letters that folding does not turn into ASCII."""
        rows: npt.NDArray[np.int64] = np.flatnonzero(~_flags(pc.string_is_ascii(self.low)))
        return rows

    def candidates(self, language: str) -> npt.NDArray[np.int64]:
        """Rows that may be in it (not English): by its script, or Latin and not plainly English."""
        if letters := LETTERS.get(language):
            among = self._foreign_letters
            return among[_where(self.low.take(pa.array(among)), letters)]
        unsure = np.flatnonzero(~self.english & self.known)
        near = [may_be(self.language(row), language) for row in unsure.tolist()]
        return unsure[np.array(near, np.bool_)]

    def language(self, row: int) -> str:
        """The language of the answer's prose."""
        if row not in self._languages:
            self._languages[row] = identify_prose(self.text[row].as_py())
        return self._languages[row]

    def suspect(self, row: int) -> Suspect:
        """One answer, for a closer look."""
        to_source = partial(self.folded.find_source_position, row)
        return Suspect(row, self.low[row].as_py(), self.text[row].as_py(), to_source)


def inflected(verb: str) -> str:
    """Pattern of a regular verb's forms: measure -> measure(s), measured, measuring."""
    if verb.endswith("e"):
        return f"{verb[:-1]}(?:e|es|ed|ing)"
    if verb.endswith("y") and verb[-2:-1] not in tuple("aeiou"):
        return f"{verb[:-1]}(?:y|ies|ied|ying)"
    return f"{verb}(?:e?s|{verb[-1]}?ed|{verb[-1]}?ing)?"


def verb_pattern(language: str, verbs: Sequence[str]) -> str:
    """English with its regular forms; elsewhere whole words, and `mess*` all that begin with it."""
    if language == "en":
        return rf"\b(?:{'|'.join(inflected(verb) for verb in verbs)})\b"
    words = "|".join(fold_pattern(verb).replace("*", r"\pL*") for verb in verbs)
    return words if language in UNSPACED else rf"(?:^|[^\pL\pN_])(?:{words})(?:[^\pL\pN_]|$)"


class Rules:
    """The rules that are on. Raises InputError when the patterns are too large together."""

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        rules = pattern_rules(config)
        self.patterns = rules
        # One search for what may be in any text; of rules with lists by language, the English one.
        anywhere = [
            rule.screen if rule.is_for_any else rule.patterns["en"]
            for rule in rules
            if rule.is_for_any or "en" in rule.patterns
        ]
        fences = [FENCES] if config.ban_unbalanced_code_fences else []
        personal = [pii.SCREEN[kind] for kind in config.pii.of()]
        self.screen = "|".join([*fences, *personal, *anywhere])
        self.verbs = {
            language: verb_pattern(language, verbs)
            for language, verbs in config.allowed_action_verbs.items()
            if verbs and config.require_action_verb
        }
        listed = [pattern for rule in rules for pattern in rule.patterns.values()]
        try:
            for pattern in (self.screen, *listed, *self.verbs.values()):
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
        chars = answers.chars.astype(np.float64)
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
            found.append(self._action_verb(answers))
        if config.max_repetition is not None:
            share = repetition(answers.tokens)
            ok = share <= config.max_repetition
            found.append(Measured("rules.repetition", "repetition", ok, known, share, {}))
        if config.require_json_for:
            found.append(self._json(answers))
        return found

    def _action_verb(self, answers: Answers) -> Measured:
        """English first, for all; only where that does not decide, the language is looked up."""
        count, known = len(answers.low), answers.known.copy()
        ok = np.zeros(count, np.bool_)
        if english := self.verbs.get("en") or self.verbs.get(ANY):
            ok = _flags(pc.match_substring_regex(answers.low, english))
            # An English verb among ASCII letters is as good a sign of English as another word.
            answers.english |= ok & answers.folded.is_ascii
        others = self.verbs.keys() - {"en", ANY}
        unsure = known & (~ok | (~answers.english if others else False))
        not_applied = {}
        for row in np.flatnonzero(unsure).tolist():
            language = answers.language(row)
            lists = set(self.verbs) if language == UNKNOWN else {language, ANY} & self.verbs.keys()
            looked_for = lists & {"en", ANY} if ok[row] else set[str]()
            ok[row] = bool(looked_for) or any(
                self._has_verb(answers, row, name) for name in lists - {"en", ANY}
            )
            if not lists:
                not_applied[row] = language
        known[list(not_applied)] = False
        return Measured("rules.action_verb", "no_action_verb", ok, known, None, not_applied,
                        not_applied=not_applied)  # fmt: skip

    def _has_verb(self, answers: Answers, row: int, language: str) -> bool:
        text = pa.array([answers.low[row].as_py()], pa.string())
        return bool(pc.match_substring_regex(text, self.verbs[language])[0].as_py())

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
        suspects = _where(answers.low, self.screen) if self.screen else np.zeros(0, np.int64)
        low = answers.low.take(pa.array(suspects))
        found = []
        for rule in self.patterns:
            if rule.is_for_any:
                rows = suspects[_where(low, rule.screen)].tolist()
                found.append(self._pattern(rule, answers, rows))
            else:
                among = _listed_suspects(rule, answers, suspects, low)
                rows = sorted(set[int]().union(*among.values()))
                found.append(self._pattern(rule, answers, rows, among))
        found += [self._pii(kind, answers, suspects, low) for kind in self.config.pii.of()]
        if self.config.ban_unbalanced_code_fences:
            fenced = suspects[_where(low, FENCES)].tolist()
            ok = np.ones(len(answers.low), np.bool_)
            ok[[i for i in fenced if has_open_fence(answers.text[i].as_py())]] = False
            reason = "unbalanced_code_fence"
            found.append(Measured("rules.code_fences", reason, ok, answers.known, None, {}))
        return found

    def _pattern(
        self, rule: TextRule, answers: Answers, rows: Sequence[int],
        among: Mapping[str, set[int]] | None = None,
    ) -> Measured:  # fmt: skip
        places = rule.find([answers.suspect(row) for row in rows], among)
        ok, known = np.ones(len(answers.low), np.bool_), answers.known
        ok[list(places)] = False
        detail = {
            i: cut_bytes(answers.text[i].as_py(), start, EVIDENCE_BYTES)
            for i, start in places.items()
        }
        not_applied = {}
        if not rule.is_for_any:
            unsure = known & ok & ~(answers.english & ("en" in rule.patterns))
            languages = {row: answers.language(row) for row in np.flatnonzero(unsure).tolist()}
            not_applied = {row: code for row, code in languages.items() if not rule.is_for(code)}
            known = known.copy()
            known[list(not_applied)] = False
        return Measured(rule.check, rule.reason, ok, known, None, detail | not_applied,
                        not_applied=not_applied)  # fmt: skip

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


def _listed_suspects(
    rule: TextRule, answers: Answers, suspects: npt.NDArray[np.int64], low: pa.StringArray
) -> dict[str, set[int]]:
    """By language, the rows on which its list matches; any text may be English, as `suspects`."""
    rows = {}
    for language, pattern in rule.patterns.items():
        among, texts = suspects, low
        if language != "en":
            among = answers.candidates(language)
            texts = answers.low.take(pa.array(among))
        rows[language] = set(among[_where(texts, pattern)].tolist())
    return rows


def _where(texts: pa.StringArray, pattern: str) -> npt.NDArray[np.int64]:
    """The rows on which the pattern matches."""
    if not len(texts):  # to compile a pattern takes longer than to search many texts with it
        return np.zeros(0, np.int64)
    rows: npt.NDArray[np.int64] = np.flatnonzero(_flags(pc.match_substring_regex(texts, pattern)))
    return rows


def _flags(values: pa.Array | pa.ChunkedArray) -> Flags:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)
