"""Packaging: kept answers to training samples.

Reads   filtered_dataset (contracts.OUTPUTS), the teacher's system prompt
Writes  sft_parquet (contracts.SFT), sft_jsonl and splits/{train,val,test}.jsonl (the same samples,
        one JSON object per line, "" for null; a split without samples has no file),
        training/README.md (the dataset card), and with --format another form beside sft_jsonl
Keeps   every row, in order; a sample is a pure function of its row and the system prompt
Raises  InputMissing (66) for an absent, unsealed or stale input, InputError (65) if there is
        nothing to train on, QualityGateMissed (3) if the kept answers miss a quality gate

    python -m nexa_distill.to_sft --format sharegpt

The messages equal the student's messages at inference: the row's system prompt, or the
collection's, the user prompt, and the answer; with `packaging.reasoning: keep` preceded by the
teacher's reasoning (`text/reasoning.py`). SampleGate has already merged the repairs; `--regen` adds
a table that passed the gates elsewhere, and the higher attempt of a sample is used.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from nexa_distill.collection.requests.body import row_messages
from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import REASONS, SFT, TABLES
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.gating import quality_gates
from nexa_distill.reporting.dataset_card import write_card
from nexa_distill.settings.filters import load_filter_config
from nexa_distill.settings.pipeline import DistillConfig, Reasoning, Storage, load_config
from nexa_distill.settings.tasks import load_system_prompts
from nexa_distill.storage.atomic import replace_atomically, sync_folder
from nexa_distill.storage.manifests import StageRun, is_sealed, refuse_stale, refuse_unapplied
from nexa_distill.storage.tables import read_batches, read_values, table_writer
from nexa_distill.text.reasoning import join_reasoning, split_reasoning

SOURCE = TABLES["filtered_dataset"]
GATES = "`python scripts/python/data_processing/run_filtering.py`"
SPLITS = ("train", "val", "test")
BATCH_ROWS = 4096
Record = dict[str, Any]
# Characters that some readers treat as a line end, or that UTF-8 cannot encode.
UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def build_record(row: Mapping[str, Any], system_prompt: str | None, reasoning: Reasoning = "drop") -> Record:
    """One training sample (contracts.SFT) of one kept answer.

    `system_prompt` is the collection's; the row's own takes precedence. Without either there is no
    system message. The answer is stripped, so the target ends with its last token. Raises
    InputError for a row without an answer.
    """
    if row["teacher_output"] is None:
        raise InputError(f"sample_id {row['sample_id']}: no answer to train on; run the rules on it")
    target = row["teacher_output"] if reasoning == "drop" else with_reasoning(row)
    messages = [*row_messages(row, system_prompt), assistant_message(target)]
    names = ("split", "template_name", "domain", "model_id", "attempt", "repaired_reason")
    return {"sample_id": row["sample_id"], "messages": messages} | {n: row[n] for n in names}


def with_reasoning(row: Mapping[str, Any]) -> str:
    # Reasoning that contains its own end mark at the beginning of a line could not be separated
    # from the answer again: such a row keeps only its answer.
    thought, answer = (row["reasoning_output"] or "").strip(), str(row["teacher_output"]).strip()
    target = join_reasoning(thought, answer)
    return target if split_reasoning(target) == (thought, answer) else answer


def assistant_message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text.strip()}


def json_line(record: Mapping[str, Any]) -> str:
    """The record as JSON on exactly one line, for readers with any definition of a line end."""
    text = json.dumps(record, ensure_ascii=False)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def without_nulls(record: Record) -> Record:
    # `datasets` takes the types of a JSON file from its first 10 MB. A column that is null there,
    # and a text later, cannot be loaded (huggingface/datasets#7222).
    return {name: "" if value is None else value for name, value in record.items()}


def _to_input_output(record: Record) -> Record:
    *prompt, answer = record["messages"]
    return {"input": "\n\n".join(m["content"] for m in prompt), "output": answer["content"]}


def _to_alpaca(record: Record) -> Record:
    *before, user, answer = record["messages"]
    system = "\n\n".join(m["content"] for m in before)
    return {
        "instruction": system or user["content"],
        "input": user["content"] if system else "",
        "output": answer["content"],
    }


def _to_sharegpt(record: Record) -> Record:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in record["messages"]]
    return {"id": record["sample_id"], "conversations": turns}


FORMATS: dict[str, Callable[[Record], Record] | None] = {
    "messages": None,
    "input_output": _to_input_output,
    "alpaca": _to_alpaca,
    "sharegpt": _to_sharegpt,
}


class SampleWriters:
    """The open output files; they replace the old ones only if the block ends without an error."""

    def __init__(self, files: ExitStack, parquet: Path, jsonl: Path, splits: Path, form: str):
        self.files, self.splits = files, splits
        self.table = files.enter_context(table_writer(parquet, SFT))
        self.lines = self._open_file(jsonl)
        self.convert = FORMATS[form]
        self.exported = self._open_file(export_path(jsonl, form)) if self.convert else None
        self.by_split: dict[str, IO[str]] = {}

    def _open_file(self, path: Path) -> IO[str]:
        temporary = self.files.enter_context(replace_atomically(path))
        # The same bytes on every system.
        return self.files.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))

    def write_samples(self, records: Sequence[Record]) -> None:
        self.table.write(pa.Table.from_pylist(list(records), schema=SFT))
        for record in records:
            split, line = record["split"], json_line(without_nulls(record))
            if split not in self.by_split:
                self.by_split[split] = self._open_file(self.splits / f"{split}.jsonl")
            self.lines.write(line)
            self.by_split[split].write(line)
            if self.convert and self.exported:
                self.exported.write(json_line(self.convert(record)))


def export_path(jsonl: Path, form: str) -> Path:
    return jsonl.with_name(f"{jsonl.stem}.{form}.jsonl")


def _kept_rows(src: Path, regen: Path | None, columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Kept answers in batches: of `src` what `regen` does not replace, then those of `regen`."""
    older, newer = (_attempt_by_sample(src) if regen else {}, _attempt_by_sample(regen) if regen else {})
    for rows in read_batches(src, SOURCE, batch_rows=BATCH_ROWS, columns=columns):
        yield [r for r in rows.to_pylist() if newer.get(r["sample_id"], -1) <= r["attempt"]]
    for rows in read_batches(regen, SOURCE, batch_rows=BATCH_ROWS, columns=columns) if regen else ():
        yield [r for r in rows.to_pylist() if older.get(r["sample_id"], -1) < r["attempt"]]


