"""A rejected answer gets a second attempt, with the reason in the prompt.

Reads:  `storage.collected_dataset`, `storage.rejections`; with --annotations the decisions of a
        person (`{sample_id, attempt, action, reason, note}` per line; reject and regenerate count)
Writes: `storage.regen_dataset` (contracts.OUTPUTS, the attempt after the collection's samples),
        beside it what got no answer
Keeps:  rows_in == answered + unanswered; the new answers pass the same gates as the first ones

A request is in `storage.journal`/regenerate.sqlite, so running this twice pays once.
Not covered: a second repair; a sample of which one answer was kept is left alone.

Run: python -m nexa_distill.regenerate_bad [--annotations FILE] [--provider NAME] [--dry-run]
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from nexa_distill import cli
from nexa_distill.capabilities import schema_warning
from nexa_distill.cleaning import cleaner_of
from nexa_distill.collection import BATCH_ROWS, Collector, Row, Summary, read_again
from nexa_distill.config import DistillConfig, load_config, load_system_prompt, with_flags
from nexa_distill.contracts import DOUBTS, INPUTS, REASONS, TABLES
from nexa_distill.errors import InputError
from nexa_distill.handoff import read_batches, read_table
from nexa_distill.manifests import StageRun
from nexa_distill.money.estimate_text import say_estimate
from nexa_distill.prompt_request import PromptRequest, prompt_request, request_body
from nexa_distill.response_schemas import ResponseSchemas, load_schemas

Reasons = dict[str, str]  # sample_id -> what was wrong with its first answer, in words

NO_FAULTS = DOUBTS | {"better_attempt_kept"}  # of an answer


def rejected_by_gates(path: Path, kept: set[str], samples: int) -> Reasons:
    """What the gates said about the first rejected answer of each sample that is not in `kept`.

    Only of the `samples` first answers: what was said about a repair is not repaired again. An
    answer against which there is only doubt needs its check, and not another answer.
    """
    table, found = TABLES["rejections"], Reasons()
    columns = ["sample_id", "attempt", "rejection_reasons"]
    for batch in read_batches(path, table, columns=columns):
        for row in batch.to_pylist():
            against = [r for r in row["rejection_reasons"] if r not in NO_FAULTS]
            if row["attempt"] < samples and row["sample_id"] not in kept and against:
                words = [REASONS[reason] for reason in against]
                found.setdefault(row["sample_id"], "; ".join(words))
    return found


def kept_at_first(config: DistillConfig) -> set[str]:
    """Samples of which another answer of the first round was kept (`collection.samples` > 1)."""
    path, samples = config.storage.path("filtered_dataset"), config.collection.samples
    if samples == 1 or not path.exists():
        return set()
    rows = read_table(path, TABLES["filtered_dataset"])
    return set(rows.filter(pc.less(rows["attempt"], samples))["sample_id"].to_pylist())


def rejected_by_people(path: Path) -> Reasons:
    """What a person said. Raises InputError naming the line that is not a decision."""
    found: Reasons = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            decision = json.loads(line)
            action, sample = decision["action"], decision["sample_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: line {number}: expected {{sample_id, action, reason, note}}, "
                f"found {line[:80]!r} ({error})"
            ) from None
        if action in ("reject", "regenerate"):
            said = [decision.get("reason"), decision.get("note")]
            found[sample] = "; ".join(text for text in said if text) or "a reviewer rejected it"
    return found


def regen_model(config: DistillConfig) -> str:
    """`collection.regen_teacher_model`, or the provider's own."""
    return config.collection.regen_teacher_model or config.chosen_provider()[1].regen_model


def repair_request(
    row: Row, reason: str, system: str, config: DistillConfig, schemas: ResponseSchemas
) -> PromptRequest:
    """The same question, the reason for the rejection, and a stricter system prompt."""
    prompt = (
        f"{row['user_prompt']}\n\nAn earlier answer to this was rejected: {reason}. "
        "Write a new answer that does not have this fault. Do not mention the earlier answer."
    )
    extra = schemas.options(row["template_name"]) | _options(config)
    body = request_body(system, prompt, regen_model(config), config, extra)
    return prompt_request(row["sample_id"], body, attempt=config.collection.samples, round_=1)


def _options(config: DistillConfig) -> dict[str, Any]:
    provider = config.chosen_provider()[1]
    return provider.extra_body | provider.regen_extra_body


def settings(config: DistillConfig) -> dict[str, Any]:
    """What decides the new answers, next to the inputs and the journal."""
    provider = config.chosen_provider()[1]
    price = provider.prices.get(regen_model(config))
    return {
        "model": regen_model(config),
        "system_prompt": load_system_prompt(config.collection.regen_system_prompt_path),
        "decoding": config.collection.model_dump(include={"max_tokens", "temperature"}),
        "extra_body": _options(config),
        "response_schemas": load_schemas(config.collection.response_schemas).schemas,
        "price": price and price.model_dump(),
        **cleaner_of(config).settings,
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
    src, dst = src or storage.path("rejections"), dst or storage.path("regen_dataset")
    unanswered = dst.with_name(f"{dst.stem}.unanswered.parquet")
    answers = storage.path("collected_dataset")
    inputs = [answers, annotations or src]
    stage = StageRun("regenerate", storage, inputs=inputs, settings=settings(config))
    current = stage.is_current(dst, unanswered) and not read_again(unanswered)
    if current and not retry_failed:
        print(f"regenerate: {dst} is up to date")
        return None
    reasons = (
        rejected_by_people(annotations)
        if annotations
        else rejected_by_gates(src, kept_at_first(config), config.collection.samples)
    )
    system = load_system_prompt(config.collection.regen_system_prompt_path)
    schemas = load_schemas(config.collection.response_schemas)

    def rows(columns: Sequence[str] | None) -> Iterator[list[Row]]:
        """The first collected answer's row of each sample that is to be repaired."""
        left = set(reasons)
        for batch in read_batches(answers, TABLES["collected_dataset"], batch_rows=BATCH_ROWS):
            found = []
            for row in batch.select(columns or INPUTS.names).to_pylist():
                if row["sample_id"] in left:
                    left.remove(row["sample_id"])
                    found.append(row)
            yield found

    total = sum(len(batch) for batch in rows(["sample_id"]))
    if not total:
        print("regenerate: nothing was rejected, nothing to do")
        return None
    name = config.chosen_provider()[0]
    collector = Collector(
        "regenerate", config, name, regen_model(config), rows,
        lambda row: [repair_request(row, reasons[row["sample_id"]], system, config, schemas)],
        total, retry_failed,
    )  # fmt: skip
    if warning := schema_warning(config, name, collector.model):
        print(f"regenerate: {warning}")
    if dry_run:
        say_estimate(collector)
        return None
    summary = collector.run(stage, dst, unanswered)
    summary.say("regenerate", name, dst, unanswered)
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
        config, args.src, args.annotations, args.dst,
        dry_run=args.dry_run or args.estimate, retry_failed=args.retry_failed,
    )  # fmt: skip
    return 0


def main() -> int:
    """Command line."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--src", type=Path, metavar="FILE", help="default: storage.rejections")
    add("--annotations", type=Path, metavar="FILE", help="decisions of a person, JSONL")
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
