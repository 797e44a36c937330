"""Decide for each row whether it is kept, and its cluster and split. Rules: see `dedup.py`.

Only numbers are in memory; the texts stay on disk.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexa_distill.contracts import CONTENT_COLUMNS, SPLITS, canonical_input
from nexa_distill.deduplication import contamination
from nexa_distill.deduplication.minhash import cluster_texts, similar_pairs, union_equal, union_labels
from nexa_distill.deduplication.minhash_store import MinHashSettings, SketchedBatch, SketchStore, sketch_batch
from nexa_distill.deduplication.shared_text import NOTHING_SHARED, SharedText
from nexa_distill.deduplication.splits import Documents, assign_splits, follow_raw_splits
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.text.hashing import Digests, Indexes, digest_ids, digest_keys, mix_bits, sha256_text
from nexa_distill.text.ngrams import normalize_document

REASONS = ("", "duplicate", "joins_splits", "near_duplicate", "contaminated")
DUPLICATE, JOINS_SPLITS, NEAR_DUPLICATE, CONTAMINATED = range(1, 5)
COLUMNS = ["sample_id", *CONTENT_COLUMNS, "document_id", "raw_split"]
PLACES = {split: place for place, split in enumerate(SPLITS)}


def minhash_settings(config: DistillConfig) -> MinHashSettings | None:
    chosen = config.dedup
    if chosen.jaccard is None:
        return None
    return MinHashSettings(chosen.jaccard, chosen.shingle_words, chosen.permutations)


def own_texts(row: Mapping[str, Any], shared: SharedText = NOTHING_SHARED) -> tuple[str, str]:
    """(subject, question) of a row.

    The subject is the context without the schema; the question is the prompt without either. The
    prompt of a row without a context is its subject, except for text that many prompts share
    (`shared_text.py`). A context that is an instruction is left out.
    """
    schema, context, prompt = row["schema"], row["context"] or "", row["user_prompt"]
    if schema:
        context, prompt = context.replace(schema, " "), prompt.replace(schema, " ")
    if not context.strip():
        return shared.split_prompt(prompt)
    if shared.instructions and shared.is_instruction(row["document_id"]):
        return prompt.replace(row["context"], " "), ""
    return context, prompt.replace(row["context"], " ").replace(context, " ")


class PreparedBatch(NamedTuple):
    """One batch, prepared in a thread."""

    content: npt.NDArray[np.bytes_]
    samples: Digests
    documents: Digests
    tasks: list[str]
    raw_splits: npt.NDArray[np.int8]  # indexes into SPLITS; -1 = none
    subjects: SketchedBatch
    questions: SketchedBatch


def document_of(row: Mapping[str, Any], shared: SharedText) -> str:
    if row["context"] and shared.is_instruction(row["document_id"]):
        # Many rows share an instruction: with its id they would all be one document.
        return sha256_text(normalize_document(own_texts(row, shared)[0]))
    return str(row["document_id"])


def prepare_batch(batch: pa.Table, how: MinHashSettings | None, shared: SharedText) -> PreparedBatch:
    """Compute all that needs the texts of a batch of contracts.CANONICAL. Pure."""
    rows = batch.select(COLUMNS).to_pylist()
    # 16 bytes: half the memory, and equal hashes of different texts are still out of reach.
    contents = (canonical_input(row).encode("utf-8", "surrogatepass") for row in rows)
    content = [hashlib.sha256(each).digest()[:16] for each in contents]
    texts = [own_texts(row, shared) for row in rows]
    subjects, questions = (pa.array([text[i] for text in texts], pa.string()) for i in (0, 1))
    return PreparedBatch(
        np.array(content, "S16"),
        digest_ids(row["sample_id"] for row in rows),
        digest_ids(document_of(row, shared) for row in rows),
        [row["template_name"] for row in rows],
        np.array([PLACES.get(row["raw_split"], -1) for row in rows], np.int8),
        sketch_batch(subjects, how),
        sketch_batch(questions, how),
    )


@dataclass
class DedupRows:
    """All rows as numbers; their ids are in the scratch folder, 32 bytes each."""

    folder: Path
    how: MinHashSettings | None
    subjects: SketchStore = field(init=False)
    questions: SketchStore = field(init=False)

    def __post_init__(self) -> None:
        self.subjects = SketchStore(self.folder / "subjects", self.how)
        self.questions = SketchStore(self.folder / "questions", self.how)
        self._ids = {name: (self.folder / name).open("wb") for name in ("samples", "documents")}
        self._tasks: dict[str, int] = {}
        self._parts: list[tuple[npt.NDArray[Any], ...]] = []

    def add(self, batch: PreparedBatch) -> None:
        self._ids["samples"].write(batch.samples.data)
        self._ids["documents"].write(batch.documents.data)
        tasks = [self._tasks.setdefault(task, len(self._tasks)) for task in batch.tasks]
        self._parts.append(
            (
                batch.content,
                digest_keys(batch.samples),
                digest_keys(batch.documents),
                np.array(tasks, np.int32),
                batch.raw_splits,
                self.subjects.add(batch.subjects),
                self.questions.add(batch.questions),
            )
        )

    def close(self) -> None:
        for file in self._ids.values():
            file.close()
        self.subjects.close()
        self.questions.close()
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        self.content, self.samples, documents, self.tasks, self.raw_splits, self.subject, self.question = columns
        self._parts = []
        _, first, self.document = np.unique(documents, return_index=True, return_inverse=True)
        self.documents = Documents.from_ids(self._map_ids("documents")[first])
        self.sample_ids = self._map_ids("samples")

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def has_raw_splits(self) -> bool:
        """Whether the raw data names splits: all of its rows do, or none."""
        return bool((self.raw_splits >= 0).any())

    def names_other_split(self) -> npt.NDArray[np.bool_]:
        """Per row, whether the raw data names another split than its document has."""
        other: npt.NDArray[np.bool_] = self.raw_splits != self.documents.sides[self.document]
        return other

    def _map_ids(self, name: str) -> Digests:
        # Mapped, not read: 32 bytes per row stay on disk.
        return np.memmap(self.folder / name, np.uint8, "r").reshape(-1, 32)


@dataclass
class DedupDecisions:
    """Per row: an index into REASONS, and the row (or -2 - eval text) that it matches."""

    reason: npt.NDArray[np.int8]
    other: Indexes
    # Of contaminated rows: first word and number of words of the run in the row's subject.
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    common: int | None = None  # runs ignored as boilerplate; None without a search


def cluster_subjects(rows: DedupRows) -> Indexes:
    """Per subject text, the label of its cluster of near-duplicates."""
    count = len(rows.subjects)
    if rows.how is None:
        labels = np.arange(count)
        union_equal(labels, rows.subjects.prints)
        return labels
    return cluster_texts(rows.subjects, np.arange(count), np.zeros(count, np.uint64), rows.how)


def assign_document_splits(rows: DedupRows, labels: Indexes, config: DistillConfig) -> None:
    """Assign a split to every document; `labels` loses links through refused documents only."""
    clusters = np.arange(len(rows.documents.ids))
    # Sorted by cluster, its rows are neighbours: linking neighbours links the whole cluster.
    order = np.argsort(labels[rows.subject], kind="stable")
    cluster, document = labels[rows.subject[order]], rows.document[order]
    same = cluster[1:] == cluster[:-1]
    union_labels(clusters, document[:-1][same], document[1:][same])
    if rows.has_raw_splits:
        raw = np.full(len(rows.documents.ids), -1, np.int8)
        np.maximum.at(raw, rows.document, rows.raw_splits)
        follow_raw_splits(rows.documents, clusters, raw)
        return
    conflicting = assign_splits(rows.documents, clusters, config.split, partial(_meeting_documents, rows))
    if conflicting:
        _recluster_subjects(rows, labels, [index for index in conflicting if index not in rows.documents.refused])


def _subjects_of(rows: DedupRows, members: list[int]) -> tuple[Indexes, Indexes]:
    """(document, subject) of the rows of these documents, each pair once."""
    chosen = np.flatnonzero(np.isin(rows.document, members))
    pairs = np.unique(np.stack([rows.document[chosen], rows.subject[chosen]], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _near_pairs(rows: DedupRows, texts: Indexes) -> list[tuple[int, int]]:
    """Pairs of positions in `texts` that are equal or near-duplicates."""
    if rows.how is not None:
        return similar_pairs(rows.subjects, texts, rows.how)
    prints = rows.subjects.prints[texts]
    a, b = np.nonzero(prints[:, None] == prints[None, :])
    # Each pair once, and no text with itself.
    return list(zip(a[a < b].tolist(), b[a < b].tolist(), strict=True))


def _meeting_documents(rows: DedupRows, members: list[int]) -> set[tuple[int, int]]:
    document, subject = _subjects_of(rows, members)
    pairs = ((int(document[a]), int(document[b])) for a, b in _near_pairs(rows, subject))
    return {pair for pair in pairs if pair[0] != pair[1]}


def _recluster_subjects(rows: DedupRows, labels: Indexes, members: list[int]) -> None:
    """Recompute the clusters of these documents' subjects, from these subjects alone."""
    _, subject = _subjects_of(rows, members)
    texts = np.unique(subject)
    fresh = np.arange(len(texts))
    pairs = np.array(_near_pairs(rows, texts), np.int64).reshape(-1, 2)
    union_labels(fresh, pairs[:, 0], pairs[:, 1])
    labels[texts] = texts[fresh]


