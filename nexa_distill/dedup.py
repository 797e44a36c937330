"""Canonical prompts become teacher inputs: duplicates go, the split is fixed for good.

Reads:  `storage.canonical`, `dedup.eval_files`; its own last `storage.raw_dataset` and
        `storage.clusters`
Writes: `storage.raw_dataset` (contracts.INPUTS), `storage.rejected_inputs`, `storage.clusters`,
        reports/dedup/quality_report.{json,md} and contamination.{json,md}
Keeps:  rows_in == kept + rejected; of equal rows one, of near-duplicates of one task type one: a
        row that was kept before, or else the first
Raises: InputMissing (66) for an absent or unsealed input, InputError (65) for a bad one

What is compared. A row's *subject* is its context, without the text of its `schema`; its *question*
is the prompt without context and schema. A row without a context is its own subject. So all prompts
of a template compare by their contexts, and questions about one text by their words.

Reasons, the first that holds:
- `duplicate`: the same content (`contracts.CONTENT_COLUMNS`), whatever the id;
- `joins_splits`: the row's document would join clusters on different sides of the split;
- `near_duplicate`: same task type, subjects of one family of near-duplicates (`minhash.py`)
  and questions too; `matched` is the row that was kept. Rows that were kept before by the same
  settings all stay, also when a new row turns out to lie between them;
- `contaminated`: the row is for training, and its subject shares a run of `contamination_words`
  words with a held-out row (val or test) or an eval file (`contamination.py`). Only subjects are
  compared. The evidence is in `detail` and in the report. The row goes, nothing moves.

The cluster. Documents whose subjects are near-duplicates, across task types, are one cluster with
all their chunks and prompts; the split is a hash of its name. How it stays what it is when rows
come and go: `splits.py`. Decided from scratch, clusters and sides do not depend on the order of the
rows; which of several near-duplicates is kept does.

Memory: about 430 MB and 450 bytes per row, measured between 250,000 and 500,000 rows
(benchmarks/dedup); no text is held. A hidden scratch folder beside the output holds the words and
signatures (about 9 bytes per word and 600 per row) and goes at the end.
An instruction that many prompts share is not what they are about: `shared_text.py`.

Run: python -m nexa_distill.dedup [--src FILE] [--dst FILE]
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import INPUTS, REJECTED_INPUTS, TABLES, check_reasons
from nexa_distill.deduplication.assignment import (
    CONTAMINATED,
    JOINS_SPLITS,
    REASONS,
    Rows,
    Verdicts,
    decide,
    place_documents,
    prepare,
    sketching,
    subject_families,
)
from nexa_distill.deduplication.contamination import EvalTexts
from nexa_distill.deduplication.contamination_report import Evidence
from nexa_distill.deduplication.minhash_store import in_order, scratch_folder
from nexa_distill.deduplication.shared_text import COLUMNS as SHARED_COLUMNS
from nexa_distill.deduplication.shared_text import SharedText, find_shared_text
from nexa_distill.deduplication.splits import (
    SIDES,
    are_remembered,
    recall,
    remember,
    remembered_shared_text,
    split_of,
)
from nexa_distill.deduplication.warnings import print_warnings
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import TableWriter, open_table, read_batches, table_writer
from nexa_distill.text.hashing import digests, keys
from nexa_distill.text.words import VERSION

__all__ = ["run", "settings", "split_of"]

SOURCE = TABLES["canonical"]
BATCH_ROWS = 2048


def settings(config: DistillConfig, limit: int | None = None) -> dict[str, Any]:
    """What decides the outcome, next to the canonical prompts and the eval files."""
    return {
        **_decided_with(config),
        "contamination": config.dedup.model_dump(
            include={"contamination_words", "contamination_common", "eval_files"}
        ),
        "limit": limit,
    }


def _decided_with(config: DistillConfig) -> dict[str, Any]:
    near = {"jaccard", "shingle_words", "permutations"}
    return {
        "split": config.split.model_dump(),
        "near": config.dedup.model_dump(include=near),
        "words": VERSION,
    }


def run(
    config: DistillConfig,
    src: Path | None = None,
    dst: Path | None = None,
    limit: int | None = None,
) -> None:
    """Write `storage.raw_dataset` (or `dst`) and `storage.rejected_inputs`, unless up to date.

    The memory of `dst` elsewhere is beside it (`<name>.clusters.parquet`), and so are the rows that
    are left out and the reports.
    """
    if config.split.val + config.split.test >= 1:
        raise InputError(
            f"split: val {config.split.val} + test {config.split.test} leaves no train"
        )
    storage = config.storage
    rejected = storage.beside(dst, "rejected.parquet", storage.path("rejected_inputs"))
    folder = storage.beside(dst, "reports", storage.path("reports") / "dedup")
    src, dst = src or storage.path("canonical"), dst or storage.path("raw_dataset")
    report = folder / "quality_report.json"
    evals = [Path(file) for file in config.dedup.eval_files]
    if missing := [file for file in evals if not file.exists()]:
        raise InputMissing(f"{missing[0]}: no such file; dedup.eval_files names it")
    stage = StageRun("dedup", storage, inputs=[src, *evals], settings=settings(config, limit))
    if stage.is_current(dst, rejected) and report.exists():
        print(f"dedup: {dst} is up to date")
        return
    total = min(open_table(src, SOURCE).metadata.num_rows, limit or 2**63)
    if not total:
        raise InputError(f"{src}: holds no rows; run `{SOURCE.command}`")
    with scratch_folder(dst) as scratch, Progress("dedup", total) as progress:
        memory = _memory(config, dst)
        shared = find_shared_text(
            lambda: _first(src, limit, SHARED_COLUMNS),
            remembered_shared_text(memory),
            partial(are_remembered, memory),
        )
        evaluation = EvalTexts(evals, scratch / "eval", shared) if evals else None
        rows = _read(config, src, limit, scratch, progress, shared)
        progress.say("comparing")
        verdicts = _decide(config, rows, dst, memory, evaluation, shared)
        with table_writer(dst, INPUTS) as kept, table_writer(rejected, REJECTED_INPUTS) as out:
            evidence = Evidence(rows, verdicts, evaluation, shared)
            for start, batch in _numbered(_first(src, limit)):
                _write(batch, start, rows, verdicts, evidence, kept, out)
    if kept.rows + out.rows != total or len(rows) != total:
        raise RuntimeError(f"rows lost: {total} read, {kept.rows} kept, {out.rows} rejected")
    codes, numbers = np.unique(verdicts.reason, return_counts=True)
    counts = Counter(
        {REASONS[code]: int(n) for code, n in zip(codes, numbers, strict=True) if code}
    )
    check_reasons(list(counts))
    evidence.write(folder / "contamination.json", config.dedup)
    stage_reports.quality_report(report, stage="dedup", total=total, reject_reason_counts=counts)
    stage.seal(rejected, rows_in=total, rejected=out.rows)
    stage.seal(dst, rows_in=total, rejected=out.rows)
    print_warnings(config, rows, verdicts, shared)
    said = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
    print(f"dedup: {kept.rows} of {total} prompts kept{f' ({said})' if said else ''} -> {dst}")


def _memory(config: DistillConfig, dst: Path) -> Path:
    if dst.resolve() == config.storage.path("raw_dataset").resolve():
        return config.storage.path("clusters")
    return dst.with_name(f"{dst.name}.clusters.parquet")


def _read(
    config: DistillConfig,
    src: Path,
    limit: int | None,
    scratch: Path,
    progress: Progress,
    shared: SharedText,
) -> Rows:
    how = sketching(config)
    rows = Rows(scratch, how)
    for batch in in_order(partial(prepare, how=how, shared=shared), _first(src, limit)):
        rows.add(batch)
        progress.add(len(batch.tasks))
    rows.close()
    return rows


def _decide(
    config: DistillConfig,
    rows: Rows,
    dst: Path,
    memory: Path,
    evaluation: EvalTexts | None,
    shared: SharedText,
) -> Verdicts:
    """All decisions; the memory is written when they are made, before anything depends on them."""
    labels = subject_families(rows)
    settled = recall(rows.documents, memory, _decided_with(config))
    stood = _stood(rows, dst)
    rows.documents.stood[:] = rows.documents.known
    if stood is not None:
        rows.documents.stood[:] = np.isin(np.arange(len(rows.documents.ids)), rows.document[stood])
    place_documents(rows, labels, config)
    before = np.zeros(len(rows), np.bool_) if stood is None else stood
    verdicts = decide(rows, config, before, settled, labels, evaluation)
    remember(rows.documents, memory, _decided_with(config), shared)
    return verdicts


def _stood(rows: Rows, dst: Path) -> npt.NDArray[np.bool_] | None:
    """Per row, whether the last output holds it; None when there is no complete one.

    It is replaced as a whole, so a stop before its seal does not matter here.
    """
    if not dst.is_file():
        return None
    try:
        before = [
            keys(digests(batch["sample_id"].to_pylist()))
            for batch in read_batches(dst, TABLES["raw_dataset"], columns=["sample_id"])
        ]
    except InputError:
        return None
    return np.isin(rows.samples, np.concatenate([np.zeros(0, np.uint64), *before]))


def _write(
    batch: pa.Table,
    start: int,
    rows: Rows,
    verdicts: Verdicts,
    evidence: Evidence,
    kept: TableWriter,
    out: TableWriter,
) -> None:
    reasons = verdicts.reason[start : start + batch.num_rows]
    good, bad = np.flatnonzero(reasons == 0), np.flatnonzero(reasons)
    documents = rows.document[start + good]
    names = [name.tobytes().hex() for name in rows.documents.names[documents]]
    sides = [SIDES[side] for side in rows.documents.sides[documents]]
    kept.write(
        batch.take(good)
        .drop_columns("document_id")
        .append_column(INPUTS.field("cluster_id"), pa.array(names, pa.string()))
        .append_column(INPUTS.field("split"), pa.array(sides, pa.string()))
    )
    evidence.see(start, batch)
    matched, detail = [], []
    for row in (start + bad).tolist():
        matched.append(evidence.matched(row))
        detail.append(
            evidence.span(row)
            if verdicts.reason[row] == CONTAMINATED
            else rows.documents.refused.get(int(rows.document[row]))
            if verdicts.reason[row] == JOINS_SPLITS
            else None
        )
    added = {
        "rejection_reason": [REASONS[code] for code in reasons[bad]],
        "matched": matched,
        "detail": detail,
    }
    rows_out = batch.take(bad)
    for name, values in added.items():
        rows_out = rows_out.append_column(
            REJECTED_INPUTS.field(name), pa.array(values, pa.string())
        )
    out.write(rows_out)


def _first(src: Path, limit: int | None, columns: list[str] | None = None) -> Iterator[pa.Table]:
    left = limit
    for batch in read_batches(src, SOURCE, columns=columns, batch_rows=BATCH_ROWS):
        yield batch.slice(0, left)
        left = None if left is None else left - batch.num_rows
        if left is not None and left <= 0:
            return


def _numbered(batches: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Each batch with the number of its first row."""
    start = 0
    for batch in batches:
        yield start, batch
        start += batch.num_rows


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
