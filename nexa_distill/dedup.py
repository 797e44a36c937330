"""Canonical prompts become teacher inputs: duplicates go, the split is fixed for good.

Reads:  `storage.canonical`
Writes: `storage.raw_dataset` (contracts.INPUTS), `storage.rejected_inputs` (reason `duplicate`)
Keeps:  the first row of each content; rows_in == kept + rejected

Duplicates are exact: the same content (`contracts.CONTENT_COLUMNS`), whatever the id. The cluster
is the source document with case and spacing folded, so all chunks and task types of one document
stand on the same side. The split is a hash of the cluster: no row moves when rows are added.
Not covered: near-duplicates of different documents.

Run: python -m nexa_distill.dedup [--src FILE] [--dst FILE]
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill import cli
from nexa_distill.config import DistillConfig, Split, load_config
from nexa_distill.contracts import (
    CONTENT_COLUMNS,
    INPUTS,
    REJECTED_INPUTS,
    TABLES,
    canonical_input,
    sha256_text,
)
from nexa_distill.errors import InputError
from nexa_distill.handoff import read_batches, table_writer
from nexa_distill.manifests import StageRun

DUPLICATE = "duplicate"


def split_of(cluster_id: str, split: Split) -> str:
    """train, val or test, decided by the cluster alone: the first 64 bits of a hash as a share."""
    share = int(sha256_text(f"{split.seed}|{cluster_id}")[:16], 16) / 2**64
    if share < split.test:
        return "test"
    return "val" if share < split.test + split.val else "train"


def mark_duplicates(batches: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, list[bool]]]:
    """Each batch with, per row, whether its content stood in an earlier row."""
    seen: set[str] = set()
    for batch in batches:
        flags = []
        for row in batch.select(list(CONTENT_COLUMNS)).to_pylist():
            digest = sha256_text(canonical_input(row))
            flags.append(digest in seen)
            seen.add(digest)
        yield batch, flags


def as_inputs(rows: pa.Table, split: Split) -> pa.Table:
    """Rows of contracts.INPUTS: the document is the cluster, the cluster decides the split."""
    clusters = rows["document_id"]
    splits = [split_of(cluster, split) for cluster in clusters.to_pylist()]
    return (
        rows.drop_columns("document_id")
        .append_column("cluster_id", clusters)
        .append_column("split", pa.array(splits, pa.string()))
        .select(INPUTS.names)
    )


def settings(config: DistillConfig, limit: int | None = None) -> dict[str, Any]:
    """What decides the outcome, next to the canonical prompts."""
    return {"split": config.split.model_dump(), "limit": limit}


def run(
    config: DistillConfig,
    src: Path | None = None,
    dst: Path | None = None,
    limit: int | None = None,
) -> None:
    """Write `storage.raw_dataset` (or `dst`) and `storage.rejected_inputs`, unless up to date."""
    if config.split.val + config.split.test >= 1:
        raise InputError(
            f"split: val {config.split.val} + test {config.split.test} leaves no train"
        )
    storage = config.storage
    src, dst = src or storage.path("canonical"), dst or storage.path("raw_dataset")
    rejected = storage.path("rejected_inputs")
    stage = StageRun("dedup", storage, inputs=[src], settings=settings(config, limit))
    if stage.is_current(dst, rejected):
        print(f"dedup: {dst} is up to date")
        return
    batches = _first(read_batches(src, TABLES["canonical"], batch_rows=4096), limit)
    with table_writer(dst, INPUTS) as kept, table_writer(rejected, REJECTED_INPUTS) as out:
        for batch, duplicate in mark_duplicates(batches):
            mask = pa.array(duplicate)
            again = batch.filter(mask)
            reason = pa.array([DUPLICATE] * again.num_rows, pa.string())
            out.write(again.append_column(REJECTED_INPUTS.field("rejection_reason"), reason))
            kept.write(as_inputs(batch.filter(pc.invert(mask)), config.split))
        total = kept.rows + out.rows
        if not total:
            raise InputError(f"{src}: holds no rows; run `{TABLES['canonical'].command}`")
    stage.seal(rejected, rows_in=total, rejected=out.rows)
    stage.seal(dst, rows_in=total, rejected=out.rows)
    print(f"dedup: {kept.rows} of {total} prompts kept, {out.rows} duplicates -> {dst}")


def require_both_sides(config: DistillConfig) -> None:
    """Raises InputError before anything is paid when nothing could be trained on or held out."""
    path, split = config.storage.path("raw_dataset"), config.split
    batches = read_batches(path, TABLES["raw_dataset"], columns=["split"])
    found = {side for batch in batches for side in batch["split"].unique().to_pylist()}
    wanted = {"train"} | ({"test"} if split.test else set())
    if missing := sorted(wanted - found):
        raise InputError(
            f"{path}: no document falls into {' or '.join(missing)} (shares: val {split.val}, "
            f"test {split.test}); take more input (--limit), or change split:"
        )


def _first(batches: Iterator[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    left = limit
    for batch in batches:
        yield batch.slice(0, left)
        left = None if left is None else left - batch.num_rows
        if left is not None and left <= 0:
            return


def main() -> int:
    """Command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--src", type=Path, metavar="FILE", help="default: storage.canonical")
    parser.add_argument("--dst", type=Path, metavar="FILE", help="default: storage.raw_dataset")
    parser.add_argument("--limit", type=cli.count, metavar="N", help="first N canonical prompts")
    args = parser.parse_args()
    run(load_config(args.config), args.src, args.dst, args.limit)
    return 0


if __name__ == "__main__":
    cli.run(main)