def _best_rows(groups: Indexes, rank: Indexes) -> Indexes:
    """Per row, the row of its group with the lowest rank."""
    lowest = np.full(len(rank), np.iinfo(np.int64).max)
    np.minimum.at(lowest, groups, rank)
    # A rank is the row's number, plus multiples of the number of rows: the remainder is the row.
    best: Indexes = lowest[groups] % max(len(rank), 1)
    return best


def decide_rows(
    rows: DedupRows,
    config: DistillConfig,
    was_in_output: npt.NDArray[np.bool_],
    settled: bool,
    labels: Indexes,
    evaluation: contamination.EvalTexts | None,
) -> DedupDecisions:
    """Decide every row. `was_in_output`: it was kept before; `settled`: by the same settings."""
    count = len(rows)
    verdicts = DedupDecisions(np.zeros(count, np.int8), np.full(count, -1))
    refused = np.isin(rows.document, list(rows.documents.refused))
    if rows.has_raw_splits:
        refused |= rows.names_other_split()
    # The best row has no refused document, then was kept before, then comes first.
    rank = np.arange(count) + count * (~was_in_output).astype(np.int64) + 2 * count * refused
    same = np.arange(count)
    union_equal(same, rows.content)
    best = _best_rows(same, rank)
    duplicate = best != np.arange(count)
    verdicts.reason[duplicate], verdicts.other[duplicate] = DUPLICATE, best[duplicate]
    verdicts.reason[refused & ~duplicate] = JOINS_SPLITS
    if rows.how is not None:
        _reject_near_duplicates(rows, rows.how, verdicts, labels, rank, was_in_output & settled)
    if (words := config.dedup.contamination_words) is not None:
        _reject_contaminated(rows, verdicts, words, config.dedup.contamination_common, evaluation)
    return verdicts


