"""Teacher cache: the teacher's k most likely tokens at each trained token of the kept rows.

Reads:  `storage.sft_parquet` (train and val rows), the teacher model, the student's tokenizer
Writes: `storage.teacher_logits` (contracts.TEACHER_LOGITS), sealed. While it runs, parts beside it,
        from which the same command continues after any stop. Rows of an earlier table with the
        same tokens are reused
Size:   6 bytes per token and kept alternative and 2 for the tail, before compression
Raises: InputError (65) for a teacher with another tokenizer, whose token ids mean other words

Run: python -m nexa_train.teacher_logits --config configs/baseline_distill.yaml
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.settings.pipeline import Storage
from nexa_distill.settings.student import StudentConfig, load_both
from nexa_distill.storage.manifests import StageRun, load_manifest, sha256_path
from nexa_distill.storage.tables import read_table, table_writer
from nexa_distill.text.hashing import compact_json, sha256_text
from nexa_train.data.chat_tokenization import Sample
from nexa_train.training.teacher_cache import TABLE, logits_rows, refuse_other_vocabulary, tokens_hash

PART_SAMPLES = 32  # samples of a part: the most that a kill can lose


def run(config: StudentConfig, storage: Storage, dataset: Path) -> Path:
    """Write the table unless it is up to date; returns its path. Raises as the module does."""
    from nexa_train.models.bundled import resolve_model
    from nexa_train.models.folders import one_writer

    dst = storage.path_of("teacher_logits")
    dst.parent.mkdir(parents=True, exist_ok=True)
    bases = [resolve_model(name, storage) for name in (config.distillation.teacher, config.student)]
    # The teacher's: of the student only the tokenizer is read, and rows are compared by tokens.
    weights = [Path(base) for base in bases[:1] if Path(base).is_dir()]
    stage = StageRun("teacher_logits", storage, inputs=[dataset, *weights], settings=config.logits_settings())
    # Every process of a distributed training calls this: one writes, the others wait.
    with one_writer(dst):
        if stage.is_current(dst):
            print(f"teacher logits: {dst} is up to date", flush=True)
        else:
            _compute_table(config, stage, dataset, dst, *bases)
    return dst


def _compute_table(
    config: StudentConfig, stage: StageRun, dataset: Path, dst: Path, teacher: str, student: str
) -> None:
    from nexa_train.data.collate import make_collate
    from nexa_train.data.dataset import load_dataset
    from nexa_train.data.vocabulary import vocabulary_size
    from nexa_train.models.loading import context_length, load_for_inference, load_student_tokenizer

    model, theirs = load_for_inference(teacher)
    tokenizer = load_student_tokenizer(student, config)
    refuse_other_vocabulary(theirs, tokenizer)
    data = load_dataset(dataset, tokenizer, config.longest_row(context_length(student)))
    samples = [*data.train, *data.val]
    batch_of = make_collate(model, theirs, samples, packed=config.train.packing)
    reused = _reusable_rows(stage, dst, samples)
    names = set(reused["sample_id"].to_pylist())
    missing = [sample for sample in samples if sample.sample_id not in names]
    # Parts are named by the remaining work: a resumed run finds its own ones only.
    work = sha256_text(compact_json([stage.resume_key, [sample.sample_id for sample in missing]]))
    vocabulary = vocabulary_size(tokenizer)
    parts = dst.with_name(f".{dst.stem}.parts") / work[:16]
    with Progress("teacher logits", len(samples), unit="samples", done=len(names)) as progress:
        for number, start in enumerate(range(0, len(missing), PART_SAMPLES)):
            some, part = missing[start : start + PART_SAMPLES], parts / f"{number:06d}.parquet"
            if not part.exists():
                _write_part(part, logits_rows(config, model, some, batch_of, vocabulary))
            progress.add(len(some))
    # All parts are complete: join them with the reused rows.
    with table_writer(dst, TABLE.schema) as out:
        out.write(reused)
        for part in sorted(parts.glob("*.parquet")):
            out.write(pq.read_table(part))
    skipped = sum(data.skipped.values())
    stage.seal_output(dst, rows_in=len(samples) + skipped, rejected=skipped)
    if parts.parent.exists():  # not if every row was reused
        shutil.rmtree(parts.parent)
    tokens = sum(sample.trained_tokens for sample in samples)
    size = dst.stat().st_size / max(1, tokens)
    print(
        f"teacher logits: {tokens:,} tokens of {len(samples)} samples -> {dst} ({size:.0f} bytes per token)", flush=True
    )


def _write_part(part: Path, batches: Iterator[list[dict[str, Any]]]) -> None:
    with table_writer(part, TABLE.schema) as out:
        for rows in batches:
            out.write(pa.Table.from_pylist(rows, schema=TABLE.schema))


def _reusable_rows(stage: StageRun, dst: Path, samples: Sequence[Sample]) -> pa.Table:
    manifest = load_manifest(dst, stage.storage)
    # Input 0 is the dataset, whose rows are compared one by one below.
    teacher = [item["sha256"] for item in stage.inputs[1:]]
    # After another teacher, other settings or a change of the file nothing is reused.
    if (
        manifest is None
        or manifest["config_sha256"] != stage.config_sha256
        or [item["sha256"] for item in manifest["inputs"][1:]] != teacher
        or not dst.exists()
        or manifest["sha256"] != sha256_path(dst)
    ):
        return TABLE.schema.empty_table()
    table = read_table(dst, TABLE)
    hashes = {sample.sample_id: tokens_hash(sample) for sample in samples}
    pairs = zip(*(table[name].to_pylist() for name in ("sample_id", "tokens_sha256")), strict=True)
    return table.filter(pa.array([hashes.get(name) == row for name, row in pairs], pa.bool_()))


def main() -> None:
    parser = cli.build_student_parser(__doc__)
    parser.add_argument("--dataset", type=Path, help="default: storage.sft_parquet")
    arguments = parser.parse_args()
    pipeline, config = load_both(arguments)
    run(config, pipeline.storage, arguments.dataset or pipeline.storage.path_of("sft_parquet"))


if __name__ == "__main__":
    cli.run(main)
