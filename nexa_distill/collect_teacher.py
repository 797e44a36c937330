"""Collect the teacher's answers: `collection.samples` per prompt.

Reads:  `storage.raw_dataset` (or --src: a Parquet of contracts.INPUTS, columns named by flags, or
        any raw file of prompts: `raw_data/handed_in_prompts.py`)
Writes: `storage.collected_dataset` (contracts.OUTPUTS, attempts 0, 1, ...), `storage.unanswered`
Keeps:  rows_in == answered + unanswered; also truncated and empty answers, which the rules reject

With `answers.path` (--answers FILE), or if the raw data contains answers beside its prompts, they are
read from there and no request is sent.

Every request is in `storage.journal`/teacher.sqlite before it is sent. To continue after any stop,
run the same command: it sends only the missing requests.

Run: python -m nexa_distill.collect_teacher [--provider NAME] [--dry-run]
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.collection.answer_file import write_answers
from nexa_distill.collection.answers.extraction import build_cleaner
from nexa_distill.collection.capabilities import schema_warning
from nexa_distill.collection.collector import (
    BATCH_ROWS,
    MAX_PROMPT_BYTES,
    CollectionSummary,
    Collector,
    Rows,
    has_unreadable_answers,
)
from nexa_distill.collection.requests.body import PromptRequest, prompt_request, request_body
from nexa_distill.console import cli
from nexa_distill.contracts import INPUTS, TABLES, Row
from nexa_distill.cost.estimate_text import print_estimate
from nexa_distill.deduplication.warnings import require_both_sides
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.raw_data.handed_in_prompts import prepare_prompts
from nexa_distill.raw_data.input_reading import settle_input
from nexa_distill.settings.pipeline import DistillConfig, load_config, load_with_options, with_address
from nexa_distill.settings.tasks import load_system_prompts
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import UniqueKeys, open_table, read_batches
from nexa_distill.text.json_schemas import load_schemas

if TYPE_CHECKING:
    import pandas as pd

INPUTS_TABLE = TABLES["raw_dataset"]


def teacher_model(config: DistillConfig) -> str:
    return config.collection.teacher_model or config.chosen_provider()[1].model


def resolve_prompt(row: Mapping[str, Any]) -> str:
    """The user message of a row, complete: `canonicalize` has filled the task's template.

    Raises InputError naming the sample when it is empty.
    """
    prompt = row["user_prompt"]
    if not prompt.strip():
        raise InputError(f"sample {row['sample_id']}: user_prompt is empty, expected text")
    return str(prompt)


def request_maker(config: DistillConfig) -> Callable[[Row], list[PromptRequest]]:
    """A function from a row to its `collection.samples` requests, attempts 0, 1, ..."""
    prompts, model = load_system_prompts(config), teacher_model(config)
    provider, samples = config.chosen_provider()[1], config.collection.samples
    schemas = load_schemas(config.collection.response_schemas)

    def requests_of(row: Row) -> list[PromptRequest]:
        system = row["system_prompt"] or prompts.find_prompt(row["template_name"]) or ""
        extra = schemas.request_options(row["template_name"]) | provider.extra_body
        body = request_body(system, resolve_prompt(row), model, config, provider, extra)
        return [prompt_request(row["sample_id"], body, attempt=index, index=index) for index in range(samples)]

    return requests_of


def build_requests(
    rows: "pd.DataFrame | Iterable[Mapping[str, Any]]", config: DistillConfig | None = None
) -> list[PromptRequest]:
    """The requests of rows of contracts.INPUTS, `collection.samples` each. Sends nothing.

    A row needs `sample_id` and `user_prompt`. `config`: default is the file that `--config` defaults to.
    Raises InputError naming the row and the column.
    """
    config = config or load_config(cli.DEFAULT_CONFIG)
    records = _frame_rows(rows) if hasattr(rows, "itertuples") else rows
    blank = dict.fromkeys(INPUTS.names) | {"template_name": config.defaults.task_type}
    make_requests, requests = request_maker(config), list[PromptRequest]()
    for number, record in enumerate(records):
        if absent := [name for name in ("sample_id", "user_prompt") if not isinstance(record.get(name), str)]:
            raise InputError(f"row {number}: {absent[0]} is {record.get(absent[0])!r}, expected text")
        requests += make_requests(blank | {name: value for name, value in record.items() if value is not None})
    return requests


def _frame_rows(frame: Any) -> list[Row]:
    # Through Arrow, because pandas has NaN for an absent text.
    rows: list[Row] = pa.Table.from_pandas(frame, preserve_index=False).to_pylist()
    return rows


def settings(config: DistillConfig) -> dict[str, Any]:
    """The values that determine the answers table, besides the inputs and the journal."""
    provider = config.chosen_provider()[1]
    price = provider.prices.get(teacher_model(config))
    return {
        "model": teacher_model(config),
        "system_prompt": load_system_prompts(config).relevant_settings,
        "decoding": config.collection.model_dump(
            include={"max_tokens", "temperature", "max_samples", "samples", "on_uncertain"}
        ),
        "extra_body": provider.extra_body,
        **provider.dialect_changes,
        "response_schemas": load_schemas(config.collection.response_schemas).schemas,
        "price": price and price.model_dump(),
        **build_cleaner(config).relevant_settings,
        "answers": config.answers.model_dump(exclude={"path"}) if config.answers.path else None,
    }


def run(
    config: DistillConfig,
    src: Path | None = None,
    dst: Path | None = None,
    *,
    dry_run: bool = False,
    retry_failed: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> CollectionSummary | None:
    """Collect an answer to every row of `src`; None if there was nothing to do.

    `renamed`: contract column -> its name in `src`, for a user's own file. Errors as those of the
    `ApiClient.send_all`.
    """
    storage, name = config.storage, config.chosen_provider()[0]
    src, renamed = prepare_prompts(src or storage.path_of("raw_dataset"), config, renamed or {})
    unanswered = storage.path_of("unanswered")
    if dst:
        unanswered = dst.with_name(f"{dst.stem}.unanswered.parquet")
    dst = dst or storage.path_of("collected_dataset")
    open_table(src, INPUTS_TABLE, renamed)  # before it is hashed, which would not end for a pipe
    inputs = [src, Path(config.answers.path)] if config.answers.path else [src]
    values = settings(config) | ({"renamed": dict(renamed)} if renamed else {})
    stage = StageRun("teacher", storage, inputs=inputs, settings=values)
    current = stage.is_current(dst, unanswered) and not has_unreadable_answers(unanswered)
    if current and not retry_failed:
        print(f"teacher: {dst} is up to date")
        return None
    if config.answers.path:
        write_answers(config, src, dst, unanswered, stage)
        return None
    collector = build_collector(config, src, renamed, retry_failed=retry_failed)
    if warning := schema_warning(config, name, collector.model):
        print(f"teacher: {warning}")
    if dry_run:
        print_estimate(collector)
        return None
    summary = collector.run(stage, dst, unanswered)
    summary.print_summary("teacher", name, dst, unanswered)
    return summary


def build_collector(
    config: DistillConfig, src: Path, renamed: Mapping[str, str] | None = None, *, retry_failed: bool = False
) -> Collector:
    total, rows, too_large = _validate_rows(src, config, renamed or {})
    return Collector(
        "teacher",
        config,
        config.chosen_provider()[0],
        teacher_model(config),
        rows,
        request_maker(config),
        total * config.collection.samples,
        retry_failed,
        too_large,
    )


def _validate_rows(src: Path, config: DistillConfig, renamed: Mapping[str, str]) -> tuple[int, Rows, dict[str, int]]:
    """Validate all of `src`: (row count, rows in batches, sample -> bytes of too large prompts)."""
    keys, count, tasks, too_large = UniqueKeys(src), 0, set[str](), dict[str, int]()
    for batch in read_batches(src, INPUTS_TABLE, batch_rows=BATCH_ROWS, renamed=renamed):
        sizes = pc.binary_length(batch["user_prompt"])
        large = pc.greater(sizes, MAX_PROMPT_BYTES)
        if pc.any(large).as_py():
            ids = batch["sample_id"].filter(large).to_pylist()
            too_large |= zip(ids, sizes.filter(large).to_pylist(), strict=True)
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(batch["user_prompt"])), 0)
        if pc.any(blank).as_py():
            # Raises, naming the sample.
            resolve_prompt(batch.filter(blank).slice(0, 1).to_pylist()[0])
        keys.add(batch["sample_id"])
        tasks.update(batch["template_name"].unique().to_pylist())
        count += batch.num_rows
    if not count:
        raise InputError(f"{src}: holds no rows; there is nothing to send")
    content = [name for name in INPUTS.names if name not in ("source_file", "source_row")]
    twice = keys.find_repeated(lambda: read_batches(src, INPUTS_TABLE, columns=content, renamed=renamed))
    if twice:
        print(f"teacher: {src}: {len(twice)} duplicate sample_ids; each is requested once")
    for task in config.collection.response_schemas.keys() - tasks:
        near = did_you_mean(task, tasks)
        print(f"teacher: {src}: no prompt is of task type {task}{near}; its schema is not used")

    def read_rows(columns: Sequence[str] | None) -> Iterator[list[Row]]:
        remaining, seen = config.collection.max_samples or count, set[str]()
        names = list(columns) if columns else None
        for batch in read_batches(src, INPUTS_TABLE, batch_rows=BATCH_ROWS, columns=names, renamed=renamed):
            part = (_shorten_prompts(batch) if too_large else batch).slice(0, remaining).to_pylist()
            remaining -= len(part)
            yield [row for row in part if _is_first(row["sample_id"], twice, seen)]
            if remaining <= 0:
                return

    if not twice:
        return min(count, config.collection.max_samples or count), read_rows, too_large
    # With duplicates, only reading tells how many rows are left within max_samples.
    return sum(len(batch) for batch in read_rows(["sample_id"])), read_rows, too_large


def _shorten_prompts(batch: pa.Table) -> pa.Table:
    if "user_prompt" not in batch.column_names:
        return batch
    prompts = batch["user_prompt"]
    large = pc.greater(pc.binary_length(prompts), MAX_PROMPT_BYTES)
    # They are not sent: the beginning is enough to recognize them, and saves memory.
    start = pc.utf8_slice_codeunits(prompts.filter(large), 0, 1000)
    shortened = pc.replace_with_mask(prompts.combine_chunks(), large.combine_chunks(), start.combine_chunks())
    return batch.set_column(batch.column_names.index("user_prompt"), "user_prompt", shortened)


def _is_first(sample: str, twice: set[str], seen: set[str]) -> bool:
    if sample in seen:
        return False
    # Only of duplicates, so that memory does not grow with the file.
    if sample in twice:
        seen.add(sample)
    return True


def run_collection(args: argparse.Namespace) -> None:
    """Collect answers by the command's options; those that `args` leaves out are the configuration's.

    Example: `run_collection(Namespace(max_samples=4, dry_run=True))`. Raises UsageError for an unknown one.
    """
    args = _build_parser().complete_options(args)
    config = load_with_options(args)
    if args.src is None:
        config = settle_input(config)
    config = with_address(config, config.chosen_provider()[0], args.base_url, args.api_key_env)
    columns = {
        "user_prompt": args.prompt_column,
        "context": args.context_column,
        "template_name": args.task_type_column,
    }
    if args.src is None and not args.dry_run:  # a user's own file may have only train rows
        require_both_sides(config)
    config.refuse_models_not_served()
    run(
        config,
        args.src,
        args.dst,
        dry_run=args.dry_run,
        retry_failed=args.retry_failed,
        renamed={column: name for column, name in columns.items() if name},
    )


def _build_parser() -> cli.Parser:
    parser = cli.build_parser(__doc__)
    add = parser.add_argument
    add("--src", type=Path, metavar="FILE", help="default: storage.raw_dataset")
    add("--dst", type=Path, metavar="FILE", help="default: storage.collected_dataset")
    add("--answers", dest="answers.path", metavar="FILE", help="existing answers, used instead of asking a teacher")
    add("--provider", metavar="NAME", help="a key of providers: in the configuration")
    add("--base-url", metavar="URL", help="another address for this provider")
    add("--teacher", dest="collection.teacher_model", metavar="MODEL", help="default: the provider's model")
    add("--api-key-env", metavar="NAME", help="environment variable that holds the key")
    add("--concurrency", dest="collection.concurrency", type=cli.positive_int, metavar="N", help="requests in flight")
    add("--max-tokens", dest="collection.max_tokens", type=cli.positive_int, metavar="N", help="of one answer")
    add("--temperature", dest="collection.temperature", type=float, metavar="T")
    prompt = "collection.system_prompt_path"
    add("--system-prompt", dest=prompt, metavar="FILE", help="text file with the system prompt")
    add("--prompt-column", metavar="NAME", help="column of --src that is user_prompt")
    add("--context-column", metavar="NAME", help="column of --src that is context")
    add("--task-type-column", metavar="NAME", help="column of --src that is template_name")
    add("--max-samples", dest="collection.max_samples", type=cli.positive_int, metavar="N", help="first N rows")
    add("--samples", dest="collection.samples", type=cli.positive_int, metavar="N", help="answers per prompt")
    add(
        "--batch-size",
        dest="collection.batch_size",
        type=cli.positive_int,
        metavar="N",
        help="requests journaled ahead",
    )
    add(
        "--on-uncertain",
        dest="collection.on_uncertain",
        choices=["resend", "hold"],
        help="requests that may have been billed",
    )
    add(
        "--batch",
        dest="collection.batch_api",
        action="store_true",
        default=None,
        help="by the provider's Batch API: cheaper, within a day",
    )
    add("--max-usd", dest="budget.max_usd", type=float, metavar="USD", help="stop before spending more (exit 77)")
    cli.add_sending_options(parser)
    return parser


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; without arguments everything comes from the configuration."""
    return _build_parser().parse_args(argv)


def main() -> None:
    run_collection(arguments())


if __name__ == "__main__":
    cli.run(main)