def _reject_near_duplicates(
    rows: DedupRows,
    how: MinHashSettings,
    verdicts: DedupDecisions,
    labels: Indexes,
    rank: Indexes,
    stays: npt.NDArray[np.bool_],
) -> None:
    """Keep one row per task type and cluster of subject and question, and all of `stays`."""
    alive = np.flatnonzero(verdicts.reason == 0)
    tasks, clusters = rows.tasks[alive].astype(np.uint64), labels[rows.subject[alive]].astype(np.uint64)
    salt = mix_bits(mix_bits(tasks) ^ clusters)
    _, group, size = np.unique(salt, return_inverse=True, return_counts=True)
    # A row that is alone in its task type and subject cluster has no near-duplicate.
    several = size[group] > 1
    alive, salt = alive[several], salt[several]
    labels_of_questions = cluster_texts(rows.questions, rows.question[alive], salt, how)
    # argsort of argsort: the position of each row in the order of the ranks.
    order = np.argsort(np.argsort(rank[alive], kind="stable"), kind="stable")
    best = alive[np.argsort(order)[_best_rows(labels_of_questions, order)]] if len(alive) else alive
    # What an earlier run kept by the same settings stays, or rows would vanish when others are added.
    drop = (best != alive) & ~stays[alive]
    verdicts.reason[alive[drop]] = NEAR_DUPLICATE
    verdicts.other[alive[drop]] = best[drop]


def _reject_contaminated(
    rows: DedupRows, verdicts: DedupDecisions, words: int, common: int, evaluation: contamination.EvalTexts | None
) -> None:
    kept = np.flatnonzero(verdicts.reason == 0)
    training = rows.documents.sides[rows.document[kept]] == SPLITS.index("train")
    train, held = kept[training], kept[~training]
    aside = evaluation.sketches if evaluation else None
    matches = contamination.find_contamination(
        rows.subjects, np.unique(rows.subject[train]), np.unique(rows.subject[held]), aside, words, common
    )
    verdicts.common = matches.common
    prints = rows.subjects.prints
    order = np.argsort(prints[matches.texts])
    matched = prints[matches.texts][order]
    if not len(matched):
        return
    # Equal subjects were compared once, by their first text; every row with one is rejected.
    own = prints[rows.subject[train]]
    # A value above the last one would be out of range; the comparison below drops it.
    at = np.minimum(np.searchsorted(matched, own), len(matched) - 1)
    hit = np.flatnonzero(matched[at] == own)
    # Reversed, so that the first row with this subject is the one that is named.
    holders = dict(zip(rows.subject[held[::-1]].tolist(), held[::-1].tolist(), strict=True))
    for row, index in zip(train[hit].tolist(), order[at[hit]].tolist(), strict=True):
        source = int(matches.sources[index])
        verdicts.reason[row] = CONTAMINATED
        verdicts.other[row] = holders[source] if source >= 0 else source - 1
        verdicts.spans[row] = (int(matches.starts[index]), int(matches.lengths[index]))