def _attempt_by_sample(path: Path) -> dict[str, int]:
    return dict(read_values(path, SOURCE, "sample_id", "attempt"))


def settings(config: DistillConfig) -> dict[str, Any]:
    """The values that determine the samples, besides the kept answers."""
    gates = load_filter_config(config.filters).quality_gates.model_dump()
    system = load_system_prompts(config).relevant_settings
    return {"system_prompt": system, "quality_gates": gates, "reasoning": config.packaging.reasoning}


def _check_inputs(src: Path, regen: Path | None, storage: Storage) -> None:
    if regen and not regen.exists():
        raise InputMissing(f"{regen}: no such file")
    if regen and not is_sealed(regen, SOURCE, storage):
        raise InputError(
            f"{regen}: these answers have not passed the gates. Answers that an annotator wants "
            "regenerated: `python scripts/python/data_processing/run_regeneration.py --annotations "
            f"FILE` asks, checks and merges them; other tables: {GATES} checks them and keeps the "
            "best attempt of each sample. Then run this command without --regen"
        )
    if storage.key_of(src) == "filtered_dataset":
        refuse_stale(src, storage)


def _empty_error(src: Path, splits: Mapping[str, int], storage: Storage) -> InputError:
    rejections = storage.path_of("rejections")
    counts: Counter[str] = Counter()
    if rejections.exists():
        for rows in read_batches(rejections, TABLES["rejections"], columns=["rejection_reason"]):
            counts.update(rows["rejection_reason"].to_pylist())
    rejected = "; ".join(f"{n} {why} ({REASONS[why].meaning})" for why, n in counts.most_common(3))
    kept = ", ".join(f"{splits.get(name, 0)} {name}" for name in SPLITS)
    return InputError(
        f"{src}: nothing to train on: {kept} samples. Rejected: {rejected or 'nothing'}. "
        f"Read {rejections}, change the thresholds in the filters file (configs/filters.yaml), "
        "then run `python scripts/python/data_processing/run_filtering.py` again"
    )


