"""Rejected answers get another attempt, with the reason in the prompt.

Reads   collected_dataset, rejections and filtered_dataset (what the gates said), the checks (their
        evidence), storage.annotations (what people said and wrote), regen_dataset (what has been
        repaired so far)
Writes  regen_dataset (contracts.OUTPUTS: the answers of every round so far, and the edits of
        people), beside it what got no answer
Keeps   repairs asked == answered + unanswered. The new answers pass the same gates as the first
        ones (`gates.repair` runs them, round after round)
Raises  InputMissing (66) when the gates have not judged the answers that are there, InputError
        (65), and as the teacher's gateway: ProviderUnusable (69), StorageFailed (74), Locked (75),
        BudgetReached (77)

What is asked is said in `repair/plan.py`, with which words in `repair/prompts.py`. A request is in
`storage.journal`/regenerate.sqlite under a key with its round and everything it is told: running
this twice, or after a kill, pays once. Where answers come from a file (`answers.path`) nobody is
asked.

`--annotations FILE` records the decisions of the file (lines of the log, or seeds `{index |
sample_id, action, reason, note}`; `index` is a row of `--src`, the file that was looked at) and
asks with them; with a `--dst` elsewhere it records nothing, and asks about just these answers.

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

from nexa_distill.annotation.decisions import Edit, decisions_of, record, time_of
from nexa_distill.collection.answers.extraction import cleaner_of
from nexa_distill.collection.capabilities import schema_warning
from nexa_distill.collection.collector import (
    BATCH_ROWS,
    Collector,
    Row,
    Summary,
    read_again,
    unknown_finish,
)
from nexa_distill.collection.requests.body import (
    PromptRequest,
    prompt_request,
    raise_limit,
    request_body,
)
from nexa_distill.console import cli
from nexa_distill.contracts import INPUTS, OUTPUTS, TABLES, UNANSWERED
from nexa_distill.cost.estimate_text import say_estimate
from nexa_distill.dialects import is_known_finish
from nexa_distill.errors import InputError, NexaError
from nexa_distill.journal.journal import Journal
from nexa_distill.repair.plan import (
    PERSON,
    Plan,
    Wanted,
    faults_of,
    make_plan,
    plan_of,
    texts_of,
    unanswered_path,
)
from nexa_distill.repair.prompts import repair_prompt
from nexa_distill.settings.pipeline import (
    DistillConfig,
    load_config,
    load_system_prompt,
    with_flags,
)
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import read_batches, table_writer
from nexa_distill.text.json_schemas import load_schemas

ANSWERS = TABLES["collected_dataset"]


def regen_model(config: DistillConfig, round_: int = 1) -> str:
    """`regeneration.models` of the round, `regen_teacher_model`, or the provider's own."""
    models = config.regeneration.models
    if models:
        return models[min(round_, len(models)) - 1]
    return config.collection.regen_teacher_model or config.chosen_provider()[1].regen_model


def _options(config: DistillConfig) -> dict[str, Any]:
    provider = config.chosen_provider()[1]
    return provider.extra_body | provider.regen_extra_body


def settings(config: DistillConfig, plan: Plan | None = None) -> dict[str, Any]:
    """What decides the new answers, next to the first ones and the journal.

    The plan is one of these values: it is made from tables that the repairs themselves change, so
    their hashes would never settle. Without tables that it can be made from, it is null.
    """
    provider = config.chosen_provider()[1]
    if plan is None:
        try:
            plan = make_plan(config)
        except NexaError:  # the stage runs then, and says so
            plan = None
    rounds = max((one.round for one in plan.wanted), default=0) if plan else 0
    models = [regen_model(config, n) for n in range(1, rounds + 1)]
    prices = {model: provider.prices.get(model) for model in models}
    return {
        "plan": plan and plan.digest,
        "models": models,
        "system_prompt": load_system_prompt(config.collection.regen_system_prompt_path),
        "decoding": config.collection.model_dump(include={"max_tokens", "temperature"}),
        "extra_body": _options(config),
        "answer_chars": config.regeneration.answer_chars,
        **provider.sending,
        **_reasoning_limit(config, plan),
        "response_schemas": load_schemas(config.collection.response_schemas).schemas,
        "prices": {model: price and price.model_dump() for model, price in prices.items()},
        **cleaner_of(config).settings,
    }


def _reasoning_limit(config: DistillConfig, plan: Plan | None) -> dict[str, Any]:
    """It decides nothing where no reasoning was cut."""
    cut = plan and any("reasoning_cut" in one.reasons for one in plan.wanted)
    return {"reasoning_max_tokens": config.regeneration.reasoning_max_tokens} if cut else {}


