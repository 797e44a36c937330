"""Tell citations from numbers and years that only look like one. Pure.

    bracketed numbers   "shown before [3, 7-9]." is a citation; an index (`a[0]`), an interval or a
                        list ("the range [0, 1]", "the matrix [[1, 2], [3, 4]]") is not
    name and year       "(Smith, 2019)" is a citation; "(March 2019)", "(Windows 2019)" are not

Input: folded text without code and formulas (text/folding.py, text/regions.py).
"""

import re
from itertools import pairwise

from nexa_distill.gating.word_lists import any_of, listed_words

LOOK_BACK = 80  # characters of the line
LONGEST_VALUE = 32  # characters of a word of VALUES and the marks that may follow it
NUMBERS = re.compile(r"\[(\s*\d{1,3}(?:\s*[,;-]\s*\d{1,3})*\s*)\]")
AUTHOR_YEAR = re.compile(r"\(([^()\d]{2,80}?)[ ,;:]+((?:1[6-9]|20)\d\d)[a-z]?(?:[^()]{0,80})\)")
# Words before brackets that contain values.
VALUES = re.compile(rf"(?:\b(?:{any_of('before_values')})|{any_of('before_values_unspaced')})[ \t:]*(?:=[ \t]*)?$")
# Words before a reference, or before brackets that contain several values.
BEFORE_SEVERAL = re.compile(r"\b(?:over|on|onto|into|for|from|to|or|by|of|with)[ \t]*$")
REPORTS = re.compile(
    r"\b(?:as|shown|described|reported|proposed|see|found|given|introduced|discussed|studied|"
    r"demonstrated|noted|argued|by|cf|e\.g\.|refs?\.?|reference) in[ \t]*$"
)
OPERATOR_BEFORE = re.compile(r"[=+*/<>^&|([{,\\]$")
OPERATOR_AFTER = re.compile(r"[ \t]*(?:[=*/^+\[{]|\(?(?:[<>]=?)|-[ \t>\d]|\.\w|x [\[\d]|\()")
REPORTED_LINK = re.compile(r"\(https?:")
# "items[3]" is an index; "in water[3] and" is a citation, because the word is an ordinary one.
INDEXED = re.compile(rf"(?:\b\w|\b\w*[_\d]\w*|\b(?:{any_of('indexed_names')}))$")
# "Smith (2020) found" and "Smith and Lee (2020)", but neither "Titanic (1997)" nor "Windows 10 (2015)".
NARRATIVE = re.compile(
    r"(?P<names>[^\W\d_][\w'-]*(?:(?: (?:and|&|und|et|y|e|и) |[和与])[^\W\d_][\w'-]*)?(?: et al\.?|ら|等人?)?) ?"
    r"\((?:1[6-9]|20)\d\d[a-z]?[^()\n]{0,20}\)"
)
TWO_AUTHORS = re.compile(r" (?:and|&|und|et|y|e|и) |和|与|ら|等|et al")
REPORTED_BY = re.compile(rf"(?:\b(?:{any_of('reported_by')})|根据|据)[ \t]*(?:[^\W\d_][\w'-]*,? (?:and |& )?){{0,2}}$")
REPORTS_AFTER = re.compile(
    rf"[ \t]*,?[ \t]*(?:who |also |first |later |has |have |had |recently )?(?:{any_of('reporting_verbs')})"
)
REFERENCE_ENTRY = re.compile(r"\b(?:1[6-9]|20)\d\d\b|doi|https?:|\bvol\b|\bpp\.|journal|proceedings|press")
NO_AUTHOR = set(listed_words("months_and_seasons", "words_of_time", "things_with_a_year", "places_of_events"))
PARTICLES = set(listed_words("particles"))


def end_of_false_citation(text: str, start: int, source: str) -> int:
    """The end of a match at `start` that is no citation; 0 if it is a citation.

    `source` is the text as written from `start` on: a name begins with a capital letter.
    """
    if numbers := NUMBERS.match(text, start):
        return 0 if _is_reference(text, numbers) else numbers.end()
    if narrative := NARRATIVE.match(text, start):
        return 0 if _is_narrative(text, narrative, source) else narrative.end()
    if author := AUTHOR_YEAR.match(text, start):
        return 0 if _is_author(author[1], source[1:]) else author.end()
    return 0


def _is_reference(text: str, match: re.Match[str]) -> bool:
    line_start = text.rfind("\n", 0, match.start()) + 1
    is_first = not text[line_start : match.start()].strip(" \t*-")
    before = text[max(line_start, match.start() - LOOK_BACK) : match.start()]
    after = text[match.end() : match.end() + 200]
    numbers = [int(n) for n in re.findall(r"\d+", match[1])]
    # A list of sources counts from 1, and references to it ascend.
    if 0 in numbers or any(a >= b for a, b in pairwise(numbers)):
        return False
    # First on its line: an entry of a list of sources, if a year, a link or a journal follows.
    if is_first:
        return bool(REFERENCE_ENTRY.search(after.split("\n", 1)[0])) or bool(REPORTED_LINK.match(after))
    if REPORTED_LINK.match(after):
        return True
    if OPERATOR_AFTER.match(after) and not before.rstrip().endswith((".", ",")):
        return False
    if before[-1:] in " \t":
        several = len(numbers) > 1
        if re.search(r"\][,;]?[ \t]*$", before):  # the second list of "[1, 2], [3, 4]"
            return False
        # "in [3]" refers to a source, "in [1, 2]" to an interval, "as shown in [1, 2]" to sources again.
        if re.search(r"\bin[ \t]*$", before):
            return not several or bool(REPORTS.search(before))
        if before.rstrip().endswith(":") or (several and BEFORE_SEVERAL.search(before)):
            return False
        return not (_names_values(before) or OPERATOR_BEFORE.search(before.rstrip()))
    if OPERATOR_BEFORE.search(before) or _names_values(before):
        # "([3])" is a reference, although a bracket comes before it.
        return before.endswith(" (") and after[:1] in "),;"
    return not (INDEXED.search(before) or before[-1:] in "\"'`")


def _names_values(before: str) -> bool:
    return VALUES.search(before, max(0, len(before) - LONGEST_VALUE)) is not None


def _is_narrative(text: str, match: re.Match[str], source: str) -> bool:
    names = match["names"]
    if not _is_author(names, source):
        return False
    before, after = text[max(0, match.start() - 60) : match.start()], text[match.end() :][:60]
    several = TWO_AUTHORS.search(names) or re.search(r"\b(?:and|&|und|et|y|e|и) $", before)
    return bool(several or REPORTED_BY.search(before) or REPORTS_AFTER.match(after))


def _is_author(name: str, source: str) -> bool:
    words = re.findall(r"[^\W\d_]+|&", name)
    named = [word for word in words if word not in PARTICLES]
    # So many words before a year are a remark, not names.
    if not named or len(words) > 8 or any(word in NO_AUTHOR for word in words):
        return False
    first = source.lstrip()[:1]
    lower_cased = first.isalpha() and first.islower() and words[0] not in PARTICLES
    return not lower_cased
