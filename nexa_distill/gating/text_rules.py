"""Rules that consist of patterns: which texts a pattern applies to, and which matches count.

A rule has a pattern per language (`any` for all), a `view` that blanks the text outside its scope,
and a function that recognizes false matches. A match of a language's list counts in texts of that
language, and in texts whose language has no list or is unknown.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.gating.citations import end_of_false_citation
from nexa_distill.gating.opening import blank_all_but_opening
from nexa_distill.gating.template_leftovers import end_of_false_leftover
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.text.folding import fold_pattern
from nexa_distill.text.language import ANY, NO_WORDS, UNKNOWN, identify_language
from nexa_distill.text.regions import blank_code, blank_math

# Escaped characters and classes are matched first, and left as they are.
LONG_REPEAT = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d+),\d{2,}\}", re.DOTALL)
View = Callable[[str], str]
FalseEnd = Callable[[str, int, str], int]
MOST_FALSE_MATCHES = 200  # of one answer; later matches of such an answer are ignored
SOURCE_BYTES = 80  # of the source text at a match: evidence, and what a function for false matches gets


class Suspect(NamedTuple):
    """An answer on which a pattern matched: folded, and as it was written."""

    row: int
    folded: str
    source: str
    find_source_position: Callable[[int, int], int]  # row, byte position in `folded` -> in `source`

    def source_from(self, start: int) -> str:
        """At most SOURCE_BYTES of the source from character `start` of `folded` on."""
        position = start if self.folded.isascii() else len(self.folded[:start].encode())
        return cut_bytes(self.source, self.find_source_position(self.row, position), SOURCE_BYTES)


@dataclass(frozen=True)
class TextRule:
    """Patterns (RE2, for folded text) by language, joined into one each."""

    check: str
    reason: str
    patterns: Mapping[str, str]
    view: View | None = None
    end_of_false_match: FalseEnd | None = None

    @property
    def is_for_any(self) -> bool:
        return ANY in self.patterns

    def screen_pattern(self, language: str = "") -> str:
        """A text without a match of it has no match of the rule, in one language or in all."""
        some = [self.patterns[language]] if language else self.patterns.values()
        return "|".join(f"(?:{loosen_repeats(pattern)})" for pattern in some)

    def is_for(self, language: str) -> bool:
        """Whether the rule applies to this language; it applies to unknown ones and to code."""
        return language in self.patterns or language in (UNKNOWN, NO_WORDS) or ANY in self.patterns

    def find_matches(
        self, suspects: Sequence[Suspect], among: Mapping[str, Collection[int]] | None = None
    ) -> dict[int, str]:
        """By row, the source text at the first match that counts (SOURCE_BYTES).

        `among`: by language, the rows on which its list may match, if known.
        """
        views = {s.row: self.view(s.folded) if self.view is not None else s.folded for s in suspects}
        by_row = {s.row: s for s in suspects}
        places: dict[int, int] = {}
        for language, pattern in self.patterns.items():
            some = {row: v for row, v in views.items() if among is None or row in among[language]}
            for row, at in self._true_matches(pattern, by_row, some).items():
                if language == ANY or self._is_written_in(language, by_row[row], views[row]):
                    places[row] = min(at, places.get(row, at))
        return {row: by_row[row].source_from(start) for row, start in places.items()}

    def _true_matches(self, pattern: str, suspects: Mapping[int, Suspect], views: dict[int, str]) -> dict[int, int]:
        places: dict[int, int] = {}
        # Each round blanks the false matches and searches the rest of these texts again.
        for _ in range(MOST_FALSE_MATCHES if views else 0):
            starts = pc.find_substring_regex(pa.array(views.values(), pa.string()), pattern)
            hits = [(row, at) for row, at in zip(views, starts.to_pylist(), strict=True) if at >= 0]
            views, searched = {}, views
            for row, at in hits:
                text = searched[row]
                # Arrow counts bytes, Python characters.
                start = at if text.isascii() else len(text.encode()[:at].decode())
                if end := self._end_of_false_match(suspects[row], text, start):
                    # Spaces of the same length, so that all later positions stay.
                    views[row] = text[:start] + " " * (end - start) + text[end:]
                else:
                    places[row] = start
            if not views:
                break
        return places

    def _end_of_false_match(self, suspect: Suspect, view: str, start: int) -> int:
        if self.end_of_false_match is None:
            return 0
        return self.end_of_false_match(view, start, suspect.source_from(start))

    def _is_written_in(self, language: str, suspect: Suspect, view: str) -> bool:
        # Of a text in two languages, the part up to the end of the view decides.
        part = suspect.source[: len(view.rstrip())] if self.view else suspect.source
        written = identify_language(part)
        return written in (language, UNKNOWN) or written not in self.patterns


def loosen_repeats(pattern: str) -> str:
    """A pattern that matches at least as much: long repetitions have no upper limit.

    RE2 compiles `x{2,80}` into 80 copies, and `x{2,}` into two.
    """
    shorter = {"0": "*", "1": "+"}
    return LONG_REPEAT.sub(lambda found: shorter.get(found[1], f"{{{found[1]},}}") if found[1] else found[0], pattern)


def cut_bytes(text: str, start: int, size: int) -> str:
    """At most `size` bytes of UTF-8 from byte `start` on, as whole characters."""
    if text.isascii():
        return text[start : start + size]
    # The cut may go through a character.
    return text.encode()[start : start + size].decode(errors="ignore")


def blank_code_and_math(text: str) -> str:
    return blank_math(blank_code(text))


def pattern_rules(config: FilterConfig) -> list[TextRule]:
    """The enabled rules, in the order in which they are reported."""
    prose, opening = blank_code_and_math, blank_all_but_opening
    citations = config.citation_patterns if config.ban_citations else {}
    refusals = config.refusal_patterns if config.ban_refusals else {}
    forbidden, leftovers = {ANY: config.forbidden_patterns}, {ANY: config.template_patterns}
    rows: list[tuple[str, str, Mapping[str, Sequence[str]], View | None, FalseEnd | None]] = [
        ("rules.citations", "banned_citation", citations, prose, end_of_false_citation),
        ("rules.forbidden_patterns", "forbidden_pattern", forbidden, None, None),
        ("rules.template_leftovers", "template_leftover", leftovers, prose, end_of_false_leftover),
        ("rules.refusal", "refusal", refusals, opening, None),
    ]
    for name, pattern in config.safety_patterns.items():
        rows.append((f"safety.{name}", "safety_flag", {ANY: [pattern]}, None, None))
    rules = [TextRule(row[0], row[1], _join_patterns(row[2]), *row[3:]) for row in rows]
    return [rule for rule in rules if rule.patterns]


def _join_patterns(patterns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {
        language: "|".join(f"(?:{fold_pattern(pattern)})" for pattern in listed)
        for language, listed in patterns.items()
        if listed
    }