class Asking:
    """The requests of a plan: one collector per round, for each has its model."""

    def __init__(self, config: DistillConfig, plan: Plan, *, retry_failed: bool = False) -> None:
        self.config, self.plan = config, plan
        self.faults, self.texts = faults_of(config, plan.wanted), texts_of(config, plan.wanted)
        self.system = load_system_prompt(config.collection.regen_system_prompt_path)
        self.schemas = load_schemas(config.collection.response_schemas)
        self.rounds = [
            (self._collector(wanted, retry_failed), wanted) for wanted in plan.by_round().values()
        ]

    def _collector(self, wanted: dict[str, Wanted], retry_failed: bool) -> Collector:
        config, name = self.config, self.config.chosen_provider()[0]
        model = regen_model(config, next(iter(wanted.values())).round)

        def rows(columns: Sequence[str] | None) -> Iterator[list[Row]]:
            return rows_of(config, wanted, columns)

        def requests_of(row: Row) -> list[PromptRequest]:
            return [self._request(row, wanted[row["sample_id"]], model)]

        return Collector(
            "regenerate", config, name, model, rows, requests_of, len(wanted), retry_failed
        )

    def _request(self, row: Row, wanted: Wanted, model: str) -> PromptRequest:
        """The same question, what was wrong, and a stricter system prompt after the row's own."""
        config, sample = self.config, wanted.sample_id
        provider, limit = config.chosen_provider()[1], config.regeneration.reasoning_max_tokens
        prompt = repair_prompt(
            row,
            self.faults[(sample, wanted.of)],
            self.texts.get((sample, wanted.of)),
            config.collection.max_tokens,
        )
        system = "\n\n".join(filter(None, [row["system_prompt"], self.system]))
        extra = self.schemas.options(row["template_name"]) | _options(config)
        body = request_body(system, prompt, model, config, provider, extra)
        if limit and "reasoning_cut" in wanted.reasons:
            body = raise_limit(body, limit)
        attempt = config.collection.samples - 1 + wanted.round
        return prompt_request(sample, body, attempt=attempt, round_=wanted.round)

    def write(self, journal: Journal | None, dst: Path, unanswered: Path, summary: Summary) -> None:
        """Both tables: every round from the journal, then what people wrote."""
        with table_writer(dst, OUTPUTS) as good, table_writer(unanswered, UNANSWERED) as bad:
            for collector, wanted in self.rounds:
                answers = collector.results(journal) if journal else ()
                for rows, missing in answers:
                    for row in rows:
                        row["repaired_reason"] = wanted[row["sample_id"]].reasons[0]
                    good.write(pa.Table.from_pylist(rows, schema=OUTPUTS))
                    bad.write(pa.Table.from_pylist(missing, schema=UNANSWERED))
                    summary.add(rows, missing)
            written = list(edit_rows(self.config, self.plan.edits))
            good.write(pa.Table.from_pylist(written, schema=OUTPUTS))


def rows_of(
    config: DistillConfig, samples: Iterable[str], columns: Sequence[str] | None
) -> Iterator[list[Row]]:
    """The first collected answer's row of each of these samples, with the columns of INPUTS."""
    left = set(samples)
    ids = pa.array(sorted(left), pa.string())
    path, wanted = config.storage.path("collected_dataset"), list(columns or INPUTS.names)
    for batch in read_batches(path, ANSWERS, batch_rows=BATCH_ROWS, columns=wanted):
        found = []
        for row in batch.filter(pc.is_in(batch["sample_id"], ids)).to_pylist():
            if row["sample_id"] in left:
                left.remove(row["sample_id"])
                found.append(row)
        yield found
    if left:
        raise InputError(
            f"{path}: has no answer to sample_id {min(left)}, which is to be asked again"
        )


def edit_rows(config: DistillConfig, edits: list[tuple[str, Edit]]) -> Iterator[Row]:
    """Rows of contracts.OUTPUTS: a person's text is an answer like any other, as it stands."""
    by_sample: dict[str, list[Edit]] = {}
    for sample, edit in edits:
        by_sample.setdefault(sample, []).append(edit)
    for batch in rows_of(config, by_sample, None) if by_sample else ():
        for row in batch:
            for edit in sorted(by_sample[row["sample_id"]], key=lambda one: one.attempt):
                yield row | {
                    "attempt": edit.attempt,
                    "teacher_output": edit.by.edited_output,
                    "model_id": f"person:{edit.by.annotator or 'somebody'}",
                    "finish_reason": "stop",
                    "cost_usd": 0.0,
                    "created_at": time_of(edit.by),
                    "repaired_reason": PERSON,
                }


