"""Regenerate rejected answers, with the rejection reasons in the prompt.

Reads   collected_dataset, rejections and filtered_dataset, the checks (evidence),
        storage.annotations (comments and edits), regen_dataset (the repairs so far)
Writes  regen_dataset (contracts.OUTPUTS: the answers of every round so far, and the edits of
        annotators), beside it the unanswered requests
Keeps   repairs requested == answered + unanswered. The new answers go through the same gates as the
        first ones (`gates.py` runs them, round after round)
Raises  InputMissing (66) if the gates have not run on the current answers, InputError (65), and as
        the teacher's gateway: ProviderUnusable (69), StorageFailed (74), Locked (75),
        BudgetReached (77)

The plan: `repair/plan.py`; the prompts: `repair/prompts.py`. A request is in
`storage.journal`/regenerate.sqlite under a key of its round and content: running this twice, or
after a kill, pays once. If the answers come from a file (`answers.path`, or the manifest of
the answers) no request is sent.

`--annotations FILE` records the decisions of the file (lines of the log, or seeds `{index |
sample_id, action, reason, note}`; `index` is a row of the inspected file `--src`) and repairs with
them; with a `--dst` outside the storage it records nothing and repairs only these answers.

    python -m nexa_distill.regenerate_bad [--annotations FILE] [--provider NAME] [--dry-run]
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.annotation.annotations import Annotation
from nexa_distill.annotation.decisions import Edit, decision_time, load_decisions, record_decisions
from nexa_distill.collection.answers.extraction import build_cleaner
from nexa_distill.collection.capabilities import schema_warning
from nexa_distill.collection.collector import (
    BATCH_ROWS,
    CollectionSummary,
    Collector,
    describe_unknown_finish,
    has_unreadable_answers,
)
from nexa_distill.collection.requests.body import PromptRequest, prompt_request, raise_limit, request_body
from nexa_distill.console import cli
from nexa_distill.contracts import INPUTS, OUTPUTS, TABLES, UNANSWERED, Row
from nexa_distill.cost.estimate_text import print_estimate
from nexa_distill.dialects import is_known_finish
from nexa_distill.errors import InputError, NexaError
from nexa_distill.journal.journal import Journal
from nexa_distill.repair.plan import (
    REJECTED_BY_PERSON,
    Plan,
    PlannedRepair,
    load_faults,
    load_rejected_texts,
    make_plan,
    plan_from_decisions,
    unanswered_path,
)
from nexa_distill.repair.prompts import repair_prompt
from nexa_distill.settings.pipeline import DistillConfig, load_with_options
from nexa_distill.settings.tasks import load_repair_prompts, load_system_prompts
from nexa_distill.storage.manifests import StageRun, answers_file
from nexa_distill.storage.tables import read_batches, table_writer
from nexa_distill.text.json_schemas import load_schemas

ANSWERS = TABLES["collected_dataset"]


def regen_model(config: DistillConfig, round_: int = 1) -> str:
    models = config.regeneration.models
    if models:
        return models[min(round_, len(models)) - 1]
    return config.collection.regen_teacher_model or config.chosen_provider()[1].regen_model


def _extra_options(config: DistillConfig) -> dict[str, Any]:
    provider = config.chosen_provider()[1]
    return provider.extra_body | provider.regen_extra_body


def settings(config: DistillConfig, plan: Plan | None = None) -> dict[str, Any]:
    """The values that determine the repairs, besides the first answers and the journal.

    Without a possible plan its value is null.
    """
    # The plan itself is a value: it is made from tables that the repairs change, so their hashes
    # would never settle.
    provider = config.chosen_provider()[1]
    if plan is None:
        try:
            plan = make_plan(config)
        except NexaError:  # the stage then runs, and raises it
            plan = None
    rounds = max((repair.round for repair in plan.wanted), default=0) if plan else 0
    models = [regen_model(config, n) for n in range(1, rounds + 1)]
    prices = {model: provider.prices.get(model) for model in models}
    return {
        "plan": plan and plan.plan_digest,
        "models": models,
        "system_prompt": load_repair_prompts(config).relevant_settings,
        "decoding": config.collection.model_dump(include={"max_tokens", "temperature"}),
        "extra_body": _extra_options(config),
        "answer_chars": config.regeneration.answer_chars,
        **provider.dialect_changes,
        **_reasoning_limit(config, plan),
        "response_schemas": load_schemas(config.collection.response_schemas).schemas,
        "prices": {model: price and price.model_dump() for model, price in prices.items()},
        **build_cleaner(config).relevant_settings,
    }


def _reasoning_limit(config: DistillConfig, plan: Plan | None) -> dict[str, Any]:
    # The limit has no effect if no reasoning was cut.
    cut = plan and any("reasoning_cut" in repair.reasons for repair in plan.wanted)
    return {"reasoning_max_tokens": config.regeneration.reasoning_max_tokens} if cut else {}


class RepairRequests:
    """The requests of a plan: one collector per round, because rounds have their own models."""

    def __init__(self, config: DistillConfig, plan: Plan, *, retry_failed: bool = False) -> None:
        self.config, self.plan = config, plan
        self.faults, self.texts = (load_faults(config, plan.wanted), load_rejected_texts(config, plan.wanted))
        self.repair_prompts, self.first_prompts = load_repair_prompts(config), load_system_prompts(config)
        self.schemas = load_schemas(config.collection.response_schemas)
        self.rounds = [(self._make_collector(wanted, retry_failed), wanted) for wanted in plan.by_round().values()]

    def _make_collector(self, wanted: dict[str, PlannedRepair], retry_failed: bool) -> Collector:
        config, name = self.config, self.config.chosen_provider()[0]
        model = regen_model(config, next(iter(wanted.values())).round)

        def read_rows(columns: Sequence[str] | None) -> Iterator[list[Row]]:
            return rows_of(config, wanted, columns)

        def requests_of(row: Row) -> list[PromptRequest]:
            return [self._make_request(row, wanted[row["sample_id"]], model)]

        return Collector("regenerate", config, name, model, read_rows, requests_of, len(wanted), retry_failed)

    def _make_request(self, row: Row, wanted: PlannedRepair, model: str) -> PromptRequest:
        config, sample = self.config, wanted.sample_id
        provider, limit = config.chosen_provider()[1], config.regeneration.reasoning_max_tokens
        prompt = repair_prompt(
            row, self.faults[(sample, wanted.of)], self.texts.get((sample, wanted.of)), config.collection.max_tokens
        )
        task = row["template_name"]
        parts = [row["system_prompt"], self.repair_prompts.find_prompt(task)]
        system = "\n\n".join(filter(None, parts)) or self.first_prompts.find_prompt(task) or ""
        extra = self.schemas.request_options(row["template_name"]) | _extra_options(config)
        body = request_body(system, prompt, model, config, provider, extra)
        if limit and "reasoning_cut" in wanted.reasons:
            body = raise_limit(body, limit)
        attempt = config.collection.samples - 1 + wanted.round
        return prompt_request(sample, body, attempt=attempt, round_=wanted.round)

    def write_tables(self, journal: Journal | None, dst: Path, unanswered: Path, summary: CollectionSummary) -> None:
        with table_writer(dst, OUTPUTS) as good, table_writer(unanswered, UNANSWERED) as bad:
            for collector, wanted in self.rounds:
                answers = collector.result_batches(journal) if journal else ()
                for rows, missing in answers:
                    for row in rows:
                        row["repaired_reason"] = wanted[row["sample_id"]].reasons[0]
                    good.write(pa.Table.from_pylist(rows, schema=OUTPUTS))
                    bad.write(pa.Table.from_pylist(missing, schema=UNANSWERED))
                    summary.add_rows(rows, missing)
            written = list(edit_rows(self.config, self.plan.edits))
            good.write(pa.Table.from_pylist(written, schema=OUTPUTS))


def rows_of(config: DistillConfig, samples: Iterable[str], columns: Sequence[str] | None) -> Iterator[list[Row]]:
    """The row of each sample's first collected answer, with the columns of INPUTS."""
    missing = set(samples)
    ids = pa.array(sorted(missing), pa.string())
    path, names = config.storage.path_of("collected_dataset"), list(columns or INPUTS.names)
    for batch in read_batches(path, ANSWERS, batch_rows=BATCH_ROWS, columns=names):
        rows = []
        for row in batch.filter(pc.is_in(batch["sample_id"], ids)).to_pylist():
            # All attempts of a sample have the same prompt: the first one is enough.
            if row["sample_id"] in missing:
                missing.remove(row["sample_id"])
                rows.append(row)
        yield rows
    if missing:
        raise InputError(f"{path}: has no answer to sample_id {min(missing)}, which is to be repaired")


