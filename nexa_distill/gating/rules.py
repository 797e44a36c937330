"""The rules: pure checks of answers against `configs/filters.yaml`, a batch at a time.

Lengths are in Unicode code points, and in tokens that are counted without a tokenizer; repetition
is a share (0..1) of the answer (`text/repetition.py`). Patterns are RE2, on folded text.

A rule without a list for the answer's language is not applied: its check is null with the reason
`not_applied` and the language as its detail, and does not reject the answer. A null answer has only
`rules.answer_flag` and `rules.empty_output`; its other checks are null.

Not covered: irregular verb forms, and loops without spaces that are shorter than a window ("aaaa"
is one word, which the minimum of tokens rejects).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import FLAG_REASONS
from nexa_distill.errors import InputError
from nexa_distill.gating.text_rules import SOURCE_BYTES, Suspect, TextRule, pattern_rules
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.text import pii
from nexa_distill.text.folding import fold_pattern, fold_texts
from nexa_distill.text.json_schemas import parse_json
from nexa_distill.text.language import ANY, LETTERS, UNKNOWN, identify_prose, may_be_language
from nexa_distill.text.regions import has_open_fence
from nexa_distill.text.repetition import measure_tokens

COLUMNS = ("teacher_output", "finish_reason", "template_name", "answer_flag")
BATCH_ROWS = 8192  # twice as many take a third more memory
FENCES = "```|~~~"
# One of them makes a text of Latin letters English, where only a count depends on it.
ENGLISH_WORDS = r"\b(?:the|this|that|these|you|your|with|which|we)\b"
MOSTLY_ASCII = 1.1  # bytes per character
UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "bo")  # a verb may begin and end anywhere
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RuleResult:
    """One rule on every answer of a batch. `ok` is valid only where `known`; `detail` by row."""

    check: str
    reason: str
    ok: Flags
    known: Flags
    value: Numbers | None
    detail: dict[int, str]
    # By row: reasons that differ from the rule's usual `reason`.
    reasons: Mapping[int, str] = field(default_factory=dict)
    # By row: a language for which the rule has no list; such rows are not `known`.
    not_applied: Mapping[int, str] = field(default_factory=dict)

    @property
    def passed_rows(self) -> Flags:
        passed = self.ok & self.known
        passed[list(self.not_applied)] = True
        return passed

    def count_reasons(self, rows: Flags) -> Counter[str]:
        """The reasons of these rows, all of which fail."""
        counts = Counter(why for row, why in self.reasons.items() if rows[row])
        counts[self.reason] += int(rows.sum()) - counts.total()
        return +counts


class AnswerBatch:
    """The texts of a batch in the forms that the rules need. A null text becomes empty."""

    def __init__(self, rows: pa.Table, *, with_repetition: bool = True) -> None:
        column = rows["teacher_output"].combine_chunks()
        self.known: Flags = _to_flags(column.is_valid())
        self.text = pc.fill_null(column, "").cast(pa.string())
        self.chars: npt.NDArray[np.int64] = pc.utf8_length(self.text).to_numpy()
        self.folded = fold_texts(self.text)
        self.low: pa.StringArray = self.folded.texts
        is_ascii = self.folded.is_ascii
        self.tokens = measure_tokens(self.folded.lowered, is_ascii, with_shares=with_repetition)
        self._languages: dict[int, str] = {}
        self.finish = rows["finish_reason"]
        self.task = rows["template_name"]
        self.flag = rows["answer_flag"]

    @cached_property
    def is_english(self) -> Flags:
        """Nearly ASCII texts with a common English word: a guess, only for counting."""
        lengths = pc.binary_length(self.text).to_numpy()
        mostly_ascii: Flags = lengths < MOSTLY_ASCII * self.chars
        return mostly_ascii & _to_flags(pc.match_substring_regex(self.low, ENGLISH_WORDS))

    @cached_property
    def _foreign_letters(self) -> npt.NDArray[np.int64]:
        rows = np.flatnonzero(~self.folded.is_ascii)
        folded_to_ascii = _to_flags(pc.string_is_ascii(self.low.take(pa.array(rows))))
        return rows[~folded_to_ascii]

    def language_candidates(self, language: str) -> npt.NDArray[np.int64]:
        """Rows that may be in a language other than English: by script, or Latin and unclear."""
        if letters := LETTERS.get(language):
            among = self._foreign_letters
            return among[_matching_rows(self.low.take(pa.array(among)), letters)]
        unsure = np.flatnonzero(~self.is_english & self.known)
        near = [may_be_language(self.language_of(row), language) for row in unsure.tolist()]
        return unsure[np.array(near, np.bool_)]

    def language_of(self, row: int) -> str:
        if row not in self._languages:
            self._languages[row] = identify_prose(self.text[row].as_py())
        return self._languages[row]

    def suspects_at(self, rows: Sequence[int]) -> list[Suspect]:
        taken = pa.array(rows, pa.int64())
        low, source = self.low.take(taken).to_pylist(), self.text.take(taken).to_pylist()
        find = self.folded.find_source_position
        return [Suspect(*texts, find) for texts in zip(rows, low, source, strict=True)]


def inflect_verb(verb: str) -> str:
    """Pattern of a regular verb's forms: measure -> measure(s), measured, measuring."""
    if verb.endswith("e"):
        return f"{verb[:-1]}(?:e|es|ed|ing)"
    if verb.endswith("y") and verb[-2:-1] not in tuple("aeiou"):
        return f"{verb[:-1]}(?:y|ies|ied|ying)"
    return f"{verb}(?:e?s|{verb[-1]}?ed|{verb[-1]}?ing)?"


