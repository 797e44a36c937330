"""The forms in which words are compared: typing differences are removed, meaning is kept.

Contamination compares without any case (`folded`), near-duplicates with meaningful case (`kept`).
Not distinguished: an ordinary word and the same word as a name (turkey and Turkey).
"""

import re
import unicodedata
from functools import cache, lru_cache
from typing import NamedTuple

from nexa_distill.text.words import share_of

# Compatibility characters that mean the same as their decomposition (UAX 44, table 14). Superscripts
# and subscripts (a square is not the digit 2), letters of other fonts (the set R is not the letter
# R) and circled numbers are kept.
SAME = frozenset(
    "<wide> <narrow> <small> <vertical> <square> <compat> <noBreak> <isolated> <initial> <medial> <final>".split()
)
_TYPED = {"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u2212": "-", "\u200b": " "}
_INVISIBLE = "\u00ad\u200e\u200f\u2060\ufe0e\ufe0f\ufeff\u202a\u202b\u202c\u2066\u2067\u2068\u2069"
_TSHEG = "\u0f0b\u0f0c"  # between the syllables of Tibetan
_KEPT_MARKS = "\u2030\u2031\u2020\u2021\u2032\u2033\u2034\u00a7\u00b6\u203b"  # per mille, primes, ...
# Operators and other symbols are meaning: `!x`, `5!`, `C++`, `[]` and `{}`, currency.
_SYMBOLS = "0123456789!$+<=>^|~%*#@\\[]{}_`"
_SYMBOL_CATEGORIES = ("Sm", "Sc", "Sk", "So", "Nd", "Nl", "No", "Ps", "Pe")
_NO_OPERATOR = re.compile(r"[.?!,;\"']*|:|[()]")


@cache
def _compatibility_table() -> tuple[re.Pattern[str], dict[str, str]]:
    table = dict.fromkeys(_INVISIBLE, "") | _TYPED | dict.fromkeys(_TSHEG, " ")
    for character in map(chr, (*range(0x80, 0x10000), *range(0x1F100, 0x1F300))):
        kind, _, parts = unicodedata.decomposition(character).partition(" ")
        if character.isspace():
            table[character] = " "
        elif kind == "<fraction>":  # a space keeps 3½ from becoming 31/2
            table[character] = f" {unicodedata.normalize('NFKC', character)}"
        elif kind in SAME:
            table.setdefault(character, "".join(chr(int(part, 16)) for part in parts.split()))
    return re.compile("[" + re.escape("".join(table)) + "]"), table


def normalize_text(text: str) -> str:
    """Unify Unicode forms that only differ in typing; case, symbols and spacing stay."""
    if text.isascii():
        return text
    pattern, table = _compatibility_table()
    text = pattern.sub(lambda match: table[match[0]], unicodedata.normalize("NFC", text))
    # A second time, because a replacement may itself be in the table.
    return unicodedata.normalize("NFC", pattern.sub(lambda match: table[match[0]], text))


class Forms(NamedTuple):
    """One word as it is compared; the texts are empty for a word of only punctuation."""

    folded: str  # without case
    kept: str  # with meaningful case
    first: str  # the same at the beginning of a sentence
    bits: int  # the word's share (`share_of`), and the flags below


SYMBOL = 8  # the word contains a digit or a symbol
ENDS_SENTENCE = 16
LONG, SMALL = 32, 64  # four letters and more; such a word without a capital
_LEAST = 4
_CLOSING = "\"')]\u201d\u2019\u00bb"
_SENTENCE_MARKS = (".", "!", "?", ":", "\u2026", "\u0964")  # and the danda of Hindi


@lru_cache(200_000)
def word_forms(word: str) -> Forms:
    """The forms of a word of normalized text, with the punctuation that touches it."""
    if word.isascii() and word.isalpha() and word.islower():
        return Forms(word, word, word, (LONG | SMALL) if len(word) >= _LEAST else 0)
    if not word:
        return Forms("", "", "", ENDS_SENTENCE)
    bare = _without_punctuation(word)
    folded = bare.casefold()
    letters = [character for character in bare if character.isalpha()]
    symbol = bare != "" and (not letters or bare[-1] == "'" or any(map(_is_symbol, bare)))
    bits = share_of(word) | SYMBOL * symbol
    bits |= ENDS_SENTENCE * word.rstrip(_CLOSING).endswith(_SENTENCE_MARKS)
    if len(letters) == len(bare) >= _LEAST:
        bits |= LONG | SMALL * (not letters[0].isupper())
    if folded == bare:
        return Forms(bare, bare, bare, bits)
    # Case has no meaning in an ordinary word of three letters and more (City, CITY, city). It has
    # in shorter words (Co and CO, T and t), in mixed case (NaCl) and beside a symbol ($HOME).
    capital = letters[0].isupper() and not any(map(str.isupper, letters[1:]))
    ordinary = len(letters) > 2 and (capital or bare.isupper() or bare.islower())
    kept = folded if ordinary and not symbol else bare
    return Forms(folded, kept, folded if capital and not symbol else kept, bits)


def _is_symbol(character: str) -> bool:
    if character.isascii():
        return character in _SYMBOLS
    return unicodedata.category(character) in _SYMBOL_CATEGORIES


def _without_punctuation(word: str) -> str:
    """The word without quotes, round brackets and sentence punctuation at its edges."""
    start, end = 0, len(word)
    while start < end and _is_edge(word[start]):
        start += 1
    while end > start and _is_edge(word[end - 1]):
        end -= 1
    if start == end:
        return "" if _NO_OPERATOR.fullmatch(word) or not word.isascii() else word
    before, after, bare = word[:start], word[end:], word[start:end]
    if re.search(r"(?<!\.)\.$|!$", before):  # .5, .py, !x
        bare = before[-1] + bare
    if (primes := re.match("'+", after)) and len(bare) < 3 and "'" not in before:
        return bare + primes[0]  # f', y''
    factorial = re.match(r"(\)*)(!+)", after)
    if factorial and (factorial[1] or bare[-1].isdigit() or len(bare) == 1):
        return bare + factorial[2]  # 5!, n!, (n + 1)!
    return bare


def _is_edge(character: str) -> bool:
    if character.isascii():
        return character in ".,:;?!\"'()"
    kind = unicodedata.category(character)
    if kind in ("Ps", "Pe"):  # brackets of East Asia and low quotes, not those of mathematics
        return "\u3008" <= character <= "\u301f" or character in "\u201a\u201e\u2e42"
    return kind in ("Pi", "Pf") or (kind == "Po" and character not in _KEPT_MARKS)
