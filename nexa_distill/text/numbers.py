"""Rewrite numbers of other scripts and locales as ASCII that a parser reads.

Digits of every script (Unicode category Nd), full-width forms, the minus signs of Unicode, vulgar
fractions, and thousands separators that cannot mean anything else: spaces that do not break,
apostrophes, underscores, two or more points, a point with a decimal comma behind it, the Indian
1,23,456. Powers in superscripts, 1.5e3, 5 \u00d7 10^3, mixed numbers (2 1/2), a plus sign before a
number and an escaped dollar (\\$18) are written as the parser reads them. Not covered: a single point
(1.234 is taken as a decimal, as in English), number words.
"""

import re
import unicodedata
from fractions import Fraction

MINUS = dict.fromkeys(map(ord, "\u2212\ufe63\uff0d\u2796"), "-")
FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF0C}
ARABIC = {0x066A: "%", 0x066B: ".", 0x066C: ","}
# Ends of sentences and clauses: a parser looks for ASCII after a number.
STOPS = dict.fromkeys(map(ord, "\u3002\u06d4\u0964\u0965\u1362\u104b"), ". ")
STOPS |= dict.fromkeys(map(ord, "\u3001\u060c\u061b"), ", ")
STOPS |= {0xFF1A: ": ", 0xFF1B: "; "}
SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\u3000"), " ")
SIGNS = FULL_WIDTH | MINUS | ARABIC | STOPS | SPACES
SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
POWER = re.compile(rf"(?<=[\d)])(\u207b?)([{SUPERSCRIPTS}]+)")
VULGAR = re.compile(r"(\d*)([\u00bc-\u00be\u2150-\u215e\u2189])")
RULES = (
    # A short dash is a sign before a number and "to" between two; a hyphen there subtracts.
    (re.compile(r"(?<![\w.)\]}])[\u2010-\u2013](?=[\d.])"), "-"),
    (re.compile(r"(?<=\d)\s*[\u2012-\u2015~\u301c]\s*(?=-?\d)"), " to "),
    (re.compile(r"(?<=\d)\uff0c(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\uff0c"), ", "),
)
# What the parser does not read as one number. A plus is a sign behind a word or a mark, and adds
# behind a number or a single letter. The last one: 2 1/2 is 5/2, as far as it can be nothing else.
PLAIN = (
    (re.compile(r"\\\$(?=[-+]?[\d.])"), ""),
    (re.compile(r"(^|[:=(,$*|#]|(?<=[^\W\d_]{2}))([ \t]*)\+(?=\d)", re.MULTILINE), r"\1\2"),
    (re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,2})(?!\w|\.\d)"), r"\1*10^(\2)"),
    (re.compile(r"(?<=\d)[ \t]*[\u00d7\u00b7\u22c5\u2715][ \t]*(?=\d)"), "*"),
    (re.compile(r"(?<=\^)\(\+?(\d+)\)"), r"\1"),
)
MIXED = re.compile(r"(?<![\w.,/^*+-])(-?)(\d{1,3}) (\d{1,3})/(\d{1,3})(?![\w/]|\.\d)")
GROUPED = re.compile(
    r"(?<![\w.,])(?:"
    r"(?P<marks>\d{1,3}(?:(?:['\u2019_]|\\,|\{,\})\d{3})+(?:[.,]\d+)?)"
    r"|(?P<points>\d{1,3}(?:(?:\.\d{3}){2,}(?:,\d+)?|\.\d{3},\d+))"
    r"|(?P<spaces>\d{1,3}(?: \d{3})+,\d{1,2})"
    r"|(?P<indian>\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?)"
    r")(?![\w]|[.,]\d)"
)


def with_plain_numbers(text: str) -> str:
    """Rewrite the numbers in `text` as ASCII; other words and signs stay."""
    if not text.isascii():
        # Marks of direction and joiners separate a sign from its digits (U+200E, U+2060).
        text = "".join(c for c in text if unicodedata.category(c) != "Cf").translate(SIGNS)
        text = _apart_from_letters("".join(map(_ascii_digit, text)))
        text = VULGAR.sub(_plain_fraction, text)
        for pattern, replacement in RULES:
            text = pattern.sub(replacement, text)
        text = POWER.sub(_power, text)
    text = GROUPED.sub(_remove_separators, text)
    for pattern, replacement in PLAIN:
        text = pattern.sub(replacement, text)
    return MIXED.sub(_mixed, text)


def _power(found: re.Match[str]) -> str:
    """10^5, and 10^(-3)."""
    digits = "".join(str(SUPERSCRIPTS.index(sign)) for sign in found[2])
    return f"^(-{digits})" if found[1] else f"^{digits}"


def _mixed(found: re.Match[str]) -> str:
    """2 1/2 as 5/2, if it is less than one more than the whole."""
    whole, part, of = int(found[2]), int(found[3]), int(found[4])
    return f"{found[1]}{whole * of + part}/{of}" if 0 < part < of and whole else found[0]


def _ascii_digit(character: str) -> str:
    return character if character.isascii() else str(unicodedata.decimal(character, character))


def _apart_from_letters(text: str) -> str:
    """Insert a space between a number and a letter of a script without spaces, as in 18\u4e2a."""
    pieces, before = [], " "
    for character in text:
        kinds = {_character_kind(before), _character_kind(character)}
        pieces.append(f" {character}" if kinds == {"number", "letter"} else character)
        before = character
    return "".join(pieces)


def _character_kind(character: str) -> str:
    if character.isascii():
        return "number" if character.isdigit() or character in "-$%" else "other"
    return "letter" if unicodedata.category(character) == "Lo" else "other"


def _plain_fraction(match: re.Match[str]) -> str:
    """1½ becomes 3/2, since `1 1/2` would be read as two numbers."""
    # `numeric` returns a float: 1/3 is the small fraction that is nearest to it.
    part = Fraction(unicodedata.numeric(match[2])).limit_denominator(10)
    whole = Fraction(int(match[1] or 0)) + part
    return f"{whole.numerator}/{whole.denominator}"


def _remove_separators(match: re.Match[str]) -> str:
    number = match[0]
    if match["indian"]:
        return number.replace(",", "")
    if match["points"]:
        number = number.replace(".", "")
    # A comma that is left is the decimal mark.
    return re.sub(r"['\u2019_ ]|\\,|\{,\}", "", number).replace(",", ".")