def _count_splits(src: Path, regen: Path | None) -> Counter[str]:
    counts: Counter[str] = Counter()
    for rows in _kept_rows(src, regen, ["sample_id", "attempt", "split"]):
        counts.update(row["split"] for row in rows)
    unknown = counts.keys() - set(SPLITS)
    if unknown:
        raise InputError(f"{src}: split is {sorted(unknown)}, expected one of {', '.join(SPLITS)}")
    return counts


def _write_samples(
    rows: Iterator[list[dict[str, Any]]], writers: SampleWriters, config: DistillConfig, progress: Progress
) -> None:
    prompts, reasoning = load_system_prompts(config), config.packaging.reasoning
    for batch in rows:
        records = [build_record(row, prompts.find_prompt(row["template_name"]), reasoning) for row in batch]
        writers.write_samples(records)
        progress.add(len(batch))


def _remove_empty_splits(splits: Path, counts: Mapping[str, int]) -> None:
    for name in SPLITS:
        if not counts.get(name):
            # A file of an earlier run has samples that are in no split now.
            (splits / f"{name}.jsonl").unlink(missing_ok=True)
    sync_folder(splits)


def run(
    config: DistillConfig,
    *,
    src: Path | None = None,
    regen: Path | None = None,
    dst_jsonl: Path | None = None,
    dst_parquet: Path | None = None,
    form: str = "messages",
) -> Counter[str] | None:
    """Write the training samples; returns the samples per split, or None when up to date."""
    storage = config.storage
    src = src or storage.path_of("filtered_dataset")
    jsonl = dst_jsonl or storage.path_beside(dst_parquet, "jsonl", storage.path_of("sft_jsonl"))
    parquet = dst_parquet or storage.path_beside(dst_jsonl, "parquet", storage.path_of("sft_parquet"))
    splits = storage.path_beside(jsonl, "splits", storage.path_of("splits"))
    card = storage.path_beside(parquet, "README.md", parquet.with_name("README.md"))
    _check_inputs(src, regen, storage)
    if storage.key_of(src) == "filtered_dataset":
        quality_gates.enforce_gates(config)
    inputs = [src, regen] if regen else [src]
    stage = StageRun("packaging", storage, inputs=inputs, settings=settings(config))
    outputs = [jsonl, splits, parquet]
    if FORMATS[form]:
        outputs.insert(0, export_path(jsonl, form))
    if stage.is_current(*outputs) and card.exists():
        print(f"packaging: {parquet} is up to date")
        return None
    counts = _count_splits(src, regen)
    if not counts["train"]:
        raise _empty_error(src, counts, storage)
    with ExitStack() as files, Progress("packaging", counts.total()) as progress:
        writers = SampleWriters(files, parquet, jsonl, splits, form)
        _write_samples(_kept_rows(src, regen), writers, config, progress)
    _remove_empty_splits(splits, counts)
    write_card(card, parquet, config)
    for path in outputs:
        stage.seal_output(path, rows_in=counts.total(), rejected=0, count=counts.total())
    print(f"packaging: {counts.total()} samples in {parquet}; card: {card}")
    return counts


def run_packaging(args: argparse.Namespace) -> Counter[str] | None:
    """Package by the command's options; those that `args` leaves out are the configuration's."""
    args = _build_parser().complete_options(args)
    return run(
        load_config(args.config),
        src=args.src,
        regen=args.regen,
        dst_jsonl=args.dst_jsonl,
        dst_parquet=args.dst_parquet,
        form=args.format,
    )


def _build_parser() -> cli.Parser:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--src", type=Path, help="kept answers (contracts.OUTPUTS)")
    parser.add_argument("--regen", type=Path, help="more kept answers, gated elsewhere")
    parser.add_argument("--dst-jsonl", type=Path, help="samples, one per line")
    parser.add_argument("--dst-parquet", type=Path, help="samples (contracts.SFT)")
    parser.add_argument("--format", choices=FORMATS, default="messages", help="also export as")
    return parser


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; without arguments everything comes from the configuration."""
    return _build_parser().parse_args(argv)


def main() -> None:
    """Run the stage. Refuses if human decisions are not applied: run alone it cannot apply them."""
    args = arguments()
    if args.src is None:
        refuse_unapplied(load_config(args.config).storage, GATES)
    run_packaging(args)


if __name__ == "__main__":
    cli.run(main)
