"""Deduplicate canonical prompts and assign the split permanently.

Reads:  `storage.canonical`, `dedup.eval_files`; its own last `storage.raw_dataset` and
        `storage.clusters`
Writes: `storage.raw_dataset` (contracts.INPUTS), `storage.rejected_inputs`, `storage.clusters`,
        reports/dedup/quality_report.{json,md} and contamination.{json,md}
Keeps:  rows_in == kept + rejected; one row of equal rows and of near-duplicates of one task type:
        a row that was kept before, or else the first
Raises: InputMissing (66) for an absent or unsealed input, InputError (65) for a bad one

A row's *subject* is its context without the text of its `schema`, or its prompt if it has no
context; its *question* is the prompt without both. Documents with near-duplicate subjects form a
cluster, across task types; the split is a hash of the cluster's name, or with `split.column` the one
that the raw data names (`splits.py`).

Rejection reasons, the first that applies:
- `duplicate`: same content (`contracts.CONTENT_COLUMNS`), whatever the id;
- `joins_splits`: the row's document would join clusters of different splits, or the raw data names
  another split than that of a near-duplicate, which is more held out;
- `near_duplicate`: same task type, near-duplicate subject and question (`minhash.py`); `matched` is
  the kept row. Rows that were kept before with the same settings all stay;
- `contaminated`: a training row whose subject shares `contamination_words` consecutive words with a
  held-out row (val or test) or an eval file (`contamination.py`); evidence in `detail`.

Memory: about 430 MB and 450 bytes per row, measured between 250,000 and 500,000 rows
(benchmarks/dedup). Words and signatures are in a temporary folder beside the output: about 9 bytes
per word and 600 per row.

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
from nexa_distill.contracts import INPUTS, REJECTED_INPUTS, SPLITS, TABLES, check_reasons
from nexa_distill.deduplication.assignment import (
    CONTAMINATED,
    JOINS_SPLITS,
    REASONS,
    DedupDecisions,
    DedupRows,
    assign_document_splits,
    cluster_subjects,
    decide_rows,
    minhash_settings,
    prepare_batch,
)
from nexa_distill.deduplication.contamination import EvalTexts
from nexa_distill.deduplication.contamination_report import ContaminationEvidence
from nexa_distill.deduplication.minhash_store import scratch_folder
from nexa_distill.deduplication.shared_text import COLUMNS as SHARED_COLUMNS
from nexa_distill.deduplication.shared_text import SharedText, find_shared_text
from nexa_distill.deduplication.splits import are_remembered, load_clusters, load_shared_text, save_clusters
from nexa_distill.deduplication.warnings import print_warnings
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import TableWriter, open_table, read_batches, table_writer
from nexa_distill.storage.thread_pool import map_in_order
from nexa_distill.text.hashing import digest_ids, digest_keys
from nexa_distill.text.words import VERSION

SOURCE = TABLES["canonical"]
BATCH_ROWS = 2048


def settings(config: DistillConfig, limit: int | None = None) -> dict[str, Any]:
    """The values that determine the output, besides the canonical prompts and the eval files."""
    return {
        **_decision_settings(config),
        "contamination": config.dedup.model_dump(include={"contamination_words", "contamination_common", "eval_files"}),
        "limit": limit,
    }


def _decision_settings(config: DistillConfig) -> dict[str, Any]:
    near = {"jaccard", "shingle_words", "permutations"}
    # Without nulls: settings from before a new key must not assign all splits again.
    split = config.split.model_dump(exclude_none=True)
    return {"split": split, "near": config.dedup.model_dump(include=near), "words": VERSION}


def run(config: DistillConfig, src: Path | None = None, dst: Path | None = None, limit: int | None = None) -> None:
    """Write `storage.raw_dataset` (or `dst`) and `storage.rejected_inputs`, unless up to date.

    A `dst` outside the storage has its clusters, rejected rows and reports beside it.
    """
    if config.split.column is None and config.split.val + config.split.test >= 1:
        raise InputError(f"split: val {config.split.val} + test {config.split.test} leaves no train")
    storage = config.storage
    rejected = storage.path_beside(dst, "rejected.parquet", storage.path_of("rejected_inputs"))
    folder = storage.path_beside(dst, "reports", storage.path_of("reports") / "dedup")
    src, dst = src or storage.path_of("canonical"), dst or storage.path_of("raw_dataset")
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
        memory = _memory_path(config, dst)
        shared = find_shared_text(
            lambda: _first_rows(src, limit, SHARED_COLUMNS), load_shared_text(memory), partial(are_remembered, memory)
        )
        evaluation = EvalTexts(evals, scratch / "eval", shared) if evals else None
        rows = _read_rows(config, src, limit, scratch, progress, shared)
        progress.set_note("comparing")
        verdicts = _decide_rows(config, rows, dst, memory, evaluation, shared)
        with table_writer(dst, INPUTS) as kept, table_writer(rejected, REJECTED_INPUTS) as out:
            evidence = ContaminationEvidence(rows, verdicts, evaluation, shared)
            for batch in _first_rows(src, limit):
                # Every row before this batch is in one of the two tables.
                _write_batch(batch, kept.rows + out.rows, rows, verdicts, evidence, kept, out)
    if kept.rows + out.rows != total or len(rows) != total:
        raise RuntimeError(f"rows lost: {total} read, {kept.rows} kept, {out.rows} rejected")
    codes, numbers = np.unique(verdicts.reason, return_counts=True)
    counts = Counter({REASONS[code]: int(n) for code, n in zip(codes, numbers, strict=True) if code})
    check_reasons(list(counts))
    evidence.write_reports(folder / "contamination.json", config.dedup)
    stage_reports.write_quality_report(report, stage="dedup", total=total, reject_reason_counts=counts)
    stage.seal_output(rejected, rows_in=total, rejected=out.rows)
    stage.seal_output(dst, rows_in=total, rejected=out.rows)
    print_warnings(config, rows, verdicts, shared)
    rejections = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
    detail = f" ({rejections})" if rejections else ""
    print(f"dedup: {kept.rows} of {total} prompts kept{detail} -> {dst}")


def _memory_path(config: DistillConfig, dst: Path) -> Path:
    if dst.resolve() == config.storage.path_of("raw_dataset").resolve():
        return config.storage.path_of("clusters")
    return dst.with_name(f"{dst.name}.clusters.parquet")


def _read_rows(
    config: DistillConfig, src: Path, limit: int | None, scratch: Path, progress: Progress, shared: SharedText
) -> DedupRows:
    how = minhash_settings(config)
    rows = DedupRows(scratch, how)
    for batch in map_in_order(partial(prepare_batch, how=how, shared=shared), _first_rows(src, limit)):
        rows.add(batch)
        progress.add(len(batch.tasks))
    rows.close()
    if rows.has_raw_splits and (without := int((rows.raw_splits < 0).sum())):
        raise InputError(
            f"{src}: {without} of {len(rows)} rows have no raw_split (train, val or test); `{SOURCE.command}` writes "
            f"it from column {config.split.column} (split.column)"
        )
    return rows


def _decide_rows(
    config: DistillConfig, rows: DedupRows, dst: Path, memory: Path, evaluation: EvalTexts | None, shared: SharedText
) -> DedupDecisions:
    # Clusters are saved before any output depends on them.
    labels = cluster_subjects(rows)
    settled = load_clusters(rows.documents, memory, _decision_settings(config))
    had_row = _was_in_output(rows, dst)
    # Without a last output, every stored document counts as one of its documents.
    rows.documents.was_in_output[:] = rows.documents.known
    if had_row is not None:
        rows.documents.was_in_output[:] = np.isin(np.arange(len(rows.documents.ids)), rows.document[had_row])
    assign_document_splits(rows, labels, config)
    before = np.zeros(len(rows), np.bool_) if had_row is None else had_row
    verdicts = decide_rows(rows, config, before, settled, labels, evaluation)
    save_clusters(rows.documents, memory, _decision_settings(config), shared)
    return verdicts


def _was_in_output(rows: DedupRows, dst: Path) -> npt.NDArray[np.bool_] | None:
    """Per row, whether the last output contains it; None without a complete output."""
    # The output is replaced as a whole, so it need not be sealed.
    if not dst.is_file():
        return None
    try:
        before = [
            digest_keys(digest_ids(batch["sample_id"].to_pylist()))
            for batch in read_batches(dst, TABLES["raw_dataset"], columns=["sample_id"])
        ]
    except InputError:
        return None
    return np.isin(rows.samples, np.concatenate([np.zeros(0, np.uint64), *before]))


def _write_batch(
    batch: pa.Table,
    start: int,
    rows: DedupRows,
    verdicts: DedupDecisions,
    evidence: ContaminationEvidence,
    kept: TableWriter,
    out: TableWriter,
) -> None:
    reasons = verdicts.reason[start : start + batch.num_rows]
    good, bad = np.flatnonzero(reasons == 0), np.flatnonzero(reasons)
    documents = rows.document[start + good]
    names = [name.tobytes().hex() for name in rows.documents.names[documents]]
    sides = [SPLITS[side] for side in rows.documents.sides[documents]]
    kept.write(
        batch.take(good)
        .drop_columns(["document_id", "raw_split"])
        .append_column(INPUTS.field("cluster_id"), pa.array(names, pa.string()))
        .append_column(INPUTS.field("split"), pa.array(sides, pa.string()))
    )
    evidence.add_batch(start, batch)
    matched, detail = [], []
    for row in (start + bad).tolist():
        matched.append(evidence.match_name(row))
        detail.append(
            evidence.shared_words(row)
            if verdicts.reason[row] == CONTAMINATED
            else _explain_refusal(rows, row)
            if verdicts.reason[row] == JOINS_SPLITS
            else None
        )
    added = {"rejection_reason": [REASONS[code] for code in reasons[bad]], "matched": matched, "detail": detail}
    rows_out = batch.take(bad)
    for name, values in added.items():
        rows_out = rows_out.append_column(REJECTED_INPUTS.field(name), pa.array(values, pa.string()))
    out.write(rows_out)


def _explain_refusal(rows: DedupRows, row: int) -> str | None:
    document = int(rows.document[row])
    if rows.raw_splits[row] < 0 or document in rows.documents.refused:
        return rows.documents.refused.get(document)
    own, side = SPLITS[rows.raw_splits[row]], SPLITS[rows.documents.sides[document]]
    return f"the raw data names {own}, and near-duplicates {side}"


def _first_rows(src: Path, limit: int | None, columns: list[str] | None = None) -> Iterator[pa.Table]:
    remaining = limit
    for batch in read_batches(src, SOURCE, columns=columns, batch_rows=BATCH_ROWS):
        yield batch.slice(0, remaining)
        remaining = None if remaining is None else remaining - batch.num_rows
        if remaining is not None and remaining <= 0:
            return


def main() -> None:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--src", type=Path, metavar="FILE", help="default: storage.canonical")
    parser.add_argument("--dst", type=Path, metavar="FILE", help="default: storage.raw_dataset")
    parser.add_argument("--limit", type=cli.positive_int, metavar="N", help="first N canonical prompts")
    args = parser.parse_args()
    run(load_config(args.config), args.src, args.dst, args.limit)


if __name__ == "__main__":
    cli.run(main)
