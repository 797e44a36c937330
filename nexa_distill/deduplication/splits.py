"""Assign every document to a split, permanently: clusters are stored in `storage.clusters`.

Near-duplicates and shared documents form a cluster, named by its smallest document; the name
decides the split. Clusters that grow, shrink or meet keep their names:

- a stored document keeps its cluster;
- a new one takes the cluster of its near-duplicates (the smallest name of several), or founds one;
- a new one that would join clusters of different splits is refused (`joins_splits`), with every new
  document that links them;
- if two stored documents of different splits meet (a smaller `dedup.jaccard`, or one was absent
  while the other came), the one in the last output stays, and of two such the held-out one.

With `split.column` the raw data names the split of each row, and a cluster has the most held-out
split of its rows; its other rows are refused (`joins_splits`).
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.contracts import CLUSTERS, CLUSTERS_TABLE, SPLITS
from nexa_distill.deduplication.shared_text import SharedText
from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import Split
from nexa_distill.storage.tables import read_batches, table_writer
from nexa_distill.text.hashing import Digests, Indexes, compact_json, digest_ids, digest_keys, sha256_text

Flags = npt.NDArray[np.bool_]
_SETTINGS = b"decided_with"
_SHARED_TEXT = b"shared_text"
_BATCH = 65_536


def split_of_cluster(cluster_id: str, split: Split) -> str:
    """train, val or test, decided by the cluster alone: the first 64 bits of a hash as a share."""
    share = int(sha256_text(f"{split.seed}|{cluster_id}")[:16], 16) / 2**64
    if share < split.test:
        return "test"
    return "val" if share < split.test + split.val else "train"


@dataclass
class Documents:
    """The documents of a run, in the order of their keys."""

    ids: Digests
    names: Digests  # of their clusters; zeros = none yet
    known: Flags  # whether they are stored
    was_in_output: Flags  # whether they had a row in the last output
    sides: npt.NDArray[np.int8]  # indexes into SPLITS; -1 = none yet
    refused: dict[int, str]  # document -> the reason

    @classmethod
    def from_ids(cls, ids: Digests) -> "Documents":
        none = np.zeros(len(ids), np.bool_)
        sides = np.full(len(ids), -1, np.int8)
        return cls(ids, np.zeros_like(ids), none, none.copy(), sides, {})


def load_clusters(documents: Documents, path: Path, decided_with: Mapping[str, Any]) -> bool:
    """Fill in the clusters stored at `path`. False if settings other than `split:` have changed."""
    if not path.exists():
        return True
    # Another seed or other shares reassign everything. The file has no manifest: it is replaced as
    # a whole, and any complete file is valid.
    before = _load_metadata(path)
    now = _settings_metadata(decided_with)
    if before.get(_SETTINGS + b".split") != now[_SETTINGS + b".split"]:
        return True
    own = digest_keys(documents.ids)
    for batch in read_batches(path, CLUSTERS_TABLE, batch_rows=_BATCH):
        stored = digest_keys(digest_ids(batch["document_id"].to_pylist()))
        # A key above the last one would be out of range; the comparison below drops it.
        place = np.minimum(np.searchsorted(own, stored), max(len(own) - 1, 0))
        here = np.flatnonzero(own[place] == stored) if len(own) else np.zeros(0, np.int64)
        documents.names[place[here]] = digest_ids(batch["cluster_id"].take(here).to_pylist())
        documents.known[place[here]] = True
    return before.get(_SETTINGS) == now[_SETTINGS]


def load_shared_text(path: Path) -> SharedText | None:
    if not path.exists():
        return None
    stored = json.loads(_load_metadata(path).get(_SHARED_TEXT, b"{}"))
    instructions, passages = (stored.get(kind, ()) for kind in ("instructions", "passages"))
    return SharedText(frozenset(instructions), frozenset(passages))


def are_remembered(path: Path, document_ids: list[str]) -> list[bool]:
    stored, ids = set[str](), set(document_ids)
    if path.exists() and ids:
        for batch in read_batches(path, CLUSTERS_TABLE, batch_rows=_BATCH):
            stored |= ids.intersection(batch["document_id"].to_pylist())
    return [document in stored for document in document_ids]


def save_clusters(documents: Documents, path: Path, decided_with: Mapping[str, Any], shared: SharedText) -> None:
    """Add the clusters of new documents to `path`; clusters of another `split:` are replaced."""
    settings = _settings_metadata(decided_with)
    names = {"instructions": sorted(shared.instructions), "passages": sorted(shared.passages)}
    settings[_SHARED_TEXT] = compact_json(names).encode()
    before = _load_metadata(path)
    same = before.get(_SETTINGS + b".split") == settings[_SETTINGS + b".split"]
    new = np.flatnonzero(~documents.known)
    new = new[[index not in documents.refused for index in new.tolist()]]
    # Nothing is new: the file is not written.
    if same and not len(new) and settings.items() <= before.items():
        return
    with table_writer(path, CLUSTERS.with_metadata(settings)) as out:
        for batch in read_batches(path, CLUSTERS_TABLE, batch_rows=_BATCH) if same else ():
            out.write(batch)
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            columns = [[row.tobytes().hex() for row in which[part]] for which in (documents.ids, documents.names)]
            out.write(pa.table(columns, schema=CLUSTERS))


def _load_metadata(path: Path) -> dict[bytes, bytes]:
    """The settings of the clusters stored at `path`. Raises InputError (65) for a damaged file."""
    try:
        return dict(pq.read_schema(path).metadata or {}) if path.exists() else {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a complete Parquet file ({error}). It stores the split of each document: "
            "restore it, or delete it to assign all splits again"
        ) from None


def _settings_metadata(decided_with: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {
        _SETTINGS: compact_json(decided_with).encode(),
        _SETTINGS + b".split": compact_json(decided_with["split"]).encode(),
    }


Meeting = Callable[[list[int]], Iterable[tuple[int, int]]]


def assign_splits(documents: Documents, clusters: Indexes, split: Split, meeting: Meeting) -> list[int]:
    """Give each document a cluster name and a split, or refuse it.

    `clusters`: labels from near-duplicates and shared texts. `meeting(documents)` yields every pair
    of these documents that is linked directly; it is called only for clusters whose stored members
    have different splits. Returns the members of those clusters.
    """
    stored = np.flatnonzero(documents.known)
    side = {key: SPLITS.index(split_of_cluster(name, split)) for key, name in _distinct_names(documents, stored)}
    name_keys = digest_keys(documents.names)
    for index in stored.tolist():
        documents.sides[index] = side[int(name_keys[index])]
    # A cluster is in conflict if its stored documents have more than one split.
    low = np.full(len(clusters), len(SPLITS))
    high = np.full(len(clusters), -1)
    np.minimum.at(low, clusters[stored], documents.sides[stored])
    np.maximum.at(high, clusters[stored], documents.sides[stored])
    conflicting = (low < high)[clusters]
    _name_new_documents(documents, clusters, ~conflicting)
    members = np.flatnonzero(conflicting)
    members = members[np.argsort(clusters[members], kind="stable")]
    for group in np.split(members, np.flatnonzero(np.diff(clusters[members])) + 1):
        if len(group):
            _resolve_conflict(documents, group.tolist(), meeting(group.tolist()), split)
    for index in np.flatnonzero(~documents.known).tolist():
        if index not in documents.refused:
            documents.sides[index] = SPLITS.index(split_of_cluster(_cluster_name(documents, index), split))
    return [int(index) for index in members]


def follow_raw_splits(documents: Documents, clusters: Indexes, raw: npt.NDArray[np.int8]) -> None:
    """Give each document the most held-out split that the raw data names in its cluster.

    `raw`: per document an index into SPLITS. `assignment` refuses the rows that name another one.
    """
    _name_new_documents(documents, clusters, np.ones(len(clusters), np.bool_))
    most_held_out = np.full(len(clusters), -1, np.int8)
    np.maximum.at(most_held_out, clusters, raw)
    documents.sides[:] = most_held_out[clusters]


def _distinct_names(documents: Documents, stored: Indexes) -> Iterator[tuple[int, str]]:
    distinct, first = np.unique(digest_keys(documents.names[stored]), return_index=True)
    for key, index in zip(distinct.tolist(), stored[first].tolist(), strict=True):
        yield key, _cluster_name(documents, index)


def _cluster_name(documents: Documents, index: int) -> str:
    return str(documents.names[index].tobytes().hex())


def _name_new_documents(documents: Documents, clusters: Indexes, among: Flags) -> None:
    """New documents take the smallest name in their cluster, or that of its smallest document."""
    name_keys = digest_keys(documents.names)
    named = np.flatnonzero(documents.known & among)
    named = named[np.argsort(name_keys[named], kind="stable")[::-1]]
    # Per cluster, the document with the smallest name.
    by = np.full(len(clusters), -1)
    by[clusters[named]] = named  # the last one written is the smallest
    new = np.flatnonzero(~documents.known & among)
    source = by[clusters[new]]
    old, founding = source >= 0, source < 0
    documents.names[new[old]] = documents.names[source[old]]
    # Documents are in the order of their keys: a cluster's label is its smallest document.
    documents.names[new[founding]] = documents.ids[clusters[new[founding]]]


def _resolve_conflict(documents: Documents, members: list[int], pairs: Iterable[tuple[int, int]], split: Split) -> None:
    """Assign the members of a cluster with several splits, or refuse them; see the module."""
    near: dict[int, set[int]] = {index: set() for index in members}
    for a, b in pairs:
        near[a].add(b)
        near[b].add(a)
    present = {i for i in members if documents.known[i] and documents.was_in_output[i]}
    absent = {i for i in members if documents.known[i]} - present
    # Documents of the last output are placed first, then other stored ones, then new ones; each
    # group of linked documents must agree with the placed documents that it touches.
    placed: set[int] = set()
    for tier in (present, absent, set(members) - present - absent):
        for group in _connected_components(sorted(tier), near):
            touched = {o for i in group for o in near[i] if o in placed}
            sides = {int(documents.sides[o]) for o in touched}
            # A group that touches none takes its own held-out split; -1 is that of new documents.
            sides = sides or {max(int(documents.sides[i]) for i in group)}
            for index in group:
                if len(sides) > 1 or (documents.known[index] and documents.sides[index] not in sides):
                    meets = {int(documents.sides[index])} - {-1} | sides
                    names = " and ".join(SPLITS[side] for side in sorted(meets))
                    documents.refused[index] = f"near-duplicates are in {names}"
                    continue
                placed.add(index)
                if not documents.known[index]:
                    candidates = documents.names[sorted(touched)] if touched else documents.ids[group]
                    documents.names[index] = min(candidates, key=lambda name: name.tobytes())
                    documents.sides[index] = SPLITS.index(split_of_cluster(_cluster_name(documents, index), split))


def _connected_components(nodes: Collection[int], near: Mapping[int, set[int]]) -> Iterator[list[int]]:
    remaining = dict.fromkeys(nodes)
    while remaining:
        group, queue = list[int](), [next(iter(remaining))]
        del remaining[queue[0]]
        while queue:
            group.append(queue.pop())
            for other in sorted(near[group[-1]]):
                if other in remaining:
                    del remaining[other]
                    queue.append(other)
        yield group
