"""Texts as words and word n-grams, in numbers: what near-duplicates and contamination compare.

A word (`text/words.py`) is compared in the forms of `text/word_forms.py`; one of nothing but
punctuation is left out. A character of a script that is written without spaces is compared for
itself and counts as a share of a word, so that a copy has the same n-grams wherever it stands: an
n-gram is the fewest words from one on whose shares are together at least n.

A word is a number of 64 bits: 32 of its form without case, 28 of the form with the case that says
something, one for a symbol (a digit, a symbol, such a case) and three for its share. It and an
n-gram (64 bits too) are the same on every machine and in every run. A text with fewer than n words
is one n-gram, all of it.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rensa import RMinHash

from nexa_distill.digests import Hashes, Indexes, mixed
from nexa_distill.text.word_forms import Forms, normalized, word_forms
from nexa_distill.text.words import SCRIPTS, SHARES, WHOLE, share_of

Flags = npt.NDArray[np.bool_]

_SHARES = np.array([WHOLE, *SHARES.values()], np.int64)
_SHARE, _SYMBOL = np.uint64(0b111), np.uint64(0b1000)
_FOLDED, _KEPT = np.uint64(0xFFFFFFFF << 32), np.uint64(0xFFFFFFF0)
_FACTOR = 0x9E3779B97F4A7C15
_ENDS_SENTENCE = (".", "!", "?", ":", "\u2026", "\u0964")  # and the danda of Hindi
_AROUND = "\"'([\u201c\u2018\u00ab\u00bf\u00a1"
_CLOSING = "\"')]\u201d\u2019\u00bb"
_LONG = 4  # letters of the words that show whether a text is written in capitals
_FEW = 3  # of those words show nothing
_known_powers = [(np.ones(1, np.uint64), np.ones(1, np.uint64))]


def fold(text: str) -> str:
    """The form in which two documents count as the same: NFKC, case folded, spaces collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class Tokens:
    """The words of some texts: text i has `words[starts[i]:starts[i + 1]]`, at least one."""

    words: Hashes
    starts: Indexes

    def __len__(self) -> int:
        return len(self.starts) - 1

    def folded(self) -> "Tokens":
        """The same words without any case."""
        return Tokens(self.words & (_FOLDED | _SHARE), self.starts)

    def symbols(self) -> Hashes:
        """Per text, a hash of its words that are symbols, whatever their order."""
        found = np.where(self.words & _SYMBOL, mixed(self.words), np.uint64(0))
        return np.add.reduceat(found, self.starts[:-1]) if len(self) else found


def words_of(text: str) -> list[str]:
    """The words of one text as `tokens` counts them, without case; at least one."""
    (split,) = _split(pa.array([text], pa.string())).to_pylist()
    return [form for word in split if (form := word_forms(word).folded)] or [""]


def joined(words: list[str]) -> str:
    """Words to read: with spaces, but for scripts that have none."""
    return "".join(
        word if number == 0 or (share_of(word) and share_of(words[number - 1])) else f" {word}"
        for number, word in enumerate(words)
    )


def _split(texts: pa.Array) -> pa.Array:
    """The words of each text with their punctuation; characters of some scripts are words."""
    plain = pc.string_is_ascii(texts)
    if not pc.all(plain).as_py():
        found = [
            text if simple else normalized(text)
            for text, simple in zip(texts.to_pylist(), plain.to_pylist(), strict=True)
        ]
        texts = pc.replace_substring_regex(pa.array(found, pa.string()), f"({SCRIPTS})", r" \1 ")
    return pc.ascii_split_whitespace(pc.ascii_trim_whitespace(texts))


def tokens(texts: pa.Array) -> Tokens:
    """The words of each text (null counts as empty)."""
    split = _split(texts.fill_null(""))
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(split).to_numpy())])[:-1]
    found = split.flatten().dictionary_encode()
    codes = found.indices.to_numpy()
    raw = found.dictionary.to_pylist()
    forms = [word_forms(word) for word in raw]
    within, beginning, capitals = _numbers(raw, forms)
    words = within[codes]
    if not np.array_equal(within, capitals):
        words = np.where(_begins_sentence(raw, codes, first), beginning[codes], words)
        words = np.where(_has_capitals(forms, raw, codes, first), capitals[codes], words)
    real = np.array([form.folded != "" for form in forms], np.bool_)[codes]
    counts = np.add.reduceat(real.astype(np.int64), first) if len(first) else first
    real[first[counts == 0]] = True  # a text of nothing but punctuation is one empty word
    return Tokens(words[real], np.concatenate([[0], np.cumsum(np.maximum(counts, 1))]))


