"""Find training texts that share a run of words with held-out texts.

A run is an n-gram of `words` words without case (`text/ngrams.py`; GPT-3's filter used 13: Brown et
al. 2020, appendix C), in scripts without spaces about as much text: 22 characters of Chinese. A
shorter text matches only an equal one. Compared are the rows' own texts (`dedup.py`), so a prompt
template or a schema is no match.
Not covered: paraphrases, translations, and a short question within a longer training text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexa_distill.deduplication.minhash_store import SketchStore, sketch_batch
from nexa_distill.deduplication.shared_text import SharedText
from nexa_distill.raw_data.files import read_raw
from nexa_distill.text.hashing import Hashes, Indexes
from nexa_distill.text.ngrams import hash_ngrams

# Held-out runs in memory; with more of them the texts are read from disk several times.
BUDGET = 2_000_000
# 32 MB of flags: 2 million runs set 6 % of them, so that 94 % of all other runs end there.
_SLOTS = 2**25
_BATCH = 4096


class EvalTexts:
    """The distinct texts of evaluation files, each with the location of its first occurrence."""

    def __init__(self, files: list[Path], folder: Path, shared: SharedText) -> None:
        self.sketches = SketchStore(folder, None)
        self.places: dict[int, tuple[str, int, str]] = {}
        for file in files:
            texts: list[str] = []
            places: list[tuple[str, int, str]] = []
            for row in read_raw(file):
                for column, text in _iterate_texts(row.values, ""):
                    # A text with an instruction of the prompts is also compared without it.
                    subject, question = shared.split_prompt(text)
                    for each in [text, subject] if question else [text]:
                        texts.append(each)
                        places.append((str(file), row.row, column))
                if len(texts) >= _BATCH:
                    self._add_texts(texts, places)
                    texts, places = [], []
            self._add_texts(texts, places)
        self.sketches.close()

    def _add_texts(self, texts: list[str], places: list[tuple[str, int, str]]) -> None:
        if texts:
            numbers = self.sketches.add(sketch_batch(pa.array(texts, pa.string()), None))
            for number, where in zip(numbers.tolist(), places, strict=True):
                self.places.setdefault(number, where)


def _iterate_texts(value: Any, column: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and value.strip():
        # A lone surrogate cannot be put into an Arrow array.
        yield column, value.encode("utf-8", "replace").decode()
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _iterate_texts(inner, column or str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _iterate_texts(inner, column)


@dataclass(frozen=True)
class ContaminationMatches:
    """Per contaminated text: its longest run and the text with which it shares the run."""

    texts: Indexes  # numbers of training texts, each once
    starts: Indexes  # first word of the run
    lengths: Indexes  # of the run, in words
    sources: Indexes  # a held-out text, or -1 - a text of the evaluation files
    common: int  # distinct runs that were ignored as boilerplate


def find_contamination(
    sketches: SketchStore, training: Indexes, held: Indexes, evaluation: SketchStore | None, words: int, common: int
) -> ContaminationMatches:
    """Find the `training` texts that share a run with `held` texts or with `evaluation`.

    Runs that occur more than `common` times in all texts, training and held out, are boilerplate
    ("All rights reserved. No part of ...") and are ignored.
    """
    reads = [(sketches, held, False)]
    if evaluation is not None and len(evaluation):
        reads.append((evaluation, _distinct_texts(evaluation, np.arange(len(evaluation))), True))
    reads = [(where, _distinct_texts(where, texts), aside) for where, texts, aside in reads]
    training = _distinct_texts(sketches, training)
    total = sum(int((where.starts[texts + 1] - where.starts[texts]).sum()) for where, texts, _ in reads)
    # Held-out runs that do not fit into memory are searched in parts, each with its share of all hashes.
    parts = max(-(-total // BUDGET), 1)
    hits: list[_Hits] = []
    boilerplate = 0
    for part in range(parts if len(training) else 0):
        index = _HeldOutIndex.build_index(reads, words, part, parts)
        part_hits, ignored = index.find_hits(sketches, training, words, common, part, parts)
        hits.append(part_hits)
        boilerplate += ignored
    return _longest_runs(hits, boilerplate)


def _distinct_texts(sketches: SketchStore, texts: Indexes) -> Indexes:
    _, first = np.unique(sketches.prints[texts], return_index=True)
    # Ascending, as `_hash_runs` needs them.
    distinct: Indexes = texts[np.sort(first)]
    return distinct


def _hash_runs(
    sketches: SketchStore, texts: Indexes, words: int, part: int, parts: int
) -> Iterator[tuple[Hashes, Indexes, Indexes, Indexes]]:
    """Blocks of runs of these texts (ascending): hash, text, first word, number of words."""
    for first, end in sketches.text_blocks():
        chosen = texts[np.searchsorted(texts, first) : np.searchsorted(texts, end)]
        if not len(chosen):
            continue
        hashes, starts, sizes = hash_ngrams(sketches.load_words(chosen).without_case(), words)
        counts = np.diff(starts)
        text = np.repeat(chosen, counts)
        place = np.arange(len(hashes)) - np.repeat(starts[:-1], counts)
        here = hashes % np.uint64(parts) == part if parts > 1 else slice(None)
        yield hashes[here], text[here], place[here], sizes[here]


# (training text, first word, number of words, source), or before the source is known
# (held-out run, training text, first word, number of words).
_Hits = tuple[Indexes, Indexes, Indexes, Indexes]


@dataclass
class _HeldOutIndex:
    """Held-out runs: sorted hashes, the first source of each, its number of occurrences."""

    hashes: Hashes
    sources: Indexes
    counts: Indexes
    slots: npt.NDArray[np.bool_]  # by the first bits of a hash: rules out most training runs

    @classmethod
    def build_index(
        cls, reads: list[tuple[SketchStore, Indexes, bool]], words: int, part: int, parts: int
    ) -> "_HeldOutIndex":
        hashes, sources = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for where, texts, aside in reads:
            for values, text, _, _ in _hash_runs(where, texts, words, part, parts):
                hashes.append(values)
                sources.append(-1 - text if aside else text)
        whole, source = np.concatenate(hashes), np.concatenate(sources)
        del hashes, sources
        runs, first, counts = np.unique(whole, return_index=True, return_counts=True)
        slots = np.zeros(_SLOTS, np.bool_)
        slots[_slot_of(runs)] = True
        return cls(runs, source[first], counts, slots)

    def find_hits(
        self, sketches: SketchStore, training: Indexes, words: int, common: int, part: int, parts: int
    ) -> tuple[_Hits, int]:
        """(hits of training texts without boilerplate, number of boilerplate runs)."""
        kept: list[_Hits] = []
        is_hit = np.zeros(len(self.hashes), np.bool_)
        for hashes, text, place, sizes in _hash_runs(sketches, training, words, part, parts):
            # The slots rule out most runs; the rest is looked up in the sorted hashes.
            maybe = np.flatnonzero(self.slots[_slot_of(hashes)])
            values = hashes[maybe]
            where = np.minimum(np.searchsorted(self.hashes, values), max(len(self.hashes) - 1, 0))
            equal = self.hashes[where] == values
            run, maybe = where[equal], maybe[equal]
            # Not `counts[run] += 1`, which counts a run once per block.
            np.add.at(self.counts, run, 1)
            is_hit[run] = True
            kept.append((run, text[maybe], place[maybe], sizes[maybe]))
            # Dropped in between too, so that boilerplate does not fill the memory.
            if sum(len(hits[0]) for hits in kept) > BUDGET // 2:
                kept = [self._drop_boilerplate(kept, common)]
        run, text, place, sizes = self._drop_boilerplate(kept, common)
        return (text, place, sizes, self.sources[run]), int((is_hit & (self.counts > common)).sum())

    def _drop_boilerplate(self, kept: list[_Hits], common: int) -> _Hits:
        run, *columns = _concatenate_hits(kept)
        rare = self.counts[run] <= common
        text, place, sizes = (column[rare] for column in columns)
        return run[rare], text, place, sizes


def _slot_of(hashes: Hashes) -> Hashes:
    # The first 25 bits, as many as _SLOTS has.
    return hashes >> np.uint64(64 - 25)


def _concatenate_hits(hits: list[_Hits]) -> _Hits:
    none = np.zeros(0, np.int64)
    columns = zip(*hits, strict=True) if hits else [()] * 4
    first, second, third, fourth = (np.concatenate([none, *column]) for column in columns)
    return first, second, third, fourth


def _longest_runs(hits: list[_Hits], common: int) -> ContaminationMatches:
    """Merge runs that follow each other word by word, and keep the longest of each text."""
    text, place, sizes, source = _concatenate_hits(hits)
    order = np.lexsort((place, text))
    text, place, sizes, source = text[order], place[order], sizes[order], source[order]
    # A run begins at a new text, or where the word before it begins no run.
    begins = np.flatnonzero(np.diff(text, prepend=-1).astype(bool) | (np.diff(place, prepend=-2) != 1))
    last = np.append(begins, len(text))[1:] - 1
    ends = place[last] + sizes[last]
    text, place, source = text[begins], place[begins], source[begins]
    lengths = ends - place
    # Per text the longest run first, of equally long ones the earliest.
    order = np.lexsort((place, -lengths, text))
    first = order[np.diff(text[order], prepend=-1) != 0]
    return ContaminationMatches(text[first], place[first], lengths[first], source[first], common)
