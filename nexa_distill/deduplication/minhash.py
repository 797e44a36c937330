"""Near-duplicate texts, by MinHash: which texts share at least a given part of their shingles.

Two texts are near-duplicates when the Jaccard similarity of their sets of word n-grams
(`text/ngrams.py`) is at least the threshold; a family is what chains of such pairs join. Candidates
share one of b bands of r MinHash values (rensa's R-MinHash). A pair of similarity s is a candidate
with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4.2); r
is the largest for which that is at least `RECALL` at the threshold: 128 values and 0.8 give r = 7,
b = 18 and 0.985. A candidate is decided by the exact similarity of the shingles' hashes; the
signature only puts aside what lies four standard deviations below the threshold. Which pairs are
found does not depend on the order of the texts.

Two short texts (fewer than `SHORT` words) are near-duplicates only when they have the same digits,
symbols and capitals that say something (`text/word_forms.py`): one of them can be all that a
question is about.

Not covered: paraphrases in other words; a text that is quoted within a longer one (that is what
`contamination.py` finds).
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from nexa_distill.deduplication.minhash_store import Sketches, Sketching
from nexa_distill.text.hashing import Hashes, Indexes, mixed
from nexa_distill.text.ngrams import ngrams, ranges

_PAIRS = 16_384  # whose signatures are compared at a time
_EXACT = 1024  # whose shingles are
SHORT = 50  # words


def join(labels: Indexes, a: Indexes, b: Indexes) -> None:
    """Bring the families of each pair (a[i], b[i]) together, in place.

    `labels` names each node's family by its lowest node, before and after.
    """
    while len(a):
        high, low = np.maximum(labels[a], labels[b]), np.minimum(labels[a], labels[b])
        open_ = high != low
        a, b = a[open_], b[open_]
        np.minimum.at(labels, high[open_], low[open_])
        while True:
            further = labels[labels]
            if np.array_equal(further, labels):
                break
            labels[:] = further


def join_equal(labels: Indexes, values: npt.NDArray[np.generic]) -> None:
    """Bring the nodes that have the same value together, in place."""
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    join(labels, order[:-1][same], order[1:][same])


def bucket_pairs(keys: Hashes, labels: Indexes) -> Iterator[tuple[Indexes, Indexes]]:
    """Pairs of nodes with the same key that are not of one family yet, in rounds.

    The caller joins what belongs together before it asks for the next round; a bucket that has
    become one family is not looked at again.
    """
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)) != 0)
    starts, sizes = edges, np.diff(np.append(edges, len(keys)))
    distance = 1
    while len(starts):
        position = ranges(starts, np.maximum(sizes - distance, 0))
        a, b = order[position], order[position + distance]
        open_ = labels[a] != labels[b]
        yield a[open_], b[open_]
        distance += 1
        left = sizes > distance
        starts, sizes = starts[left], sizes[left]
        if len(starts):
            families = labels[order[ranges(starts, sizes)]]
            begins = np.cumsum(sizes) - sizes
            lowest = np.minimum.reduceat(families, begins)
            several = lowest != np.maximum.reduceat(families, begins)
            starts, sizes = starts[several], sizes[several]


def families(sketches: Sketches, nodes: Indexes, salt: Hashes, how: Sketching) -> Indexes:
    """Per node, the lowest node of its family. Node i is text `nodes[i]`.

    Only nodes with the same `salt` are compared.
    """
    labels = np.arange(len(nodes))
    join_equal(labels, mixed(sketches.prints[nodes] ^ salt))
    first = np.flatnonzero(labels == np.arange(len(nodes)))
    own = np.arange(len(first))
    alike = Likeness(sketches, how)
    for band in range(how.bands):
        keys = mixed(sketches.band(band)[nodes[first]] ^ salt[first])
        for a, b in bucket_pairs(keys, own):
            good = alike.pairs(nodes[first[a]], nodes[first[b]])
            join(own, a[good], b[good])
    labels[first] = first[own]
    return labels[labels]


class Likeness:
    """Decides pairs of texts: exactly, after a look at their signatures."""

    def __init__(self, sketches: Sketches, how: Sketching) -> None:
        self._sketches, self._how = sketches, how
        t = how.threshold
        self._least = t - 4 * math.sqrt(t * (1 - t) / how.permutations)

    def pairs(self, a: Indexes, b: Indexes) -> npt.NDArray[np.bool_]:
        """Of each pair of texts, whether it is at least as similar as the threshold says."""
        good = np.zeros(len(a), np.bool_)
        for start in range(0, len(a), _PAIRS):
            part = slice(start, start + _PAIRS)
            left, right = (self._sketches.signatures(side[part]) for side in (a, b))
            agreeing = (left == right).mean(axis=1)
            # Of different values, one in 256 agrees in the byte that is kept.
            near = start + np.flatnonzero((agreeing * 256 - 1) / 255 >= self._least)
            good[near] = self.jaccard(a[near], b[near]) >= self._how.threshold
        return good & ~self._differ_in_symbols(a, b, np.flatnonzero(good))

    def _differ_in_symbols(self, a: Indexes, b: Indexes, among: Indexes) -> npt.NDArray[np.bool_]:
        """Of short pairs, whether their digits, symbols and meaningful capitals differ."""
        starts, found = self._sketches.starts, np.zeros(len(a), np.bool_)
        longer = np.maximum(*(starts[side[among] + 1] - starts[side[among]] for side in (a, b)))
        among = among[longer < SHORT]
        for start in range(0, len(among), _EXACT):
            part = among[start : start + _EXACT]
            left, right = (self._sketches.tokens(side[part]).symbols() for side in (a, b))
            found[part] = left != right
        return found

    def jaccard(self, a: Indexes, b: Indexes) -> npt.NDArray[np.float64]:
        """Of each pair, the size of the intersection of the sets of shingles over the union's."""
        found = np.zeros(len(a))
        for start in range(0, len(a), _EXACT):
            part = slice(start, start + _EXACT)
            texts, sides = np.unique(np.concatenate([a[part], b[part]]), return_inverse=True)
            sets = self._sets(texts)
            for pair, (i, j) in enumerate(sides.reshape(2, -1).T.tolist()):
                common = len(np.intersect1d(sets[i], sets[j], assume_unique=True))
                found[start + pair] = common / (len(sets[i]) + len(sets[j]) - common)
        return found

    def _sets(self, texts: Indexes) -> list[Hashes]:
        shingles, starts, _ = ngrams(self._sketches.tokens(texts), self._how.words)
        return [np.unique(part) for part in np.split(shingles, starts[1:-1])]


def edges(sketches: Sketches, nodes: Indexes, how: Sketching) -> list[tuple[int, int]]:
    """Every near-duplicate pair among a few texts (as positions in `nodes`), not only a chain."""
    alike, pairs = Likeness(sketches, how), set[tuple[int, int]]()
    for band in range(how.bands):
        buckets: dict[int, list[int]] = {}
        for position, key in enumerate(sketches.band(band)[nodes].tolist()):
            buckets.setdefault(key, []).append(position)
        pairs.update(*(itertools.combinations(bucket, 2) for bucket in buckets.values()))
    a, b = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    good = alike.pairs(nodes[a], nodes[b])
    return list(zip(a[good].tolist(), b[good].tolist(), strict=True))