def _numbers(raw: list[str], forms: list[Forms]) -> tuple[Hashes, Hashes, Hashes]:
    """The numbers of words within a sentence, at its beginning, and in a text in capitals."""
    texts = [text for form in forms for text in form[:3]]
    hashes = mixed(np.array(RMinHash.hash_token_sets([texts])[0], np.uint64)).reshape(-1, 3)
    folded, kept, first = hashes.T
    symbol = np.array([form.has_symbol for form in forms], np.bool_)
    share = np.array([share_of(word) for word in raw], np.uint64)

    def number(with_case: Hashes) -> Hashes:
        is_symbol = np.where(symbol | (with_case != folded), _SYMBOL, np.uint64(0))
        return (folded & _FOLDED) | (with_case & _KEPT) | is_symbol | share

    return number(kept), number(first), number(np.where(symbol, kept, folded))


def _begins_sentence(raw: list[str], codes: Indexes, first: Indexes) -> Flags:
    ends = np.array([word.rstrip(_CLOSING).endswith(_ENDS_SENTENCE) for word in raw], np.bool_)
    begins = np.concatenate([[True], ends[codes[:-1]]])
    begins[first] = True
    return begins


def _has_capitals(forms: list[Forms], raw: list[str], codes: Indexes, first: Indexes) -> Flags:
    """Per word, whether its text has a capital on every longer word: there case says nothing."""
    plain = [form.folded for form in forms]
    long = np.array([len(word) >= _LONG and word.isalpha() for word in plain], np.bool_)
    small = long & np.array([word.lstrip(_AROUND)[:1].islower() for word in raw], np.bool_)
    many, none = (np.add.reduceat(which[codes].astype(np.int64), first) for which in (long, small))
    found: Flags = np.repeat((many >= _FEW) & (none == 0), np.diff(np.append(first, len(codes))))
    return found


def ngrams(texts: Tokens, n: int) -> tuple[Hashes, Indexes, Indexes]:
    """The n-grams of all texts, in order; where each text's begin; how many words each has.

    n-gram k of a text starts at its k-th word, and each text has at least one. An n-gram is a
    polynomial in its words, modulo 2^64.
    """
    count, first = len(texts.words), texts.starts[:-1]
    sizes = np.diff(texts.starts)
    ends = _ngram_ends(texts.words, n)
    inside = ends <= np.repeat(texts.starts[1:], sizes)
    short = ~inside[first]  # texts of fewer than n words, all of each
    inside[first[short]], ends[first[short]] = True, texts.starts[1:][short]
    at = np.flatnonzero(inside)
    powers, inverses = _powers(count)
    sums = np.zeros(count + 1, np.uint64)
    np.cumsum((texts.words | np.uint64(1) << np.uint64(63)) * powers, out=sums[1:])
    found = (sums[ends[at]] - sums[at]) * inverses[at]
    counts = np.add.reduceat(inside.astype(np.int64), first) if len(texts) else first
    return mixed(found), np.concatenate([[0], np.cumsum(counts)]), ends[at] - at


def _ngram_ends(words: Hashes, n: int) -> Indexes:
    """Per word, the position after the n-gram that begins with it; it may be in another text."""
    share = words & _SHARE
    if not share.any():
        return np.arange(n, n + len(words))
    parts = np.concatenate([[0], np.cumsum(_SHARES[share.astype(np.int64)])])
    found: Indexes = np.searchsorted(parts, parts[:-1] + n * WHOLE)
    return found


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The powers 0 to count - 1 of an odd number modulo 2^64, and those of its inverse."""
    if len(_known_powers[0][0]) < count:
        bases = (_FACTOR, pow(_FACTOR, -1, 2**64))
        steps = (np.full(2 ** count.bit_length(), base, np.uint64) for base in bases)
        one = np.ones(1, np.uint64)
        forward, back = (np.cumprod(np.concatenate([one, step])) for step in steps)
        _known_powers[0] = forward, back
    forward, back = _known_powers[0]
    return forward[:count], back[:count]


def prints(texts: Tokens) -> Hashes:
    """Per text, a hash of its words and their order."""
    position = np.arange(len(texts.words)) - np.repeat(texts.starts[:-1], np.diff(texts.starts))
    placed = mixed(texts.words) + position.astype(np.uint64)
    return np.add.reduceat(mixed(placed), texts.starts[:-1]) if len(texts) else mixed(placed)


def ranges(starts: Indexes, counts: Indexes) -> Indexes:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
    offsets = np.cumsum(counts) - counts
    found: Indexes = np.repeat(starts - offsets, counts) + np.arange(counts.sum())
    return found
