"""What the teacher would say at each trained token of the kept rows: its k most likely tokens.

Reads:  `storage.sft_parquet` (train and val rows), the teacher model, the student's tokenizer
Writes: `storage.teacher_logits` (contracts.TEACHER_LOGITS), sealed. While it runs, parts beside it,
        from which the same command continues after any stop. Rows that an earlier table has for
        the same tokens are taken from it: only new ones are computed
Size:   6 bytes per token and kept alternative and 2 for the tail, before compression
Raises: InputError (65) for a teacher with another tokenizer, whose token ids mean other words

The distribution is the teacher's at `distillation.temperature`: the tail of another temperature
could not be told from k tokens. `CachedTeacher` gives it back, and refuses a row whose tokens are
not those of the sample that is trained on.

    python -m nexa_train.teacher_logits --config configs/baseline_distill.yaml
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.settings.pipeline import Storage, load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.manifests import StageRun, load_manifest, sha256_path
from nexa_distill.storage.tables import read_table, table_writer
from nexa_distill.text.hashing import compact_json, sha256_text
from nexa_train.data.chat_tokenization import Sample
from nexa_train.training.teacher_cache import TABLE, refuse_other_vocabulary, rows_of, tokens_hash

if TYPE_CHECKING:
    pass

PART = 32  # samples of a part: what a kill can cost


def run(config: StudentConfig, storage: Storage, dataset: Path) -> Path:
    """Make the table, unless it is up to date; returns its path. One process does it, others wait.

    Raises as the module says.
    """
    from nexa_train.models.bundled import resolve_model
    from nexa_train.models.folders import one_writer

    dst = storage.path("teacher_logits")
    dst.parent.mkdir(parents=True, exist_ok=True)
    bases = [resolve_model(name, storage) for name in (config.distillation.teacher, config.student)]
    weights = [Path(base) for base in bases[:1] if Path(base).is_dir()]
    stage = StageRun(
        "teacher_logits", storage, inputs=[dataset, *weights], settings=config.logits_settings()
    )
    with one_writer(dst):
        if stage.is_current(dst):
            print(f"teacher logits: {dst} is up to date", flush=True)
        else:
            _make(config, stage, dataset, dst, *bases)
    return dst


def _make(
    config: StudentConfig, stage: StageRun, dataset: Path, dst: Path, teacher: str, student: str
) -> None:
    from nexa_train.data.collate import batching
    from nexa_train.data.dataset import load_dataset
    from nexa_train.data.vocabulary import vocabulary_size
    from nexa_train.models.loading import context_of, load_for_inference, load_student_tokenizer

    model, theirs = load_for_inference(teacher)
    tokenizer = load_student_tokenizer(student, config)
    refuse_other_vocabulary(theirs, tokenizer)
    data = load_dataset(dataset, tokenizer, config.longest(context_of(student)))
    samples = [*data.train, *data.val]
    batch_of = batching(model, theirs, samples, packed=config.train.packing)
    known = _earlier(stage, dst, samples)
    names = set(known["sample_id"].to_pylist())
    left = [sample for sample in samples if sample.sample_id not in names]
    work = sha256_text(compact_json([stage.key, [sample.sample_id for sample in left]]))
    vocabulary = vocabulary_size(tokenizer)
    parts = dst.with_name(f".{dst.stem}.parts") / work[:16]
    with Progress("teacher logits", len(samples), unit="samples", done=len(names)) as progress:
        for number, start in enumerate(range(0, len(left), PART)):
            some, part = left[start : start + PART], parts / f"{number:06d}.parquet"
            if not part.exists():
                _write(part, rows_of(config, model, some, batch_of, vocabulary))
            progress.add(len(some))
    with table_writer(dst, TABLE.schema) as out:
        out.write(known)
        for part in sorted(parts.glob("*.parquet")):
            out.write(pq.read_table(part))
    skipped = sum(data.skipped.values())
    stage.seal(dst, rows_in=len(samples) + skipped, rejected=skipped)
    if parts.parent.exists():  # not when every row was known
        shutil.rmtree(parts.parent)
    tokens = sum(sample.trained_tokens for sample in samples)
    print(f"teacher logits: {tokens:,} tokens of {len(samples)} samples -> {dst} "
          f"({dst.stat().st_size / max(1, tokens):.0f} bytes per token)", flush=True)  # fmt: skip


def _write(part: Path, batches: Iterator[list[dict[str, Any]]]) -> None:
    with table_writer(part, TABLE.schema) as out:
        for rows in batches:
            out.write(pa.Table.from_pylist(rows, schema=TABLE.schema))


def _earlier(stage: StageRun, dst: Path, samples: Sequence[Sample]) -> pa.Table:
    """Rows of the table that is there: of these samples' tokens, by this teacher and settings."""
    manifest = load_manifest(dst, stage.storage)
    teacher = [item["sha256"] for item in stage.inputs[1:]]
    if (
        manifest is None
        or manifest["config_sha256"] != stage.config_sha256
        or [item["sha256"] for item in manifest["inputs"][1:]] != teacher
        or not dst.exists()
        or manifest["sha256"] != sha256_path(dst)
    ):
        return TABLE.schema.empty_table()
    table = read_table(dst, TABLE)
    wanted = {sample.sample_id: tokens_hash(sample) for sample in samples}
    made = zip(*(table[name].to_pylist() for name in ("sample_id", "tokens_sha256")), strict=True)
    return table.filter(pa.array([wanted.get(name) == digest for name, digest in made], pa.bool_()))


def main() -> int:
    """Command line."""
    parser = cli.student_parser(__doc__)
    parser.add_argument("--dataset", type=Path, help="default: storage.sft_parquet")
    arguments = parser.parse_args()
    storage = load_config(arguments.pipeline_config).storage
    config = load_yaml(arguments.config, StudentConfig)
    run(config, storage, arguments.dataset or storage.path("sft_parquet"))
    return 0


if __name__ == "__main__":
    cli.run(main)
