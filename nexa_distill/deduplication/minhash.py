"""Find near-duplicate texts by MinHash, and cluster them.

Two texts are near-duplicates if the Jaccard similarity of their sets of word n-grams
(`text/ngrams.py`) is at least the threshold; chains of such pairs form a cluster. Candidates share
one of b bands of r MinHash values (rensa's R-MinHash) and are then compared exactly. The result
does not depend on the order of the texts.

Not covered: paraphrases; a text that is quoted within a longer one (see `contamination.py`).
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from nexa_distill.deduplication.minhash_store import MinHashSettings, SketchStore
from nexa_distill.text.hashing import Hashes, Indexes, mix_bits
from nexa_distill.text.ngrams import concatenate_ranges, hash_ngrams

_PAIRS = 16_384  # pairs whose signatures are compared at a time
_EXACT = 1024  # pairs whose shingles are compared at a time
# Words. Shorter texts must also have the same digits, symbols and meaningful capitals
# (`text/word_forms.py`), since a question can be about one of these alone.
SHORT = 50


def union_labels(labels: Indexes, a: Indexes, b: Indexes) -> None:
    """Merge the clusters of each pair (a[i], b[i]), in place.

    `labels` maps each node to the lowest node of its cluster, before and after.
    """
    while len(a):
        high, low = np.maximum(labels[a], labels[b]), np.minimum(labels[a], labels[b])
        open_ = high != low
        a, b = a[open_], b[open_]
        # Not `labels[high] = low`: a cluster may be in several pairs, and the lowest one counts.
        np.minimum.at(labels, high[open_], low[open_])
        # Follow the labels to their roots, so that every node has the lowest node of its cluster.
        while True:
            further = labels[labels]
            if np.array_equal(further, labels):
                break
            labels[:] = further


def union_equal(labels: Indexes, values: npt.NDArray[np.generic]) -> None:
    order = np.argsort(values, kind="stable")
    # Sorted, equal values are neighbours: linking neighbours links them all.
    same = values[order[1:]] == values[order[:-1]]
    union_labels(labels, order[:-1][same], order[1:][same])


def bucket_pairs(keys: Hashes, labels: Indexes) -> Iterator[tuple[Indexes, Indexes]]:
    """Yield pairs of nodes with the same key that are not in one cluster yet, in rounds.

    The caller merges pairs between the rounds; a bucket that has become one cluster is dropped.
    """
    order = np.argsort(keys, kind="stable")
    # The value before the first one is another key, so that a bucket begins there.
    edges = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)) != 0)
    starts, sizes = edges, np.diff(np.append(edges, len(keys)))
    # Round k compares each node of a bucket with the k-th after it. Most buckets become one cluster
    # in the first rounds, so a large bucket does not cost all of its pairs.
    distance = 1
    while len(starts):
        position = concatenate_ranges(starts, np.maximum(sizes - distance, 0))
        a, b = order[position], order[position + distance]
        open_ = labels[a] != labels[b]
        yield a[open_], b[open_]
        distance += 1
        longer = sizes > distance
        starts, sizes = starts[longer], sizes[longer]
        if len(starts):
            clusters = labels[order[concatenate_ranges(starts, sizes)]]
            begins = np.cumsum(sizes) - sizes
            lowest = np.minimum.reduceat(clusters, begins)
            several = lowest != np.maximum.reduceat(clusters, begins)
            starts, sizes = starts[several], sizes[several]


def cluster_texts(sketches: SketchStore, nodes: Indexes, salt: Hashes, how: MinHashSettings) -> Indexes:
    """Per node, the lowest node of its cluster. Node i is text `nodes[i]`.

    Only nodes with the same `salt` are compared.
    """
    labels = np.arange(len(nodes))
    # The salt is in every key, so nodes of different groups never share a bucket.
    union_equal(labels, mix_bits(sketches.prints[nodes] ^ salt))
    # Equal texts are in one cluster; only the first of each is compared further.
    first = np.flatnonzero(labels == np.arange(len(nodes)))
    own = np.arange(len(first))
    alike = PairSimilarity(sketches, how)
    for band in range(how.band_count):
        keys = mix_bits(sketches.load_band(band)[nodes[first]] ^ salt[first])
        for a, b in bucket_pairs(keys, own):
            good = alike.are_similar(nodes[first[a]], nodes[first[b]])
            union_labels(own, a[good], b[good])
    # Back from positions in `first` to nodes; the last step passes the label on to equal texts.
    labels[first] = first[own]
    return labels[labels]


class PairSimilarity:
    """Decides exactly whether pairs of texts are similar, after a check of their signatures."""

    def __init__(self, sketches: SketchStore, how: MinHashSettings) -> None:
        self._sketches, self._how = sketches, how
        t = how.threshold
        # Signatures exclude only pairs four standard deviations below the threshold.
        self._least = t - 4 * math.sqrt(t * (1 - t) / how.permutations)

    def are_similar(self, a: Indexes, b: Indexes) -> npt.NDArray[np.bool_]:
        good = np.zeros(len(a), np.bool_)
        for start in range(0, len(a), _PAIRS):
            part = slice(start, start + _PAIRS)
            left, right = (self._sketches.load_signatures(side[part]) for side in (a, b))
            agreeing = (left == right).mean(axis=1)
            # One in 256 different values agrees in the stored byte.
            near = start + np.flatnonzero((agreeing * 256 - 1) / 255 >= self._least)
            good[near] = self.jaccard_similarity(a[near], b[near]) >= self._how.threshold
        return good & ~self._differ_in_symbols(a, b, np.flatnonzero(good))

    def _differ_in_symbols(self, a: Indexes, b: Indexes, among: Indexes) -> npt.NDArray[np.bool_]:
        starts, differs = self._sketches.starts, np.zeros(len(a), np.bool_)
        longer = np.maximum(*(starts[side[among] + 1] - starts[side[among]] for side in (a, b)))
        # In a longer text, one other digit or symbol makes no other text.
        among = among[longer < SHORT]
        for start in range(0, len(among), _EXACT):
            part = among[start : start + _EXACT]
            left, right = (self._sketches.load_words(side[part]).symbol_hashes() for side in (a, b))
            differs[part] = left != right
        return differs

    def jaccard_similarity(self, a: Indexes, b: Indexes) -> npt.NDArray[np.float64]:
        similarity = np.zeros(len(a))
        for start in range(0, len(a), _EXACT):
            part = slice(start, start + _EXACT)
            texts, sides = np.unique(np.concatenate([a[part], b[part]]), return_inverse=True)
            sets = self._shingle_sets(texts)
            for pair, (i, j) in enumerate(sides.reshape(2, -1).T.tolist()):
                common = len(np.intersect1d(sets[i], sets[j], assume_unique=True))
                similarity[start + pair] = common / (len(sets[i]) + len(sets[j]) - common)
        return similarity

    def _shingle_sets(self, texts: Indexes) -> list[Hashes]:
        shingles, starts, _ = hash_ngrams(self._sketches.load_words(texts), self._how.words)
        return [np.unique(part) for part in np.split(shingles, starts[1:-1])]


def similar_pairs(sketches: SketchStore, nodes: Indexes, how: MinHashSettings) -> list[tuple[int, int]]:
    """Every near-duplicate pair among a few texts, as positions in `nodes`."""
    alike, pairs = PairSimilarity(sketches, how), set[tuple[int, int]]()
    for band in range(how.band_count):
        buckets: dict[int, list[int]] = {}
        for position, key in enumerate(sketches.load_band(band)[nodes].tolist()):
            buckets.setdefault(key, []).append(position)
        pairs.update(*(itertools.combinations(bucket, 2) for bucket in buckets.values()))
    a, b = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    good = alike.are_similar(nodes[a], nodes[b])
    return list(zip(a[good].tolist(), b[good].tolist(), strict=True))
