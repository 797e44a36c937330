"""Count tokens without a tokenizer, and measure how repetitive answers are, in batches.

A token is a word (a run of letters, digits and `_`; in scripts without spaces a word of
`text/words.py`) or one mark (punctuation or symbol). A subword tokenizer yields about as many for
English prose. Repetition compares windows of 24 characters that start at words, about four words.
"""

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.text.folding import decode_points
from nexa_distill.text.words import has_spaceless, is_spaceless, word_spans

Flags = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]

LAST_CONTROL = 32  # space and below
FIRST_OF_SEVERAL = 0xC0  # the first byte of a character of several; the others are below
SPACE, WORD, MARK = 0, 1, 2
# A non-ASCII character is one byte too: from 128 on in a word, from 192 on as a mark.
OTHER_WORD, OTHER_MARK, UNKNOWN = 128, 192, 255


def _kind_of_byte(byte: int) -> int:
    if byte >= OTHER_WORD:
        return MARK if byte >= OTHER_MARK else WORD
    if chr(byte).isalnum() or byte == ord("_"):
        return WORD
    return MARK if LAST_CONTROL < byte < 127 else SPACE


KINDS = bytes(map(_kind_of_byte, range(256)))
ZERO_WIDTH_SPACE = "\u200b"  # between words of Thai and Khmer
# Fewest characters of a word of a script without spaces, so that a window contains about as many
# words in every script.
SHORTEST = 5
WINDOW = 24  # characters
BLOCK_ROWS = 128  # texts at a time; they fit the processor's cache
KEY_BITS = np.uint64(48)  # of a window's hash, beside the row in a key of 64
FACTORS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
_codes = np.full(0x110000, UNKNOWN, np.uint8)  # of every character so far


class TokenMeasures(NamedTuple):
    """Of n texts."""

    counts: Indexes  # tokens
    words: Indexes  # words that could start a window
    shares: Numbers  # of the windows, those that occurred before in the text; 0 without windows


def measure_tokens(texts: pa.StringArray, is_ascii: Flags | None = None, *, with_shares: bool = True) -> TokenMeasures:
    """Measure texts without nulls; shares are 0 unless `with_shares`.

    Two windows are taken for equal when 48 bits of a multiplicative hash are.
    """
    counts, words = np.zeros((2, len(texts)), np.int64)
    shares = np.zeros(len(texts))
    for numbers, some, all_ascii in _alike(texts, is_ascii):
        for low in range(0, len(some), BLOCK_ROWS):
            block = CharacterBlock(some.slice(low, BLOCK_ROWS), is_ascii=all_ascii)
            rows = numbers[low : low + BLOCK_ROWS]
            counts[rows], words[rows] = block.counts, block.words
            if with_shares:
                shares[rows] = block.repeated_shares()
    return TokenMeasures(counts, words, shares)


def _alike(texts: pa.StringArray, is_ascii: Flags | None) -> Iterator[tuple[Indexes, pa.StringArray, bool]]:
    """The texts in three parts: ASCII, with spaces, without; each with its numbers."""
    if is_ascii is None:
        is_ascii = np.asarray(pc.string_is_ascii(texts).to_numpy(zero_copy_only=False), np.bool_)
    if is_ascii.all():
        yield np.arange(len(texts)), texts, True
        return
    yield np.flatnonzero(is_ascii), texts.filter(pa.array(is_ascii)), True
    other, rest = np.flatnonzero(~is_ascii), texts.filter(pa.array(~is_ascii))
    spaceless = has_spaceless(rest)
    yield other[~spaceless], rest.filter(pa.array(~spaceless)), False
    spaced = [_space_words(text) for text in rest.filter(pa.array(spaceless)).to_pylist()]
    yield other[spaceless], pa.array(spaced, pa.string()), False


