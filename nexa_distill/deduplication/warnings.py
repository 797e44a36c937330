"""Warn about surprising results of dedup before anything is paid.

Reads `storage.raw_dataset` and `storage.rejected_inputs`; prints, and writes nothing.
"""

from pathlib import Path

from nexa_distill.contracts import SPLITS, TABLES
from nexa_distill.deduplication.assignment import CONTAMINATED, JOINS_SPLITS, DedupDecisions, DedupRows
from nexa_distill.deduplication.shared_text import SharedText
from nexa_distill.deduplication.splits import split_of_cluster
from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.tables import read_batches

WARN_SHARE = 0.2  # of the training rows, 0..1
FEW, SEEDS = 50, 1000  # documents for which a seed is looked for, and how many are tried
SHOWN = 60  # characters of an instruction
WAY_OUT = (
    "raise dedup.contamination_words, lower dedup.contamination_common (a run that occurs more "
    "often is boilerplate), or set contamination_words: null"
)


def print_warnings(config: DistillConfig, rows: DedupRows, verdicts: DedupDecisions, shared: SharedText) -> None:
    for text, count in shared.reported:
        print(
            f"dedup: {count} of {len(rows)} prompts have a text in common "
            f"({text[:SHOWN]!r}): it is taken for an instruction, and they are compared without "
            "it. Move it to the column system_prompt"
        )
    if rows.has_raw_splits and (refused := int((verdicts.reason == JOINS_SPLITS).sum())):
        print(
            f"dedup: {refused} of {len(rows)} rows are near-duplicates of rows that column {config.split.column} "
            "puts into a more held-out split (train < val < test): those stay, these are left out"
        )
    lost = verdicts.reason == CONTAMINATED
    train = rows.documents.sides[rows.document] == SPLITS.index("train")
    # Of the rows that would be trained on: the lost ones and the kept ones.
    count, of = int(lost.sum()), int((lost | (train & (verdicts.reason == 0))).sum())
    if count > of * WARN_SHARE:
        print(
            f"dedup: {count} of {of} training rows ({count / of:.0%}) are contaminated and left "
            f"out: {_contamination_cause(config)}. If that is only wording that many prompts have, {WAY_OUT}"
        )


def require_both_sides(config: DistillConfig) -> None:
    """Raises InputError, before anything is paid, if the train or the test split is empty."""
    path, split = config.storage.path_of("raw_dataset"), config.split
    batches = read_batches(path, TABLES["raw_dataset"], columns=["split"])
    present = {side for batch in batches for side in batch["split"].unique().to_pylist()}
    required = {"train"} | ({"test"} if split.test else set())
    if missing := sorted(required - present):
        if "train" in missing and (reason := _why_no_training_rows(config)):
            raise InputError(f"{path}: {reason}")
        if split.column:
            raise InputError(
                f"{path}: column {split.column} of the raw data puts no row into {' or '.join(missing)} that dedup "
                "keeps, or is not there and no document falls into it; take more input (--limit), or change split:"
            )
        raise InputError(
            f"{path}: no document falls into {' or '.join(missing)} (shares: val {split.val}, "
            f"test {split.test}); take more input (--limit), or change split:{_suggest_seed(config, required)}"
        )


def _suggest_seed(config: DistillConfig, required: set[str]) -> str:
    """Part of a sentence with a seed that puts one of few documents into each required split, or empty."""
    batches = read_batches(config.storage.path_of("raw_dataset"), TABLES["raw_dataset"], columns=["cluster_id"])
    clusters = {name for batch in batches for name in batch["cluster_id"].unique().to_pylist()}
    for seed in range(SEEDS if len(clusters) <= FEW else 0):
        split = config.split.model_copy(update={"seed": seed})
        if required <= {split_of_cluster(name, split) for name in clusters}:
            return f" `split: {{seed: {seed}}}` in your configuration would do for these {len(clusters)} documents"
    return ""


def _why_no_training_rows(config: DistillConfig) -> str | None:
    path = config.storage.path_of("rejected_inputs")
    batches = read_batches(path, TABLES["rejected_inputs"], columns=["rejection_reason"])
    lost = sum(batch["rejection_reason"].to_pylist().count("contaminated") for batch in batches)
    if not lost:
        return None
    return (
        f"nothing remains to train on: all {lost} training rows (100 %) are contaminated: "
        f"{_contamination_cause(config)}. If that is only wording that many prompts have, {WAY_OUT}"
    )


def _contamination_cause(config: DistillConfig) -> str:
    page: Path = config.storage.path_of("reports") / "dedup/contamination.md"
    return (
        f"they share {config.dedup.contamination_words} or more words in a row with held-out rows "
        f"or dedup.eval_files, as {page} shows"
    )
