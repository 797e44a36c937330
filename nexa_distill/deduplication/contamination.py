"""Training texts that share a run of words with held-out texts.

A run is an n-gram of `words` words without case (`text/ngrams.py`; GPT-3's filter used 13: Brown et
al. 2020, appendix C), in scripts without spaces about as much text: 22 characters of Chinese. A
text with fewer words counts as a whole, and only against a text that is
the same as a whole. What is compared is a row's own text (see `dedup.py`), so a prompt template
or a database schema is no match. Runs that occur more than `common` times in all texts, training
and held out, are boilerplate ("All rights reserved. No part of ...") and count for nothing; how
many distinct ones there were is in the result.

The words stand on disk (`minhash_store.py`). In memory are the held-out runs, at most `BUDGET` at a
time: with more of them the texts are read several times.
Not covered: paraphrases, translations, and a short question within a longer training text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexa_distill.deduplication.minhash_store import Sketches, sketched
from nexa_distill.deduplication.shared_text import SharedText
from nexa_distill.raw_data.files import read_raw
from nexa_distill.text.hashing import Hashes, Indexes
from nexa_distill.text.ngrams import ngrams

BUDGET = 2_000_000  # held-out runs at a time
_SLOTS = 2**25
_BATCH = 4096


class EvalTexts:
    """The distinct texts of evaluation files, each with the place of its first occurrence.

    A text that begins or ends with an instruction of the prompts counts without it too.
    """

    def __init__(self, files: list[Path], folder: Path, shared: SharedText) -> None:
        self.sketches = Sketches(folder, None)
        self.places: dict[int, tuple[str, int, str]] = {}
        for file in files:
            texts: list[str] = []
            places: list[tuple[str, int, str]] = []
            for row in read_raw(file):
                for column, text in _texts(row.values, ""):
                    subject, question = shared.divide(text)
                    for each in [text, subject] if question else [text]:
                        texts.append(each)
                        places.append((str(file), row.row, column))
                if len(texts) >= _BATCH:
                    self._add(texts, places)
                    texts, places = [], []
            self._add(texts, places)
        self.sketches.close()

    def _add(self, texts: list[str], places: list[tuple[str, int, str]]) -> None:
        if texts:
            numbers = self.sketches.add(sketched(pa.array(texts, pa.string()), None))
            for number, where in zip(numbers.tolist(), places, strict=True):
                self.places.setdefault(number, where)


def _texts(value: Any, column: str) -> Iterator[tuple[str, str]]:
    """Every text in a row, however deep it stands, under the name of its column."""
    if isinstance(value, str) and value.strip():
        yield column, value.encode("utf-8", "replace").decode()
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, column or str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, column)


@dataclass(frozen=True)
class Found:
    """Per contaminated text: its longest run and what that matches.

    `texts` are numbers of training texts, each once; the run is `lengths[i]` words from word
    `starts[i]` on. `sources[i]` is a held-out text, or -1 - a text of the evaluation files.
    """

    texts: Indexes
    starts: Indexes
    lengths: Indexes
    sources: Indexes
    common: int


def find(
    sketches: Sketches, training: Indexes, held: Indexes, evaluation: Sketches | None,
    words: int, common: int,
) -> Found:  # fmt: skip
    """Which of the `training` texts share a run with the `held` ones or with `evaluation`."""
    reads = [(sketches, held, False)]
    if evaluation is not None and len(evaluation):
        reads.append((evaluation, _distinct(evaluation, np.arange(len(evaluation))), True))
    reads = [(where, _distinct(where, texts), aside) for where, texts, aside in reads]
    training = _distinct(sketches, training)
    total = sum(_volume(where, texts) for where, texts, _ in reads)
    parts = max(-(-total // BUDGET), 1)
    hits: list[_Hits] = []
    boilerplate = 0
    for part in range(parts if len(training) else 0):
        found, ignored = _Index.of(reads, words, part, parts).hits(
            sketches, training, words, common, part, parts
        )
        hits.append(found)
        boilerplate += ignored
    return _longest(hits, boilerplate)


def _distinct(sketches: Sketches, texts: Indexes) -> Indexes:
    """One text, the first, of those that have the same words."""
    _, first = np.unique(sketches.prints[texts], return_index=True)
    found: Indexes = texts[np.sort(first)]
    return found


def _volume(sketches: Sketches, texts: Indexes) -> int:
    return int((sketches.starts[texts + 1] - sketches.starts[texts]).sum())


def _runs(
    sketches: Sketches, texts: Indexes, words: int, part: int, parts: int
) -> Iterator[tuple[Hashes, Indexes, Indexes, Indexes]]:
    """Blocks of runs of these texts (ascending): hash, text, first word, number of words.

    Of all hashes, one of `parts`.
    """
    for first, end in sketches.blocks():
        chosen = texts[np.searchsorted(texts, first) : np.searchsorted(texts, end)]
        if not len(chosen):
            continue
        hashes, starts, sizes = ngrams(sketches.tokens(chosen).folded(), words)
        counts = np.diff(starts)
        text = np.repeat(chosen, counts)
        place = np.arange(len(hashes)) - np.repeat(starts[:-1], counts)
        mine = hashes % np.uint64(parts) == part if parts > 1 else slice(None)
        yield hashes[mine], text[mine], place[mine], sizes[mine]


# Training text, first word, number of words, source; before the source is known, a held-out run
# comes first and the source is left out.
_Hits = tuple[Indexes, Indexes, Indexes, Indexes]


@dataclass
class _Index:
    """Held-out runs: sorted hashes, where each first stands, how often it occurs."""

    hashes: Hashes
    sources: Indexes
    counts: Indexes
    slots: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls, reads: list[tuple[Sketches, Indexes, bool]], words: int, part: int, parts: int
    ) -> "_Index":
        hashes, sources = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for where, texts, aside in reads:
            for values, text, _, _ in _runs(where, texts, words, part, parts):
                hashes.append(values)
                sources.append(-1 - text if aside else text)
        whole, source = np.concatenate(hashes), np.concatenate(sources)
        del hashes, sources
        found, first, counts = np.unique(whole, return_index=True, return_counts=True)
        slots = np.zeros(_SLOTS, np.bool_)
        slots[_slot(found)] = True
        return cls(found, source[first], counts, slots)

    def hits(
        self, sketches: Sketches, training: Indexes, words: int, common: int, part: int, parts: int
    ) -> tuple[_Hits, int]:
        """What training shares, without boilerplate, and how many runs were that."""
        kept: list[_Hits] = []
        met = np.zeros(len(self.hashes), np.bool_)
        for hashes, text, place, sizes in _runs(sketches, training, words, part, parts):
            maybe = np.flatnonzero(self.slots[_slot(hashes)])
            values = hashes[maybe]
            where = np.minimum(np.searchsorted(self.hashes, values), max(len(self.hashes) - 1, 0))
            real = self.hashes[where] == values
            run, maybe = where[real], maybe[real]
            np.add.at(self.counts, run, 1)
            met[run] = True
            kept.append((run, text[maybe], place[maybe], sizes[maybe]))
            if sum(len(hits[0]) for hits in kept) > BUDGET // 2:
                kept = [self._rare(kept, common)]
        run, text, place, sizes = self._rare(kept, common)
        return (text, place, sizes, self.sources[run]), int((met & (self.counts > common)).sum())

    def _rare(self, kept: list[_Hits], common: int) -> _Hits:
        run, *columns = _joined(kept)
        rare = self.counts[run] <= common
        text, place, sizes = (column[rare] for column in columns)
        return run[rare], text, place, sizes


def _slot(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - 25)


def _joined(hits: list[_Hits]) -> _Hits:
    none = np.zeros(0, np.int64)
    columns = zip(*hits, strict=True) if hits else [()] * 4
    first, second, third, fourth = (np.concatenate([none, *column]) for column in columns)
    return first, second, third, fourth


def _longest(hits: list[_Hits], common: int) -> Found:
    """Runs that follow each other word by word are one; the longest of each text stays."""
    text, place, sizes, source = _joined(hits)
    order = np.lexsort((place, text))
    text, place, sizes, source = text[order], place[order], sizes[order], source[order]
    begins = np.flatnonzero(
        np.diff(text, prepend=-1).astype(bool) | (np.diff(place, prepend=-2) != 1)
    )
    last = np.append(begins, len(text))[1:] - 1
    ends = place[last] + sizes[last]
    text, place, source = text[begins], place[begins], source[begins]
    lengths = ends - place
    order = np.lexsort((place, -lengths, text))
    first = order[np.diff(text[order], prepend=-1) != 0]
    return Found(text[first], place[first], lengths[first], source[first], common)
