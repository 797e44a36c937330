"""Texts as words and word n-grams, in numbers: what near-duplicates and contamination compare.

A text is folded (`fold`), and its words are what stands between spaces, without sentence
punctuation at their edges (`3 + 4` and `3 - 4` stay different; `city?` and `city ?` are `city`). A
character of a script that is written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) is a
word of its own.
A word is a 32-bit hash, an n-gram a 64-bit one; both are the same on every machine and in every
run. A text with fewer than n words is one n-gram, all of it.
"""

import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rensa import RMinHash

from nexa_distill.digests import Hashes, Indexes, mixed

Words = npt.NDArray[np.uint32]

EDGES = (
    ".,;:!?\"'()[]{}\u00ab\u00bb\u2018\u2019\u201c\u201d\u2026"  # and quotes, ellipsis
    "\u3001\u3002\u300c\u300d"  # their CJK kin; full-width forms fold to the above
)
_SPACELESS = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003134f])"
)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def fold(text: str) -> str:
    """The form in which two texts count as the same: NFKC, case folded, spaces collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words_of(text: str) -> list[str]:
    """The words of one text, as they are compared; an empty text is one empty word."""
    stripped = (word.strip(EDGES) for word in _SPACELESS.sub(r" \1 ", fold(text)).split())
    return [word for word in stripped if word] or [""]


@dataclass(frozen=True)
class Tokens:
    """The words of some texts: text i has `words[starts[i]:starts[i + 1]]`, at least one."""

    words: Words
    starts: Indexes

    def __len__(self) -> int:
        return len(self.starts) - 1


def tokens(texts: pa.Array) -> Tokens:
    """The words of each text (null counts as empty), as `words_of` has them."""
    texts = texts.fill_null("")
    plain = pc.string_is_ascii(texts)
    if not pc.all(plain).as_py():
        folded = [
            text if simple else _SPACELESS.sub(r" \1 ", fold(text))
            for text, simple in zip(texts.to_pylist(), plain.to_pylist(), strict=True)
        ]
        texts = pa.array(folded, pa.string())
    split = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(pc.ascii_lower(texts)))
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(split).to_numpy())])[:-1]
    found = split.flatten().dictionary_encode()
    codes = found.indices.to_numpy()
    known = [word.strip(EDGES) for word in found.dictionary.to_pylist()]
    hashes = np.array(RMinHash.hash_token_sets([known])[0], np.uint64)
    words = (mixed(hashes) >> np.uint64(32)).astype(np.uint32)[codes]
    real = np.array([bool(word) for word in known], np.bool_)[codes]
    counts = np.add.reduceat(real.astype(np.int64), first) if len(first) else first
    real[first[counts == 0]] = True  # a text of nothing but punctuation is one empty word
    return Tokens(words[real], np.concatenate([[0], np.cumsum(np.maximum(counts, 1))]))


def ngrams(texts: Tokens, n: int) -> tuple[Hashes, Indexes]:
    """The n-grams of all texts, in order, and where each text's begin; at least one per text.

    n-gram k of a text starts at its k-th word. An n-gram is a polynomial in its words, modulo 2^64.
    """
    lengths = np.diff(texts.starts)
    first, end = texts.starts[:-1], texts.starts[1:]
    words = texts.words.astype(np.uint64) + np.uint64(1)
    found, begins = words.copy(), np.ones(len(words), np.bool_)
    whole: list[tuple[Indexes, Hashes]] = []  # texts of fewer than n words, all of each
    with np.errstate(over="ignore"):
        for k in range(1, n):
            short = first[lengths == k]
            whole.append((short, found[short] ^ np.uint64(k)))
            found *= _FACTOR
            found[: max(len(words) - k, 0)] += words[k:]
            begins[end[lengths >= k] - k] = False
    for short, values in whole:
        begins[short], found[short] = True, values
    counts = np.maximum(lengths - n + 1, 1)
    return mixed(found[begins]), np.concatenate([[0], np.cumsum(counts)])


def prints(texts: Tokens) -> Hashes:
    """Per text, a hash of its words and their order."""
    position = np.arange(len(texts.words)) - np.repeat(texts.starts[:-1], np.diff(texts.starts))
    placed = texts.words.astype(np.uint64) | (position.astype(np.uint64) << np.uint64(32))
    return np.add.reduceat(mixed(placed), texts.starts[:-1]) if len(texts) else mixed(placed)


def ranges(starts: Indexes, counts: Indexes) -> Indexes:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
    offsets = np.cumsum(counts) - counts
    found: Indexes = np.repeat(starts - offsets, counts) + np.arange(counts.sum())
    return found