class CharacterBlock:
    """Texts as one byte per character.

    `data`: all bytes; `ends`: n + 1 positions, text i is `data[ends[i]:ends[i + 1]]`; `starts`:
    positions of windows.
    """

    def __init__(self, texts: pa.StringArray, *, is_ascii: bool) -> None:
        _, positions, raw_bytes = texts.buffers()
        offsets = np.frombuffer(positions, np.int32)[texts.offset :][: len(texts) + 1].astype(np.int64)
        raw = np.frombuffer(raw_bytes or b"", np.uint8)[offsets[0] : offsets[-1]]
        self.data, self.ends = raw, offsets - offsets[0]
        if not is_ascii and len(multibyte := np.flatnonzero(raw >= FIRST_OF_SEVERAL)):
            # As signed bytes, continuation bytes are below -64, ASCII and lead bytes are not.
            data = raw[raw.view(np.int8) >= FIRST_OF_SEVERAL - 256]
            data[data >= FIRST_OF_SEVERAL] = _codes_of(decode_points(raw, multibyte))
            lengths = pc.utf8_length(texts).to_numpy()
            self.data, self.ends = data, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        first = self.ends[:-1][self.ends[:-1] < len(self.data)]
        self.starts = np.flatnonzero(_run_starts(self.data > LAST_CONTROL, first))
        self.words = np.diff(np.searchsorted(self.starts, self.ends))
        # A translated copy takes a third of the time of an indexed one.
        kind = np.frombuffer(self.data.tobytes().translate(KINDS), np.uint8)
        tokens = _run_starts(kind == WORD, first) | (kind == MARK)
        self.counts = _count_between(tokens, self.ends)

    def repeated_shares(self) -> Numbers:
        rows = len(self.words)
        row = np.repeat(np.arange(rows, dtype=np.uint64), self.words)
        data = np.concatenate([self.data, np.zeros(WINDOW, np.uint8)])  # a window may leave it
        # All windows as a view of the text; each that is taken is three numbers of 8 bytes.
        windows = np.ndarray((len(self.data) + 1,), f"V{WINDOW}", buffer=data, strides=(1,))
        eights = windows[self.starts].view(np.uint64).reshape(-1, WINDOW // 8)
        key = eights @ FACTORS
        key >>= np.uint64(64) - KEY_BITS
        # Windows that extend beyond their text do not count: each gets a unique key.
        outside = np.flatnonzero(self.starts + WINDOW > np.repeat(self.ends[1:], self.words))
        key[outside] = outside
        key |= row << KEY_BITS
        key.sort()  # equal windows of a row become neighbours
        again = key[1:][key[1:] == key[:-1]] >> KEY_BITS
        whole = self.words - np.bincount(row[outside].astype(np.int64), minlength=rows)
        repeated = np.bincount(again.astype(np.int64), minlength=rows)
        shares: Numbers = repeated / np.maximum(whole, 1)
        return shares


def _count_between(flags: Flags, ends: Indexes) -> Indexes:
    """How many flags are set from each position to the next; counts bits, 64 at a time."""
    packed = np.packbits(flags, bitorder="little")
    # Padded to whole words of 64 bits, and one more for the last position.
    words = np.append(packed, np.zeros(8 + -len(packed) % 8, np.uint8)).view("<u8")
    before = np.concatenate([[0], np.cumsum(np.bitwise_count(words), dtype=np.int64)])
    # Bits before an end: those of the whole words before it, and those below it in its own word.
    whole, below = ends >> 6, (np.uint64(1) << (ends & 63).astype(np.uint64)) - np.uint64(1)
    counts: Indexes = np.diff(before[whole] + np.bitwise_count(words[whole] & below))
    return counts


def _codes_of(points: npt.NDArray[np.int32]) -> Bytes:
    codes = _codes[points]
    if len(new := np.unique(points[codes == UNKNOWN])):
        _codes[new] = [_character_code(chr(point)) for point in new.tolist()]
        codes = _codes[points]
    return codes


def _space_words(text: str) -> str:
    words = [text[start:end] for start, end in word_spans(text)]
    return " ".join(
        word.rjust(SHORTEST, word[0]) if len(word) < SHORTEST and is_spaceless(word[0]) else word for word in words
    )


def _character_code(character: str) -> int:
    kind = unicodedata.category(character)
    if character.isspace() or character == ZERO_WIDTH_SPACE:
        return LAST_CONTROL
    # 63 codes for words and for marks, so that 255 stays UNKNOWN.
    hashed = (ord(character) ^ ord(character) >> 6 ^ ord(character) >> 12) % 63
    return (OTHER_MARK if kind[0] in "PS" else OTHER_WORD) + hashed


def _run_starts(inside: Flags, first: Indexes) -> Flags:
    begins = np.empty_like(inside)
    begins[:1] = inside[:1]
    np.greater(inside[1:], inside[:-1], out=begins[1:])
    # A run does not continue into the next text.
    begins[first] |= inside[first]
    return begins