def edit_rows(config: DistillConfig, edits: list[tuple[str, Edit]]) -> Iterator[Row]:
    """Rows of contracts.OUTPUTS: an annotator's text is an answer like any other, unchanged."""
    by_sample: dict[str, list[Edit]] = {}
    for sample, edit in edits:
        by_sample.setdefault(sample, []).append(edit)
    for batch in rows_of(config, by_sample, None) if by_sample else ():
        for row in batch:
            for edit in sorted(by_sample[row["sample_id"]], key=lambda edit: edit.attempt):
                yield row | {
                    "attempt": edit.attempt,
                    "teacher_output": edit.by.edited_output,
                    "model_id": f"person:{edit.by.annotator or 'somebody'}",
                    "finish_reason": "stop",
                    "cost_usd": 0.0,
                    "created_at": decision_time(edit.by),
                    "repaired_reason": REJECTED_BY_PERSON,
                }


def run(
    config: DistillConfig,
    src: Path | None = None,
    annotations: Path | None = None,
    dst: Path | None = None,
    *,
    dry_run: bool = False,
    retry_failed: bool = False,
) -> CollectionSummary | None:
    """Request the planned repairs; None if there was nothing to do."""
    storage = config.storage
    dst = dst or storage.path_of("regen_dataset")
    elsewhere = storage.key_of(dst) != "regen_dataset"
    unrecorded = list[Annotation]()
    if annotations:
        decisions = load_decisions(annotations, src or storage.path_of("rejections"))
        src, unrecorded = None, decisions if dry_run else []
        if not elsewhere and not dry_run:
            count = record_decisions(config, decisions)
            print(f"regenerate: recorded {count} new decisions of {annotations}")
    plan = plan_from_decisions(config, decisions) if annotations and elsewhere else make_plan(config, src, unrecorded)
    unanswered, first = unanswered_path(dst), storage.path_of("collected_dataset")
    stage = StageRun("regenerate", storage, inputs=[first], settings=settings(config, plan))
    current = stage.is_current(dst, unanswered) and not has_unreadable_answers(unanswered)
    if current and not retry_failed:
        print(f"regenerate: {dst} is up to date")
        return None
    asking = RepairRequests(config, plan, retry_failed=retry_failed)
    _print_plan(config, asking)
    if dry_run:
        for collector, _ in asking.rounds:
            print_estimate(collector)
        return None
    return _ask_repairs(asking, stage, dst, unanswered)


