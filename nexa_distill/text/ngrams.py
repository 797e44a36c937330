"""Hash texts into words and word n-grams, for near-duplicates and contamination.

A word (`text/words.py`) is compared in the forms of `text/word_forms.py`; a word of only
punctuation is left out. An n-gram is the fewest consecutive words whose shares sum to at least n.
A text with fewer than n words is one n-gram. Hashes are the same on every machine and in every run.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rensa import RMinHash

from nexa_distill.text.hashing import Hashes, Indexes, mix_bits
from nexa_distill.text.word_forms import ENDS_SENTENCE, LONG, SMALL, SYMBOL, Forms, normalize_text, word_forms
from nexa_distill.text.words import SCRIPTS, SHARES, SYLLABLE_SHARE, WHOLE, is_spaceless

Flags = npt.NDArray[np.bool_]

# A word has 64 bits: 32 of its form without case, 28 of the form with meaningful case, one if it is
# a symbol (a digit, a symbol, meaningful case) and three for its share. A character of a script
# without spaces is a share of a word, so that a copy has the same n-grams in any surrounding text.
_SHARES = np.array([WHOLE, *SHARES.values(), SYLLABLE_SHARE], np.int64)
_SHARE, _SYMBOL = np.uint64(0b111), np.uint64(SYMBOL)
_FOLDED, _KEPT = np.uint64(0xFFFFFFFF << 32), np.uint64(0xFFFFFFF0)
_FACTOR = 0x9E3779B97F4A7C15
_FEW = 3  # longer words; with fewer it is unknown whether a text is written in capitals
_known_powers = [(np.ones(1, np.uint64), np.ones(1, np.uint64))]


def normalize_document(text: str) -> str:
    """The form that identifies a document: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class HashedWords:
    """The words of some texts: text i has `words[starts[i]:starts[i + 1]]`, at least one."""

    words: Hashes
    starts: Indexes

    def __len__(self) -> int:
        return len(self.starts) - 1

    def without_case(self) -> "HashedWords":
        return HashedWords(self.words & (_FOLDED | _SHARE), self.starts)

    def symbol_hashes(self) -> Hashes:
        """Per text, a hash of its words that are symbols, independent of their order."""
        hashes = np.where(self.words & _SYMBOL, mix_bits(self.words), np.uint64(0))
        # A sum of hashes, in which the order has no part.
        return np.add.reduceat(hashes, self.starts[:-1]) if len(self) else hashes


def words_of(text: str) -> list[str]:
    """The words of one text as they are hashed, without case; at least one."""
    (split,) = _split_words(pa.array([text], pa.string())).to_pylist()
    return [form for word in split if (form := word_forms(word).folded)] or [""]


def join_words(words: list[str]) -> str:
    """Join words to readable text: with spaces, except in scripts that have none."""
    return "".join(
        word if number == 0 or (_is_character(word) and _is_character(words[number - 1])) else f" {word}"
        for number, word in enumerate(words)
    )


def _is_character(word: str) -> bool:
    return len(word) == 1 and is_spaceless(word)


def _split_words(texts: pa.Array) -> pa.Array:
    """The words of each text with their punctuation; in scripts without spaces each character."""
    plain = pc.string_is_ascii(texts)
    if not pc.all(plain).as_py():
        normal = [
            text if simple else normalize_text(text)
            for text, simple in zip(texts.to_pylist(), plain.to_pylist(), strict=True)
        ]
        texts = pc.replace_substring_regex(pa.array(normal, pa.string()), f"({SCRIPTS})", r" \1 ")
    # White space at an edge yields an empty word; `word_forms` drops it.
    return pc.ascii_split_whitespace(texts)


def hash_words(texts: pa.Array) -> HashedWords:
    """The words of each text (null counts as empty)."""
    split = _split_words(texts.fill_null(""))
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(split).to_numpy())])[:-1]
    encoded = split.flatten().dictionary_encode()
    codes = encoded.indices.to_numpy()
    raw = encoded.dictionary.to_pylist()
    forms = list(map(word_forms, raw))
    bits = np.fromiter((form[3] for form in forms), np.uint64, len(forms))
    # Forms are computed once per distinct word, then looked up for every occurrence.
    within, beginning, capitals = _number_forms(forms, bits)
    words = within[codes]
    cased = np.flatnonzero((within != capitals)[codes])  # only there the position matters
    if len(cased):
        begins = cased[_begins_sentence(bits, codes, first, cased)]
        words[begins] = beginning[codes[begins]]
        in_capitals = cased[_in_capitals(bits, codes, first)[cased]]
        words[in_capitals] = capitals[codes[in_capitals]]
    is_word = np.fromiter((form[0] != "" for form in forms), np.bool_, len(forms))
    if is_word.all() and (np.diff(first, append=len(codes)) > 0).all():
        return HashedWords(words, np.append(first, len(codes)))
    real = is_word[codes]
    counts = np.add.reduceat(real.astype(np.int64), first) if len(first) else first
    real[first[counts == 0]] = True  # a text of only punctuation is one empty word
    return HashedWords(words[real], np.concatenate([[0], np.cumsum(np.maximum(counts, 1))]))