def run(
    config: DistillConfig,
    src: Path | None = None,
    annotations: Path | None = None,
    dst: Path | None = None,
    *,
    dry_run: bool = False,
    retry_failed: bool = False,
) -> Summary | None:
    """Ask again for what was rejected; None when there was nothing to do."""
    storage = config.storage
    dst = dst or storage.path("regen_dataset")
    elsewhere = storage.key_of(dst) != "regen_dataset"
    if annotations:
        given = decisions_of(annotations, src or storage.path("rejections"))
        src = None
        if not elsewhere and not dry_run:
            print(f"regenerate: {record(config, given)} new decisions of {annotations} recorded")
    plan = plan_of(config, given) if annotations and elsewhere else make_plan(config, src)
    unanswered, first = unanswered_path(dst), storage.path("collected_dataset")
    stage = StageRun("regenerate", storage, inputs=[first], settings=settings(config, plan))
    current = stage.is_current(dst, unanswered) and not read_again(unanswered)
    if current and not retry_failed:
        print(f"regenerate: {dst} is up to date")
        return None
    asking = Asking(config, plan, retry_failed=retry_failed)
    _announce(config, asking)
    if dry_run:
        for collector, _ in asking.rounds:
            say_estimate(collector)
        return None
    return _ask(asking, stage, dst, unanswered)


def _announce(config: DistillConfig, asking: Asking) -> None:
    if config.answers.path and not asking.rounds:
        print(f"regenerate: answers come from {config.answers.path}; no teacher is asked again")
    elif not asking.plan.wanted:
        print("regenerate: nothing was rejected that another answer would mend")
    else:
        for line in _unknown_finishes(config):
            print(f"regenerate: warning: {line}")
    for collector, _ in asking.rounds[:1]:
        if warning := schema_warning(config, collector.provider_name, collector.model):
            print(f"regenerate: {warning}")


def _unknown_finishes(config: DistillConfig) -> Iterator[str]:
    """Words of the first answers that count as truncated only because nobody knows them."""
    words, answers = Counter[str](), 0
    path = config.storage.path("collected_dataset")
    for batch in read_batches(path, ANSWERS, columns=["finish_reason"]):
        answers += batch.num_rows
        words.update(word for word in batch["finish_reason"].to_pylist() if word)
    for word, count in words.most_common():
        if not is_known_finish(word):
            yield unknown_finish(word, count, answers)


def _ask(asking: Asking, stage: StageRun, dst: Path, unanswered: Path) -> Summary:
    summary, collectors = Summary(), [collector for collector, _ in asking.rounds]
    for collector in collectors:
        collector.refuse_unpayable()
    with collectors[0].open_journal(stage.id) if collectors else nullcontext() as journal:
        if journal:
            summary.requests = sum(collector.ask(journal) for collector in collectors)
        asking.write(journal, dst, unanswered, summary)
        summary.uncertain = journal.uncertain() if journal else []
    rows, missing = summary.rows + len(asking.plan.edits), summary.unanswered
    stage.seal(unanswered, rows_in=rows, rejected=missing)
    stage.seal(dst, rows_in=rows, rejected=missing, cost_usd=summary.usd)
    if collectors:
        summary.say("regenerate", collectors[0].provider_name, dst, unanswered)
    if asking.plan.edits:
        print(f"regenerate: {len(asking.plan.edits)} answers written by people -> {dst}")
    return summary


def run_regeneration(args: argparse.Namespace) -> int:
    """The command line's work: flags over YAML, then `run`."""
    flags = {
        "provider": args.provider,
        "collection": {
            "regen_teacher_model": args.teacher,
            "regen_system_prompt_path": args.system_prompt,
        },
    }
    config = with_flags(load_config(args.config), flags)
    run(
        config,
        args.src,
        args.annotations,
        args.dst,
        dry_run=args.dry_run or args.estimate,
        retry_failed=args.retry_failed,
    )
    return 0


def main() -> int:
    """Command line."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--src", type=Path, metavar="FILE", help="what was looked at (default: storage.rejections)")
    add("--annotations", type=Path, metavar="FILE", help="decisions of people, JSONL")
    add("--dst", type=Path, metavar="FILE", help="default: storage.regen_dataset")
    add("--provider", metavar="NAME", help="a key of providers: in the configuration")
    add("--teacher", metavar="MODEL", help="default: the provider's regen_model")
    add("--system-prompt", metavar="FILE", help="default: collection.regen_system_prompt_path")
    add("--dry-run", action="store_true", help="say what would be sent, send nothing")
    add("--estimate", action="store_true", help="the same as --dry-run")
    add("--retry-failed", action="store_true", help="ask again what brought no answer")
    return run_regeneration(parser.parse_args())


if __name__ == "__main__":
    cli.run(main)