def verb_pattern(language: str, verbs: Sequence[str]) -> str:
    """English verbs with their regular forms; in other languages whole words, `mess*` a prefix."""
    if language == "en":
        return rf"\b(?:{'|'.join(inflect_verb(verb) for verb in verbs)})\b"
    words = "|".join(fold_pattern(verb).replace("*", r"\pL*") for verb in verbs)
    return words if language in UNSPACED else rf"(?:^|[^\pL\pN_])(?:{words})(?:[^\pL\pN_]|$)"


class Rules:
    """The enabled rules. Raises InputError if the patterns are too large together."""

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        rules = pattern_rules(config)
        self.patterns = rules
        # One search for the patterns of any text; of rules with lists by language, the English one.
        anywhere = [
            rule.screen_pattern("" if rule.is_for_any else "en")
            for rule in rules
            if rule.is_for_any or "en" in rule.patterns
        ]
        fences = [FENCES] if config.ban_unbalanced_code_fences else []
        personal = [pii.SCREEN[kind] for kind in config.pii.kinds_with()]
        self.screen = "|".join([*fences, *personal, *anywhere])
        self.verbs = {
            language: verb_pattern(language, verbs)
            for language, verbs in config.allowed_action_verbs.items()
            if verbs and config.require_action_verb
        }
        listed = [pattern for rule in rules for pattern in rule.patterns.values()]
        try:
            # RE2 compiles within a fixed memory: a pattern that is too large fails here, not in the run.
            for pattern in (self.screen, *listed, *self.verbs.values()):
                pc.match_substring_regex(pa.array([""]), pattern)
        except pa.ArrowInvalid as error:
            raise InputError(f"filters: the patterns are too large together: {error}") from None

    def measure_batch(self, rows: pa.Table) -> list[RuleResult]:
        """Every enabled rule, in a fixed order, on every row of one batch (COLUMNS)."""
        answers = AnswerBatch(rows, with_repetition=self.config.max_repetition is not None)
        # Flags come first, because they explain an absent text or `stop`.
        results = [*self._check_flags(answers), *self._check_ends(answers), *self._check_lengths(answers)]
        return [*results, *self._check_content(answers), *self._check_patterns(answers)]

    def _check_flags(self, answers: AnswerBatch) -> list[RuleResult]:
        if not self.config.reject_flags:
            return []
        bad = _to_flags(pc.is_in(answers.flag, pa.array(self.config.reject_flags)))
        flags = {i: answers.flag[i].as_py() for i in np.flatnonzero(bad).tolist()}
        reasons = {i: FLAG_REASONS[flag] for i, flag in flags.items()}
        every, usual = np.ones(len(bad), np.bool_), FLAG_REASONS["malformed"]
        return [RuleResult("rules.answer_flag", usual, ~bad, every, None, flags, reasons)]

    def _check_ends(self, answers: AnswerBatch) -> list[RuleResult]:
        results = []
        filled = (answers.tokens.words > 0) & answers.known
        every = np.ones(len(filled), np.bool_)
        if self.config.require_stop:
            stop, present = pc.equal(answers.finish, "stop"), _to_flags(answers.finish.is_valid())
            ok = _to_flags(pc.fill_null(stop, False))
            other = {i: answers.finish[i].as_py() for i in np.flatnonzero(present & ~ok).tolist()}
            calls = {i: "empty_output" for i in other if other[i] == "tool_calls" and not filled[i]}
            results.append(RuleResult("rules.finish_reason", "truncated", ok, present, None, other, calls))
        results.append(RuleResult("rules.empty_output", "empty_output", filled, every, None, {}))
        return results

    def _check_lengths(self, answers: AnswerBatch) -> list[RuleResult]:
        chars = answers.chars.astype(np.float64)
        tokens = answers.tokens.counts.astype(np.float64)
        limits = (
            ("min_char_length", "too_short", chars, np.greater_equal),
            ("max_char_length", "too_long", chars, np.less_equal),
            ("min_token_length", "too_few_tokens", tokens, np.greater_equal),
            ("max_token_length", "too_many_tokens", tokens, np.less_equal),
        )
        return [
            RuleResult(f"rules.{name}", reason, within(value, limit), answers.known, value, {})
            for name, reason, value, within in limits
            if (limit := getattr(self.config, name)) is not None
        ]

    def _check_content(self, answers: AnswerBatch) -> list[RuleResult]:
        config, results = self.config, []
        if self.verbs:
            results.append(self._check_action_verb(answers))
        if config.max_repetition is not None:
            share = answers.tokens.shares
            ok = share <= config.max_repetition
            results.append(RuleResult("rules.repetition", "repetition", ok, answers.known, share, {}))
        if config.require_json_for:
            results.append(self._check_json(answers))
        return results

    def _check_action_verb(self, answers: AnswerBatch) -> RuleResult:
        count, known = len(answers.low), answers.known.copy()
        ok = np.zeros(count, np.bool_)
        if english := self.verbs.get("en") or self.verbs.get(ANY):
            ok = _to_flags(pc.match_substring_regex(answers.low, english))
            # An English verb among ASCII letters indicates English as well as another word does.
            answers.is_english |= ok & answers.folded.is_ascii
        others = self.verbs.keys() - {"en", ANY}
        # Identifying a language is slow, so it is done only for rows that it can change.
        unsure = known & (~ok | (~answers.is_english if others else False))
        not_applied = {}
        for row in np.flatnonzero(unsure).tolist():
            language = answers.language_of(row)
            # In a text of no known language, a verb of any list counts.
            lists = set(self.verbs) if language == UNKNOWN else {language, ANY} & self.verbs.keys()
            looked_for = lists & {"en", ANY} if ok[row] else set[str]()
            ok[row] = bool(looked_for) or any(self._has_verb(answers, row, name) for name in lists - {"en", ANY})
            if not lists:
                not_applied[row] = language
        known[list(not_applied)] = False
        check, reason = "rules.action_verb", "no_action_verb"
        return RuleResult(check, reason, ok, known, None, not_applied, {}, not_applied)

    def _has_verb(self, answers: AnswerBatch, row: int, language: str) -> bool:
        text = pa.array([answers.low[row].as_py()], pa.string())
        return bool(pc.match_substring_regex(text, self.verbs[language])[0].as_py())

    def _check_json(self, answers: AnswerBatch) -> RuleResult:
        is_json_task = _to_flags(pc.is_in(answers.task, pa.array(self.config.require_json_for)))
        errors = {
            i: error
            for i in np.flatnonzero(is_json_task & answers.known).tolist()
            if (error := json_error(answers.text[i].as_py()))
        }
        ok = np.ones(len(answers.low), np.bool_)
        ok[list(errors)] = False
        return RuleResult("rules.json", "invalid_json", ok, answers.known, None, errors)

    def _check_patterns(self, answers: AnswerBatch) -> list[RuleResult]:
        # One scan for all patterns; each rule then examines only the answers that match it.
        suspects = _matching_rows(answers.low, self.screen) if self.screen else np.zeros(0, np.int64)
        low = answers.low.take(pa.array(suspects))
        results = []
        for rule in self.patterns:
            if rule.is_for_any:
                rows = suspects[_matching_rows(low, rule.screen_pattern())].tolist()
                results.append(self._check_pattern(rule, answers, rows))
            else:
                among = _listed_suspects(rule, answers, suspects, low)
                rows = sorted(set[int]().union(*among.values()))
                results.append(self._check_pattern(rule, answers, rows, among))
        results += [self._check_pii(kind, answers, suspects, low) for kind in self.config.pii.kinds_with()]
        if self.config.ban_unbalanced_code_fences:
            fenced = suspects[_matching_rows(low, FENCES)].tolist()
            ok = np.ones(len(answers.low), np.bool_)
            ok[[i for i in fenced if has_open_fence(answers.text[i].as_py())]] = False
            reason = "unbalanced_code_fence"
            results.append(RuleResult("rules.code_fences", reason, ok, answers.known, None, {}))
        return results

    def _check_pattern(
        self, rule: TextRule, answers: AnswerBatch, rows: Sequence[int], among: Mapping[str, set[int]] | None = None
    ) -> RuleResult:
        detail = rule.find_matches(answers.suspects_at(rows), among)
        ok, known = np.ones(len(answers.low), np.bool_), answers.known
        ok[list(detail)] = False
        not_applied = {}
        if not rule.is_for_any:
            unsure = known & ok & ~(answers.is_english & ("en" in rule.patterns))
            languages = {row: answers.language_of(row) for row in np.flatnonzero(unsure).tolist()}
            not_applied = {row: code for row, code in languages.items() if not rule.is_for(code)}
            known = known.copy()
            known[list(not_applied)] = False
        detail |= not_applied
        return RuleResult(rule.check, rule.reason, ok, known, None, detail, {}, not_applied)

    def _check_pii(
        self, kind: pii.Kind, answers: AnswerBatch, suspects: npt.NDArray[np.int64], low: pa.Array
    ) -> RuleResult:
        rows = suspects[_to_flags(pc.match_substring_regex(low, pii.SCREEN[kind]))].tolist()
        places = {i: list(pii.find_spans(answers.text[i].as_py(), kind)) for i in rows}
        count = np.zeros(len(answers.low))
        count[list(places)] = [len(spans) for spans in places.values()]
        # Only the position: the evidence must not copy personal data.
        detail = {i: f"at character {spans[0][0]}" for i, spans in places.items() if spans}
        reason = "secret" if kind == "secret" else "personal_data"
        ok = (count == 0) | (getattr(self.config.pii, kind) == "flag")
        return RuleResult(f"safety.pii_{kind}", reason, ok, answers.known, count, detail)


def json_error(text: str) -> str | None:
    """The reason why `text` is not one JSON value (NaN and Infinity are not JSON), or None."""
    try:
        parse_json(text)
    except ValueError as error:
        return str(error)[:SOURCE_BYTES]
    return None


def _listed_suspects(
    rule: TextRule, answers: AnswerBatch, suspects: npt.NDArray[np.int64], low: pa.StringArray
) -> dict[str, set[int]]:
    rows = {}
    for language in rule.patterns:
        among, texts = suspects, low
        # English is looked for in all suspects, another list only where it can match.
        if language != "en":
            among = answers.language_candidates(language)
            texts = answers.low.take(pa.array(among))
        rows[language] = set(among[_matching_rows(texts, rule.screen_pattern(language))].tolist())
    return rows


def _matching_rows(texts: pa.StringArray, pattern: str) -> npt.NDArray[np.int64]:
    if not len(texts):  # compiling a pattern takes longer than searching many texts with it
        return np.zeros(0, np.int64)
    rows: npt.NDArray[np.int64] = np.flatnonzero(_to_flags(pc.match_substring_regex(texts, pattern)))
    return rows


def _to_flags(values: pa.Array | pa.ChunkedArray) -> Flags:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)
