"""Tokens without a tokenizer, and how much of an answer is said again; for whole batches.

A token is a word (a run of letters, digits, `_` and non-ASCII characters) or one ASCII punctuation
mark; of English prose a subword tokenizer makes about as many. Every character of three or four
UTF-8 bytes is a token too, so that scripts written without spaces count per character.
Repetition looks at windows: the 24 bytes from the start of a run without spaces (or of such a
character); windows that leave their answer are not counted.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

LAST_CONTROL, LONG_CHARACTER = 32, 0xE0  # space and below; first byte of three or four
SPACE, WORD, MARK = 0, 1, 2
KINDS = np.array(
    [
        WORD if byte >= 0x80 or chr(byte).isalnum() or byte == ord("_")
        else MARK if LAST_CONTROL < byte < 127
        else SPACE
        for byte in range(256)
    ],
    np.uint8,
)  # fmt: skip
WINDOW_BYTES = 24
BLOCK_ROWS = 128  # answers whose windows are compared at a time: they fit the processor's cache
SLOT_BITS = 10  # of the table, per answer, that finds the few windows worth sorting
KEY_BITS = np.uint64(48)  # of a window's hash, beside the row in a key of 64
FACTORS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))


class Tokens:
    """The tokens of a batch of n texts, and where their windows begin.

    `data`: all bytes; `ends`: n + 1 byte positions, text i is `data[ends[i]:ends[i + 1]]`;
    `counts`: n numbers of tokens; `starts`: byte positions of windows; `per_text`: n counts of
    those.
    """

    def __init__(self, texts: pa.StringArray) -> None:
        """`texts` has no nulls and is not a slice."""
        offsets = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1)
        self.ends = offsets.astype(np.int64)
        self.data = np.frombuffer(texts.buffers()[2] or b"", np.uint8, int(offsets[-1]))
        first = self.ends[:-1][self.ends[:-1] < len(self.data)]
        self.starts = np.flatnonzero(_begins(self.data, self.data > LAST_CONTROL, first))
        self.per_text = np.diff(np.searchsorted(self.starts, self.ends))
        kind = KINDS[self.data]
        tokens = _begins(self.data, kind == WORD, first) | (kind == MARK)
        self.counts = np.diff(np.searchsorted(np.flatnonzero(tokens), self.ends))


def _begins(
    data: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_], first: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Starts of runs of `inside` bytes (a text's first byte starts one), and of long characters."""
    begins = data >= LONG_CHARACTER
    begins[1:] |= inside[1:] > inside[:-1]
    begins[first] |= inside[first]
    return begins


def repetition(tokens: Tokens) -> npt.NDArray[np.float64]:
    """Share of each text's windows that occurred before in it; 0 for a text without windows.

    Two windows are taken for equal when 48 bits of a multiplicative hash are.
    """
    count = len(tokens.per_text)
    first = np.searchsorted(tokens.starts, tokens.ends)
    shares = [np.zeros(0)]
    for low in range(0, count, BLOCK_ROWS):
        ends = tokens.ends[low + 1 : low + 1 + BLOCK_ROWS]
        starts = tokens.starts[first[low] : first[low + len(ends)]]
        per_text = tokens.per_text[low : low + len(ends)]
        row = np.repeat(np.arange(len(ends), dtype=np.int32), per_text)
        whole = starts + WINDOW_BYTES <= np.repeat(ends, per_text)
        row = row[whole]
        repeated = _repeats(tokens.data, starts[whole], row, len(ends))
        shares.append(repeated / np.maximum(np.bincount(row, minlength=len(ends)), 1))
    return np.concatenate(shares)


def _repeats(
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    row: npt.NDArray[np.int32],
    rows: int,
) -> npt.NDArray[np.int64]:
    """How many windows of each row occurred before in it: sort those that may have, and compare."""
    if not len(starts):
        return np.zeros(rows, np.int64)
    words = np.ndarray((len(data) - 7,), np.uint64, buffer=data, strides=(1,))
    mixed = words[starts]
    mixed *= FACTORS[0]
    maybe = _share_a_slot(mixed, row, rows)
    mixed, starts = mixed[maybe], starts[maybe]
    for offset, factor in zip((8, 16), FACTORS[1:], strict=True):
        mixed += words[starts + offset] * factor
    key = (row[maybe].astype(np.uint64) << KEY_BITS) | (mixed >> (np.uint64(64) - KEY_BITS))
    key.sort()
    again = key[1:][key[1:] == key[:-1]]
    return np.bincount((again >> KEY_BITS).astype(np.int64), minlength=rows)


def _share_a_slot(
    mixed: npt.NDArray[np.uint64], row: npt.NDArray[np.int32], rows: int
) -> npt.NDArray[np.int64]:
    """Which windows fall into the same slot of their row's table as another one."""
    slot = (mixed >> np.uint64(64 - SLOT_BITS)).astype(np.int32)
    slot += row << SLOT_BITS
    order = np.arange(len(mixed), dtype=np.int32)
    last = np.empty(rows << SLOT_BITS, np.int32)
    last[slot] = order
    shared = np.zeros(len(last), np.bool_)
    shared[slot[last[slot] != order]] = True
    return np.flatnonzero(shared[slot])
