"""Fold texts for pattern matching: one spelling per character, lower case, positions kept.

`fold_texts` replaces every character on its own, by a table, so that each byte of the result has a
position in the source:

    apostrophes and quotation marks   ' and "            dashes and the minus sign   -
    decimal digits of any script      0 to 9             spaces                      space
    zero-width, soft hyphen, bidi     removed            accents, Arabic and Hebrew vowel signs,
    everything else                   NFKD, lower case   tatweel, nukta              removed

Source: Unicode Standard Annex 15 (NFKD); the removed marks are this project's choice.
"""

import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

APOSTROPHES = "\u2018\u2019\u201a\u201b\u2032\u2035\u02b9\u02bb\u02bc\u02bd\u00b4\u2039\u203a\uff07"
QUOTATION_MARKS = (
    "\u201c\u201d\u201e\u201f\u2033\u2036\u00ab\u00bb\u300c\u300d\u300e\u300f"
    "\u301d\u301e\u301f\uff02\ufe41\ufe42\ufe43\ufe44"
)
_REMOVED_RANGES = (
    (0x0300, 0x036F), (0x0591, 0x05BD), (0x0640, 0x0640), (0x064B, 0x0652), (0x0670, 0x0670),
    (0x093C, 0x093C), (0x09BC, 0x09BC), (0x1AB0, 0x1AFF), (0x20D0, 0x20FF), (0xFE00, 0xFE0F),
    (0xFE20, 0xFE2F),
)  # fmt: skip
REMOVED_MARKS = {chr(n) for first, last in _REMOVED_RANGES for n in range(first, last + 1)}
# Ideographs have nothing to fold, and NFKD would decompose Hangul syllables.
UNTOUCHED = ((0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xD800, 0xF8FF))
TABLE_END = 0x20000  # code points from here on are left as they are
FIRST_LEAD_BYTE = 0xC2  # of a character of two or more bytes; continuation bytes are below
MOST_BYTES = 4  # of one character in UTF-8
Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]


class FoldedTexts(NamedTuple):
    """n texts, lower-cased (ASCII letters only) and folded; no array is a slice."""

    lowered: pa.StringArray
    texts: pa.StringArray
    is_ascii: Flags
    folding: "_Folding"

    def find_source_position(self, row: int, position: int) -> int:
        """The byte position in the source text of byte `position` of the folded text `row`."""
        return position if self.is_ascii[row] else self.folding.find_source_position(row, position)


class _Folding(NamedTuple):
    """The m texts that are not ASCII: their rows, and the bytes missing from their folded buffer."""

    rows: Positions
    ends: Positions  # m + 1 byte positions in the folded buffer
    source_ends: Positions
    removed: Positions  # of the n-th removed byte: its position in the source buffer, less n

    def find_source_position(self, row: int, position: int) -> int:
        number = int(np.searchsorted(self.rows, row))
        place = int(self.ends[number]) + position
        # The n-th removed byte lies before every folded byte from (its position - n) on.
        before = np.searchsorted(self.removed, place, side="right")
        return place + int(before) - int(self.source_ends[number])


class _Tables(NamedTuple):
    """By code point below TABLE_END: whether it changes, to how many bytes, and to which."""

    changes: npt.NDArray[np.bool_]
    lengths: Bytes
    replacements: Bytes  # TABLE_END x MOST_BYTES


def fold_texts(texts: pa.StringArray) -> FoldedTexts:
    """Fold every text; `texts` has no nulls and is valid UTF-8. ASCII costs one scan."""
    low = pa.concat_arrays([pc.ascii_lower(texts)])  # copies, so that a slice has its own buffers
    is_ascii: Flags = np.asarray(pc.string_is_ascii(low).to_numpy(zero_copy_only=False), np.bool_)
    rows = np.flatnonzero(~is_ascii)
    rest, folding = _fold_non_ascii(low.take(pa.array(rows)), rows)
    texts = pc.replace_with_mask(low, pa.array(~is_ascii), rest) if len(rows) else low
    return FoldedTexts(low, texts, is_ascii, folding)