def _print_plan(config: DistillConfig, asking: RepairRequests) -> None:
    file = config.answers.path or answers_file(config.storage)
    if file and not asking.rounds:
        print(
            f"regenerate: answers come from {file}; no request is sent. To ask a teacher instead: "
            "python scripts/python/data_processing/run_full_data_gen.py --provider NAME"
        )
    elif not asking.plan.wanted:
        print("regenerate: no rejection that regenerating could fix")
    else:
        for line in _unknown_finishes(config):
            print(f"regenerate: warning: {line}")
    for collector, _ in asking.rounds[:1]:
        if warning := schema_warning(config, collector.provider_name, collector.model):
            print(f"regenerate: {warning}")


def _unknown_finishes(config: DistillConfig) -> Iterator[str]:
    words, answers = Counter[str](), 0
    path = config.storage.path_of("collected_dataset")
    for batch in read_batches(path, ANSWERS, columns=["finish_reason"]):
        answers += batch.num_rows
        words.update(word for word in batch["finish_reason"].to_pylist() if word)
    for word, count in words.most_common():
        if not is_known_finish(word):
            yield describe_unknown_finish(word, count, answers)


def _ask_repairs(asking: RepairRequests, stage: StageRun, dst: Path, unanswered: Path) -> CollectionSummary:
    summary, collectors = CollectionSummary(), [collector for collector, _ in asking.rounds]
    for collector in collectors:
        collector.refuse_unpayable()
    with collectors[0].open_journal(stage.id) if collectors else nullcontext() as journal:
        if journal:
            summary.requests = sum(collector.ask_missing(journal) for collector in collectors)
        asking.write_tables(journal, dst, unanswered, summary)
        summary.uncertain = journal.uncertain_keys() if journal else []
    rows, missing = summary.rows + len(asking.plan.edits), summary.unanswered_count
    stage.seal_output(unanswered, rows_in=rows, rejected=missing)
    stage.seal_output(dst, rows_in=rows, rejected=missing, cost_usd=summary.usd)
    if collectors:
        summary.print_summary("regenerate", collectors[0].provider_name, dst, unanswered)
    if asking.plan.edits:
        print(f"regenerate: {len(asking.plan.edits)} answers written by annotators -> {dst}")
    return summary


def run_regeneration(args: argparse.Namespace) -> None:
    """Regenerate by the command's options; those that `args` leaves out are the configuration's.

    Example: `run_regeneration(Namespace(annotations="rejected.jsonl"))`. Raises UsageError for an unknown one.
    """
    args = _build_parser().complete_options(args)
    config = load_with_options(args)
    run(config, args.src, args.annotations, args.dst, dry_run=args.dry_run, retry_failed=args.retry_failed)


def _build_parser() -> cli.Parser:
    parser = cli.build_parser(__doc__)
    add = parser.add_argument
    add("--src", type=Path, metavar="FILE", help="inspected file (default: storage.rejections)")
    add("--annotations", type=Path, metavar="FILE", help="human decisions, JSONL")
    add("--dst", type=Path, metavar="FILE", help="default: storage.regen_dataset")
    add("--provider", metavar="NAME", help="a key of providers: in the configuration")
    add("--teacher", dest="collection.regen_teacher_model", metavar="MODEL", help="default: the provider's regen_model")
    prompt = "collection.regen_system_prompt_path"
    add("--system-prompt", dest=prompt, metavar="FILE", help=f"default: {prompt}")
    cli.add_sending_options(parser)
    return parser


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; without arguments everything comes from the configuration."""
    return _build_parser().parse_args(argv)


def main() -> None:
    run_regeneration(arguments())


if __name__ == "__main__":
    cli.run(main)
