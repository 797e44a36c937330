"""The rules once more, in plain Python, one answer at a time: what the fast ones must agree with.

Shares with `nexa_distill.gating.rules` the configuration and what looks at one answer at a time:
folding, the language of a text, and which match of a pattern counts (`nexa_distill/text`,
`gating/text_rules.py`).
It knows nothing of batches, of the search for all patterns at once, and of which lists are skipped.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from nexa_distill.gating.text_rules import Suspect, pattern_rules
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.text import pii
from nexa_distill.text.folding import fold_texts
from nexa_distill.text.language import identify_prose
from nexa_distill.text.regions import has_open_fence
from nexa_distill.text.words import is_spaceless, word_spans

LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def token_count(text: str) -> int:
    """Words, and every mark of punctuation and every symbol."""
    count, inside = 0, False
    for char in spaced(text):
        kind = unicodedata.category(char)[0]
        mark = kind in "PS" and char != "_"
        word = char == "_" or not (mark or _is_space(char) or char < " " or char == "\x7f")
        count += mark or (word and not inside)
        inside = word
    return count


def spaced(text: str) -> str:
    """The text; words of scripts without spaces are padded to five characters and set apart."""
    if not any(map(is_spaceless, text)):
        return text
    words = (text[start:end] for start, end in word_spans(text))
    return " ".join(w.rjust(5, w[0]) if is_spaceless(w[0]) else w for w in words)


def _is_space(char: str) -> bool:
    return char.isspace() or char == "\u200b"


def window_starts(text: str) -> list[int]:
    """Where runs without spaces and control characters begin."""
    inside = [char > " " and not _is_space(char) for char in text]
    return [i for i, here in enumerate(inside) if here and (i == 0 or not inside[i - 1])]


def repeated_share(text: str, starts: list[int]) -> float:
    """Share of the windows of 24 characters that were seen before."""
    windows = [text[i : i + 24] for i in starts if i + 24 <= len(text)]
    return (len(windows) - len(set(windows))) / max(len(windows), 1)


def verb_forms(verb: str) -> list[str]:
    """The regular forms of a verb."""
    if verb[-1] == "e":
        stem = verb[:-1]
        return [verb, stem + "es", stem + "ed", stem + "ing"]
    if verb[-1] == "y" and not (len(verb) > 1 and verb[-2] in "aeiou"):
        stem = verb[:-1]
        return [verb, stem + "ies", stem + "ied", verb + "ing"]
    doubled = verb + verb[-1]
    return [
        verb, verb + "s", verb + "es", verb + "ed", verb + "ing", doubled + "ed", doubled + "ing"
    ]  # fmt: skip


def _is_json(text: str) -> bool:
    def refuse(_name: str) -> None:
        raise ValueError

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


class Reference:
    """`keeps(row)`: whether an answer passes every rule."""

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        verbs = config.allowed_action_verbs.get("en", [])
        self.verbs = {form for verb in verbs for form in verb_forms(verb)}
        self.rules = pattern_rules(config)
        self.word = re.compile(r"[a-z0-9_]+")

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether the row (teacher_output, finish_reason, template_name, answer_flag) passes."""
        config, text = self.config, row["teacher_output"]
        if row["answer_flag"] in config.reject_flags:
            return False
        if text is None or (config.require_stop and row["finish_reason"] != "stop"):
            return False
        starts = window_starts(spaced(text))
        low = text.translate(LOWER)
        lengths = [
            (config.min_char_length, config.max_char_length, len(text)),
            (config.min_token_length, config.max_token_length, token_count(text)),
        ]
        if not starts or any(
            (least is not None and size < least) or (most is not None and size > most) for least, most, size in lengths
        ):
            return False
        folded = fold_texts(pa.array([text], pa.string())).texts[0].as_py()
        if config.require_action_verb and self._lacks_verb(text, folded):
            return False
        if config.ban_unbalanced_code_fences and has_open_fence(text):
            return False
        share = repeated_share(spaced(low), starts)
        if config.max_repetition is not None and share > config.max_repetition:
            return False
        if row["template_name"] in config.require_json_for and not _is_json(text):
            return False
        personal = config.pii.kinds_with("redact", "reject")
        place = fold_texts(pa.array([text], pa.string())).find_source_position
        suspect = Suspect(0, folded, text, place)
        return not any(rule.find_matches([suspect]) for rule in self.rules) and not any(
            True for kind in personal for _ in pii.find_spans(text, kind)
        )

    def _lacks_verb(self, text: str, folded: str) -> bool:
        """Whether an English text, or one of an unknown language, has none of the verbs."""
        some = not self.verbs.isdisjoint(self.word.findall(folded))
        return not some and identify_prose(text) in ("en", "und")