def _fold_non_ascii(low: pa.StringArray, rows: Positions) -> tuple[pa.StringArray, _Folding]:
    # Works on Arrow's buffers: n + 1 offsets, and the bytes of all texts one after the other.
    # An empty array has no buffers: then one offset of 0 (4 bytes), and no data.
    ends = np.frombuffer(low.buffers()[1] or bytes(4), np.int32, len(low) + 1).astype(np.int64)
    data = np.frombuffer(low.buffers()[2] or b"", np.uint8, int(ends[-1]))
    folded, shrunk = _replace_characters(data, np.flatnonzero(data >= FIRST_LEAD_BYTE))
    # Each end moves down by the number of bytes that were removed before it.
    new_ends = ends - np.searchsorted(shrunk, ends)
    array = pa.StringArray.from_buffers(len(low), pa.py_buffer(new_ends.astype(np.int32)), pa.py_buffer(folded))
    return array, _Folding(rows, new_ends, ends, shrunk - np.arange(len(shrunk)))


def fold_pattern(pattern: str) -> str:
    """Fold the non-ASCII characters of a regular expression; its syntax is ASCII and stays."""
    return "".join(char if char.isascii() else _fold_character(char) for char in pattern)


def _replace_characters(data: Bytes, starts: Positions) -> tuple[Bytes, Positions]:
    """The folded buffer, and the positions of the bytes that were removed."""
    # The lead byte of a character determines how many bytes it has.
    widths = 2 + (data[starts] >= 0xE0).astype(np.int64) + (data[starts] >= 0xF0)
    points = decode_points(data, starts)
    tables = _folding_tables()
    inside = points < TABLE_END
    changed = inside & tables.changes[np.where(inside, points, 0)]
    starts, widths, points = starts[changed], widths[changed], points[changed]
    lengths, out = tables.lengths[points], data.copy()
    shrunk = []
    # Write the k-th byte of every replacement, and note the k-th bytes that are left over.
    for k in range(MOST_BYTES):
        written = lengths > k
        out[starts[written] + k] = tables.replacements[points[written], k]
        shrunk.append(starts[~written & (widths > k)] + k)
    removed = np.sort(np.concatenate(shrunk))
    return np.delete(out, removed) if len(removed) else out, removed


def decode_points(data: Bytes, starts: Positions) -> npt.NDArray[np.int32]:
    """Code points of the characters of two to four bytes that begin at `starts` (RFC 3629)."""
    points = (data[starts] & 0x1F).astype(np.int32) << 6 | data[starts + 1] & 0x3F
    for size, lead in ((3, 0xE0), (4, 0xF0)):
        longer = np.flatnonzero(data[starts] >= lead)
        points[longer] = points[longer] << 6 | data[starts[longer] + size - 1] & 0x3F
    # The length mark of a lead byte was shifted beyond these 21 bits.
    return points & 0x1FFFFF


@cache
def _folding_tables() -> _Tables:
    """Built when the first non-ASCII text is read, in some tens of milliseconds."""
    changes = np.zeros(TABLE_END, np.bool_)
    lengths = np.zeros(TABLE_END, np.uint8)
    replacements = np.zeros((TABLE_END, MOST_BYTES), np.uint8)
    skipped = {point for first, last in UNTOUCHED for point in range(first, last + 1)}
    for point in set(range(0x80, TABLE_END)) - skipped:
        source = chr(point)
        # Without its cache, which would keep all of these characters.
        if (folded := _fold_character.__wrapped__(source)) != source:
            data = folded.encode()
            changes[point], lengths[point] = True, len(data)
            replacements[point, : len(data)] = np.frombuffer(data, np.uint8)
    return _Tables(changes, lengths, replacements)


@cache
def _fold_character(char: str) -> str:
    """The folded form of a character, in at most as many bytes of UTF-8 as the character."""
    untouched = any(first <= ord(char) <= last for first, last in UNTOUCHED)
    if untouched or ord(char) >= TABLE_END:
        return char
    folded = _plain_spelling(char)
    # A longer replacement would not fit into the buffer in place: "㍱" stays.
    return folded if len(folded.encode()) <= len(char.encode()) else char


def _plain_spelling(char: str) -> str:
    category = unicodedata.category(char)
    if char in APOSTROPHES or char in QUOTATION_MARKS:
        return "'" if char in APOSTROPHES else '"'
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category in ("Pd", "Zs") or char == "\u2212":
        return " " if category == "Zs" else "-"
    if category in ("Zl", "Zp"):
        return "\n"
    if category == "Cf" or char in REMOVED_MARKS:
        return ""
    kept = "".join(c for c in unicodedata.normalize("NFKD", char) if c not in REMOVED_MARKS)
    return unicodedata.normalize("NFC", kept).lower()
