"""Texts whose similarity is known: families of variants that are near one text, not each other.

Of 100 words, a variant replaces five in a row, which changes seven of 98 three-word shingles:
Jaccard 91 / 105 = 0.867 with its family's base (variant 0), 84 / 112 = 0.75 with other variants.
"""

import itertools
import json
import random
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nexa_distill import canonicalize, dedup
from tests.support.workspace import Workspace, workspace

Doc = tuple[int, int]


@cache
def text(family: int, variant: int = 0, words: int = 100) -> str:
    draw = random.Random(family)
    made = [f"{draw.choice('bdfgklmnprst')}{draw.randrange(10**6)}" for _ in range(words)]
    if variant:
        made[variant * 12 : variant * 12 + 5] = [f"x{family}v{variant}n{n}" for n in range(5)]
    return " ".join(made)


def rows_of(docs: Iterable[Doc], tasks: int = 1) -> list[dict[str, Any]]:
    """Raw rows; with several task types, near-duplicates of different types may all be kept."""
    if tasks == 1:
        return [{"id": f"f{f}v{v}", "text": text(f, v)} for f, v in docs]
    return [
        {"id": f"f{f}v{v}", "user_prompt": "Write.", "context": text(f, v),
         "template_name": f"task-{v % tasks}"}
        for f, v in docs
    ]  # fmt: skip


def deduped(
    folder: Path, rows: Iterable[Mapping[str, Any]], **changes: Any
) -> tuple[Workspace, dict[str, dict[str, Any]]]:
    """Run canonicalize and dedup on raw rows, again in the same folder; kept rows by sample_id."""
    if (folder / "config.yaml").exists():
        made = Workspace(folder, folder / "config.yaml")
    else:
        made = workspace(folder, input={"path": str(folder / "raw.jsonl")},
                         defaults={"tasks": ["hypothesis"]},
                         dedup={"contamination_words": None})  # fmt: skip
    made.change(**changes)
    (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = made.load()
    canonicalize.run(config)
    dedup.run(config)
    return made, kept(made)


def kept(made: Workspace) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(made.path("raw_dataset")).to_pylist()
    return {row["sample_id"]: row for row in rows}


def rejected(made: Workspace) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(made.path("rejected_inputs")).to_pylist()
    return {row["task_id"].split(":")[0]: row for row in rows}


def sides(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    return {key: (row["cluster_id"], row["split"]) for key, row in rows.items()}


@cache
def shingles(words: str, n: int = 3) -> frozenset[tuple[str, ...]]:
    """The oracle's own: plain sets of tuples."""
    found = words.casefold().split()
    return frozenset(tuple(found[i : i + n]) for i in range(max(len(found) - n + 1, 1)))


def jaccard(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def leaks(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of kept rows that are near-duplicates and stand on different sides, by brute force."""
    return [
        (a["task_id"], b["task_id"])
        for a, b in itertools.combinations(rows, 2)
        if a["split"] != b["split"] and jaccard(a["context"], b["context"]) >= 0.8
    ]
