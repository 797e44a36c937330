"""What a word is, once: for chunks, lengths, repetition, near-duplicates and contamination.

A word is what stands between white space, with the punctuation that touches it. That is right for
every script that writes spaces, whatever its combining marks are (Hindi, Arabic, Tamil, Korean,
Vietnamese). Chinese, Japanese, Thai, Lao, Khmer and Burmese write none; there a word is what ICU's
dictionaries say (Unicode Standard Annex 29, "Word Boundaries"), and in Tibetan a syllable.

ICU comes with `icu4py`: MIT, typed, released in October 2026 with ICU 78, wheels of 16 MB for Linux
(x86_64, aarch64) and macOS (x86_64, arm64) and Python 3.11 to 3.15, about 2.6 million characters of
Chinese per second and core. `pyicu-wheels` has no wheels for macOS and is half a year older,
`uniseg` has no dictionaries. Texts without one of these scripts never reach it.

Where two texts are *compared*, a dictionary is the wrong ruler: the words at the edges of a copy
depend on what stands around it. There each character of these scripts counts for itself, as a share
of a word (`SHARES`), so that a copy has the same n-grams wherever it stands; see `ngrams.py`.
Vietnamese writes a space between syllables: those with a letter of its own count half a word there.

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
from icu4py.breakers import WordBreaker

VERSION = 3  # of the words; part of the settings of every stage that counts or compares them
KANA = "\\p{Hiragana}\\p{Katakana}\u30fc"  # its mark of a long vowel belongs to no script
SCRIPTS = rf"[\p{{Han}}{KANA}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}\p{{Tibetan}}]"
# Where texts are compared: parts of a word per character, so that a run of 13 words is about as
# long as the translation of 13 English words. Tibetan is a syllable a word, as it is counted.
WHOLE = 100
SHARES = {
    r"\p{Han}": 60,
    f"[{KANA}]": 35,
    r"[\p{Thai}\p{Lao}]": 22,
    r"[\p{Khmer}\p{Myanmar}\p{Tibetan}]": 18,
}
VIETNAMESE = re.compile("[\u01a0\u01a1\u01af\u01b0\u0110\u0111\u1ea0-\u1ef9]")
SYLLABLE, SYLLABLE_SHARE = len(SHARES) + 1, 50  # what `share_of` says of one, and what it counts
_SPACELESS = regex.compile(SCRIPTS)
_SHARED = [regex.compile(script) for script in SHARES]
_LETTER = re.compile(r"\w")
_RUN = re.compile(r"\S+")
OTHER_MARK, OPENING, SPACED, SPACELESS = range(4)  # kinds of pieces; the last two are words


def has_spaceless(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """Per text, whether it holds a character of a script that is written without spaces."""
    found = pc.fill_null(pc.match_substring_regex(texts, SCRIPTS), False)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)


@lru_cache(65_536)
def is_spaceless(character: str) -> bool:
    """Whether this character is of a script that is written without spaces."""
    return _SPACELESS.match(character) is not None


@lru_cache(65_536)
def share_of(word: str) -> int:
    """Which of SHARES a word of one character has, from 1 on; 0: it is a whole word.

    SYLLABLE: of Vietnamese.
    """
    if word.isascii():
        return 0
    if len(word) != 1:
        return SYLLABLE if VIETNAMESE.search(word) else 0
    return next((n for n, script in enumerate(_SHARED, 1) if script.match(word)), 0)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends, in characters; they cover all but white space.

    Punctuation belongs to the word that it touches: an opening bracket or quote to the next one,
    any other mark to the one before.
    """
    runs = [match.span() for match in _RUN.finditer(text)]
    if text.isascii() or not _SPACELESS.search(text):
        return runs
    return [span for start, end in runs for span in _cut(text[start:end], start)]


@lru_cache(65_536)
def _kind(piece: str) -> int:
    """Of a piece between two of the library's word boundaries."""
    if _LETTER.search(piece):
        return SPACELESS if _SPACELESS.match(piece) else SPACED
    return OPENING if unicodedata.category(piece[0]) in ("Ps", "Pi") else OTHER_MARK


def _cut(run: str, start: int) -> list[tuple[int, int]]:
    """The words of a run without white space that begins at `start`."""
    if run.isascii() or not _SPACELESS.search(run):
        return [(start, start + len(run))]
    borders, position = [0], 0
    last, opening = OTHER_MARK, -1  # the kind of the last word; where brackets before a word open
    for piece in WordBreaker(run, "en"):
        kind = _kind(piece)
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
