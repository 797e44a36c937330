"""Split text into words, for chunks, lengths, repetition, near-duplicates and contamination.

A word is a run without white space, with the punctuation that touches it. In Chinese, Japanese,
Thai, Lao, Khmer and Burmese, which use no spaces, ICU's dictionaries define the words (Unicode
Standard Annex 29, "Word Boundaries"); in Tibetan a word is a syllable.
Where texts are compared, Vietnamese syllables with a letter of their own count half a word each.

Not covered: scripts without spaces for which ICU has no dictionary (Javanese, Balinese, Tai Tham):
a run of them is one word.
"""

import re
import unicodedata
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import regex

# ICU from `icu4py`: MIT, typed, wheels of 16 MB for Linux and macOS, about 2.6 million characters of
# Chinese per second and core. `pyicu-wheels` has no wheels for macOS, `uniseg` has no dictionaries.
from icu4py.breakers import WordBreaker

VERSION = 3  # of the words; part of the settings of every stage that counts or compares them
KANA = "\\p{Hiragana}\\p{Katakana}\u30fc"  # its mark of a long vowel belongs to no script
SCRIPTS = rf"[\p{{Han}}{KANA}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}\p{{Tibetan}}]"
# Where texts are compared, each character of these scripts is a share of a word: with dictionary
# words, those at the edges of a copy would depend on the text around it. The shares make a run of 13
# words about as long as the translation of 13 English words.
WHOLE = 100
SHARES = {r"\p{Han}": 60, f"[{KANA}]": 35, r"[\p{Thai}\p{Lao}]": 22, r"[\p{Khmer}\p{Myanmar}\p{Tibetan}]": 18}
VIETNAMESE = re.compile("[\u01a0\u01a1\u01af\u01b0\u0110\u0111\u1ea0-\u1ef9]")
SYLLABLE, SYLLABLE_SHARE = len(SHARES) + 1, 50  # what `share_of` says of one, and what it counts
_SPACELESS = regex.compile(SCRIPTS)
_SHARED = [regex.compile(script) for script in SHARES]
_LETTER = re.compile(r"\w")
_RUN = re.compile(r"\S+")
OTHER_MARK, OPENING, SPACED, SPACELESS = range(4)  # kinds of pieces; only the last two are words


def has_spaceless(texts: pa.Array) -> npt.NDArray[np.bool_]:
    flags = pc.fill_null(pc.match_substring_regex(texts, SCRIPTS), False)
    return np.asarray(flags.to_numpy(zero_copy_only=False), np.bool_)


@lru_cache(65_536)
def is_spaceless(character: str) -> bool:
    return _SPACELESS.match(character) is not None


@lru_cache(65_536)
def share_of(word: str) -> int:
    """The number in SHARES (from 1) of a word of one character; 0 for a whole word.

    SYLLABLE for a Vietnamese one.
    """
    if word.isascii():
        return 0
    if len(word) != 1:
        return SYLLABLE if VIETNAMESE.search(word) else 0
    return next((n for n, script in enumerate(_SHARED, 1) if script.match(word)), 0)


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word, in characters; together they cover all but white space.

    Punctuation belongs to the word that it touches: an opening bracket or quote to the next one,
    any other mark to the one before.
    """
    runs = [match.span() for match in _RUN.finditer(text)]
    if text.isascii() or not _SPACELESS.search(text):
        return runs
    return [span for start, end in runs for span in _split_run(text[start:end], start)]


@lru_cache(65_536)
def _piece_kind(piece: str) -> int:
    if _LETTER.search(piece):
        return SPACELESS if _SPACELESS.match(piece) else SPACED
    return OPENING if unicodedata.category(piece[0]) in ("Ps", "Pi") else OTHER_MARK


def _split_run(run: str, start: int) -> list[tuple[int, int]]:
    if run.isascii() or not _SPACELESS.search(run):
        return [(start, start + len(run))]
    borders, position = [0], 0
    # The kind of the last word, and the position of opening brackets before the next one.
    last, opening = OTHER_MARK, -1
    for piece in WordBreaker(run, "en"):
        kind = _piece_kind(piece)
        if kind >= SPACED:
            # Pieces of scripts with spaces stay together: "foo.bar", "3.5", "don't".
            if last >= SPACED and (kind == SPACELESS or last == SPACELESS):
                borders.append(position if opening < 0 else opening)
            last, opening = kind, -1
        elif kind == OTHER_MARK:
            opening = -1
        elif opening < 0:
            opening = position
        position += len(piece)
    ends = [*borders[1:], len(run)]
    return [(start + a, start + b) for a, b in zip(borders, ends, strict=True)]