def _number_forms(forms: list[Forms], bits: Hashes) -> tuple[Hashes, Hashes, Hashes]:
    """The numbers of words within a sentence, at its beginning, and in a text in capitals."""
    folded = _hash_strings([form.folded for form in forms])
    common = (folded & _FOLDED) | (bits & (_SHARE | _SYMBOL))
    same = common | (folded & _KEPT)
    cased = [i for i, form in enumerate(forms) if form[0] != form[1]]
    if not cased:
        return same, same, same
    within, beginning = same.copy(), same.copy()
    kept = _hash_strings([forms[i].kept for i in cased]) & _KEPT
    first = _hash_strings([forms[i].first for i in cased]) & _KEPT
    within[cased] = common[cased] | kept | _SYMBOL
    is_kept = np.array([forms[i][2] != forms[i][0] for i in cased], np.bool_)
    beginning[cased] = common[cased] | first | np.where(is_kept, _SYMBOL, np.uint64(0))
    return within, beginning, np.where(bits & _SYMBOL, within, same)


def _hash_strings(texts: list[str]) -> Hashes:
    return mix_bits(np.array(RMinHash.hash_token_sets([texts])[0], np.uint64))


def _begins_sentence(bits: Hashes, codes: Indexes, first: Indexes, at: Indexes) -> Flags:
    ends = (bits & np.uint64(ENDS_SENTENCE)) != 0
    is_first = np.zeros(len(codes), np.bool_)
    is_first[first] = True
    # Before the very first word this reads the last one; it is the first of a text in any case.
    begins: Flags = is_first[at] | ends[codes[at - 1]]
    return begins


def _in_capitals(bits: Hashes, codes: Indexes, first: Indexes) -> Flags:
    """Per word, whether its text capitalizes every longer word, so that case has no meaning."""
    small, long = ((bits & np.uint64(flag)) != 0 for flag in (SMALL, LONG))
    sizes = np.diff(first, append=len(codes))
    capitals: Flags = np.repeat(~np.logical_or.reduceat(small[codes], first), sizes)
    if capitals.any():
        many = np.add.reduceat(long[codes].astype(np.int64), first)
        capitals &= np.repeat(many >= _FEW, sizes)
    return capitals


def hash_ngrams(texts: HashedWords, n: int) -> tuple[Hashes, Indexes, Indexes]:
    """(n-grams of all texts in order, where each text's begin, number of words of each n-gram).

    n-gram k of a text starts at its k-th word; each text has at least one.
    """
    count, first, sizes = len(texts.words), texts.starts[:-1], np.diff(texts.starts)
    powers, inverses = _powers_and_inverses(count)
    # An n-gram is a polynomial in its words modulo 2^64, so differences of prefix sums give all.
    sums = np.zeros(count + 1, np.uint64)
    np.cumsum(texts.words * powers, out=sums[1:])
    share = texts.words & _SHARE
    if share.any():
        ends = _ngram_ends(share, n)
        inside = ends <= np.repeat(texts.starts[1:], sizes)
        short = ~inside[first]  # texts of fewer than n words, all of each
        inside[first[short]], ends[first[short]] = True, texts.starts[1:][short]
        at = np.flatnonzero(inside)
        # Times the inverse power: equal words have equal hashes at any place.
        hashes, lengths = (sums[ends[at]] - sums[at]) * inverses[at], ends[at] - at
        counts = np.add.reduceat(inside.astype(np.int64), first)
    else:
        # No shares: every n-gram has n words, except for texts of fewer words.
        inside, short = np.ones(count, np.bool_), sizes < n
        # The last n - 1 words of a text begin no n-gram.
        for k in range(1, n):
            inside[texts.starts[1:][sizes > k] - k] = False
        every = max(count - n + 1, 0)
        hashes = np.zeros(count, np.uint64)
        hashes[:every] = (sums[n:] - sums[:every]) * inverses[:every]
        whole = first[short]
        inside[whole], hashes[whole] = (True, (sums[whole + sizes[short]] - sums[whole]) * inverses[whole])
        hashes, counts = hashes[inside], np.maximum(sizes - n + 1, 1)
        lengths = np.repeat(np.minimum(sizes, n), counts)
    return mix_bits(hashes), np.concatenate([[0], np.cumsum(counts)]), lengths


def _ngram_ends(share: Hashes, n: int) -> Indexes:
    """Per word, the position after the n-gram that begins with it; it may be in another text."""
    parts = np.concatenate([[0], np.cumsum(_SHARES[share.astype(np.int64)])])
    ends: Indexes = np.searchsorted(parts, parts[:-1] + n * WHOLE)
    return ends


def _powers_and_inverses(count: int) -> tuple[Hashes, Hashes]:
    """The powers 0 to count - 1 of an odd number modulo 2^64, and those of its inverse."""
    if len(_known_powers[0][0]) < count:
        bases = (_FACTOR, pow(_FACTOR, -1, 2**64))
        # More than needed, so that larger batches seldom compute them again.
        steps = (np.full(2 ** count.bit_length(), base, np.uint64) for base in bases)
        first = np.ones(1, np.uint64)
        forward, back = (np.cumprod(np.concatenate([first, step])) for step in steps)
        _known_powers[0] = forward, back
    forward, back = _known_powers[0]
    return forward[:count], back[:count]


def fingerprint_texts(texts: HashedWords) -> Hashes:
    """Per text, a hash of its words and their order."""
    position = np.arange(len(texts.words)) - np.repeat(texts.starts[:-1], np.diff(texts.starts))
    placed = mix_bits(texts.words) + position.astype(np.uint64)
    return np.add.reduceat(mix_bits(placed), texts.starts[:-1]) if len(texts) else mix_bits(placed)


def concatenate_ranges(starts: Indexes, counts: Indexes) -> Indexes:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
    offsets = np.cumsum(counts) - counts
    positions: Indexes = np.repeat(starts - offsets, counts) + np.arange(counts.sum())
    return positions
