"""Hashes: of text and of JSON in one compact form; ids as numbers, a few bytes each."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int64]


def digests(ids: Iterable[str]) -> Digests:
    """32 bytes per id: what a SHA-256 in hex says, or the SHA-256 of any other id."""
    ids = list(ids)
    joined = _decode_all(ids) or b"".join(map(_digest, ids))
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def _decode_all(ids: list[str]) -> bytes | None:
    """All at once, ten times as fast, where every id is a SHA-256 in hex."""
    if set(map(len, ids)) != {64}:
        return None
    try:
        joined = bytes.fromhex("".join(ids))
    except ValueError:
        return None
    return joined if len(joined) == 32 * len(ids) else None  # white space is skipped


def _digest(identity: str) -> bytes:
    try:
        found = bytes.fromhex(identity)
    except ValueError:
        found = b""
    return found if len(found) == 32 else bytes.fromhex(sha256_text(identity))


def keys(of: Digests) -> Hashes:
    """The first 64 bits: enough to tell the ids of one data set apart, in the same order."""
    found: Hashes = np.ascontiguousarray(of[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    return found


def mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value (the finalizer of splitmix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: Hashes = values ^ (values >> np.uint64(31))
    return found


_COMPACT = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def compact_json(value: object) -> str:
    """The one JSON form that is hashed: sorted keys, no spaces, UTF-8 as it is."""
    return _COMPACT.encode(value)


def sha256_text(text: str) -> str:
    """Hex SHA-256 of the text's UTF-8 bytes; lone surrogates are hashed as they stand."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
