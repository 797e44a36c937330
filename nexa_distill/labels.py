"""Exchange human decisions with Label Studio, and export preference pairs for training.

Reads   `export`: a table of answers (--src, default: the rejections). `import`: an export of Label
        Studio (JSON list or JSONL). `preferences`: the answers, the results of the gates, and the
        blind comparisons of the inspection app
Writes  `export`: JSONL, one Label Studio task per answer. `import`: `storage.annotations`.
        `preferences`: JSONL of {prompt, chosen, rejected, sample_id, source}, lists of messages:
        TRL's conversational preference format, which its DPOTrainer reads
Keeps   `import`: existing decisions are not written again. `preferences`: one pair per two texts;
        only prompts of --split (default train: held-out prompts stay out of training)
Raises  InputError (65) naming a malformed task, before anything is written

A Label Studio project needs the labelling configuration that `export` prints: a choice named
`action`, texts named `reason`, `note` and `edited_output`. Formats: labelstud.io/guide/tasks and
labelstud.io/guide/export (JSON); huggingface.co/docs/trl/dataset_formats.

    python -m nexa_distill.labels export --dst tasks.jsonl
    python -m nexa_distill.labels import --src exported.json
    python -m nexa_distill.labels preferences --dst preferences.jsonl
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_distill.annotation import annotations, preferences
from nexa_distill.annotation.annotations import ACTIONS, Annotation
from nexa_distill.annotation.decisions import record_decisions
from nexa_distill.collection.requests.body import row_messages
from nexa_distill.console import cli
from nexa_distill.contracts import DOUBT_REASONS, TABLES
from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.settings.tasks import load_system_prompts
from nexa_distill.storage.atomic import Json, read_text, replace_atomically
from nexa_distill.storage.tables import open_table, read_batches
from nexa_distill.to_sft import assistant_message, json_line

ANSWERS = TABLES["collected_dataset"]
FIELDS = ("reason", "note", "edited_output")
NOT_ABOUT_TEXT = DOUBT_REASONS | {"better_attempt_kept", "rejected_by_person"}
LABEL_CONFIG = """<View>
  <Text name="prompt" value="$user_prompt"/><Text name="context" value="$context"/>
  <Text name="answer" value="$teacher_output"/>
  <Choices name="action" toName="answer" required="true">
    <Choice value="accept"/><Choice value="reject"/>
    <Choice value="regenerate"/><Choice value="edit"/>
  </Choices>
  <TextArea name="reason" toName="answer"/><TextArea name="note" toName="answer"/>
  <TextArea name="edited_output" toName="answer" value="$teacher_output"/>
</View>"""


def label_tasks(src: Path) -> Iterator[Json]:
    """One task per answer; Label Studio returns its `data` in the export."""
    shown = [
        "sample_id",
        "attempt",
        "template_name",
        "domain",
        "split",
        "user_prompt",
        "context",
        "teacher_output",
        "model_id",
    ]
    rejected = "rejection_reasons" in open_table(src, ANSWERS).schema_arrow.names
    for row in _read_rows(src, "rejections" if rejected else "collected_dataset"):
        data = {name: "" if row[name] is None else row[name] for name in shown}
        yield {"data": {**data, "rejection_reasons": ", ".join(row.get("rejection_reasons", []))}}


def read_decisions(path: Path) -> list[Annotation]:
    """The decisions in a Label Studio export, the oldest first. Raises InputError."""
    events = []
    for place, task in enumerate(_read_export(path), 1):
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict) or not {"sample_id", "attempt"} <= data.keys():
            raise InputError(
                f"{path}: task {place}: expected data.sample_id and data.attempt, as `python -m "
                f"nexa_distill.labels export` writes them; found {str(task)[:80]}"
            )
        for annotation in task.get("annotations") or []:
            # Cancelled: the annotator has skipped the task.
            if not annotation.get("was_cancelled"):
                events.append(_parse_decision(path, place, data, annotation))
    # The order of the log is the order in time: an annotator's last decision counts.
    return sorted(events, key=lambda event: event.timestamp or "")


def _read_export(path: Path) -> list[Any]:
    text = read_text(path, "a JSON export of Label Studio")
    try:
        if text.lstrip().startswith("["):
            whole: list[Any] = json.loads(text)
            return whole
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(f"{path}: not JSON, nor JSON by line: {error}") from None


def _parse_decision(path: Path, place: int, data: Mapping[str, Any], annotation: Mapping[str, Any]) -> Annotation:
    values = {item.get("from_name"): item.get("value", {}) for item in annotation.get("result", [])}
    chosen = values.get("action", {}).get("choices") or []
    if len(chosen) != 1 or chosen[0] not in ACTIONS:
        near = did_you_mean(str(chosen[0]), ACTIONS) if chosen else ""
        raise InputError(
            f"{path}: task {place}: expected one choice named action out of {', '.join(ACTIONS)}; found {chosen}{near}"
        )
    texts = {name: "\n".join(values.get(name, {}).get("text") or []) or None for name in FIELDS}
    if chosen[0] != "edit":
        texts["edited_output"] = None
    elif not texts["edited_output"]:
        raise InputError(f"{path}: task {place}: the action is edit, and edited_output is empty")
    who = annotation.get("completed_by")
    person = who.get("email") or who.get("id") if isinstance(who, dict) else who
    event = {
        "sample_id": data["sample_id"],
        "attempt": data["attempt"],
        "action": chosen[0],
        **texts,
        "annotator": f"labelstudio:{person}",
        "timestamp": annotation.get("created_at"),
    }
    return annotations.parse_line(path, place, json.dumps(event).encode())


def preference_pairs(config: DistillConfig, splits: Iterable[str], counts: Counter[str]) -> Iterator[Json]:
    """Preference pairs of `splits`; `counts` is updated with the written and skipped pairs."""
    chosen_splits, seen = set(splits), set[tuple[str, str, str]]()
    prompts = load_system_prompts(config)
    for row, chosen, rejected, source in (*_pairs_of_attempts(config), *_pairs_of_comparisons(config)):
        key = (row["sample_id"], chosen, rejected)
        if row["split"] not in chosen_splits:
            counts["of other splits"] += 1
        elif chosen.strip() == rejected.strip() or key in seen:
            counts["of the same two texts"] += 1
        else:
            seen.add(key)
            counts[source] += 1
            yield {
                "prompt": row_messages(row, prompts.find_prompt(row["template_name"])),
                "chosen": [assistant_message(chosen)],
                "rejected": [assistant_message(rejected)],
                "sample_id": row["sample_id"],
                "source": source,
            }


def _pairs_of_attempts(config: DistillConfig) -> Iterator[tuple[Json, str, str, str]]:
    storage = config.storage
    kept = {row["sample_id"]: row for row in _read_rows(storage.path_of("filtered_dataset"))}
    for row in _read_rows(storage.path_of("rejections"), "rejections"):
        best, against = kept.get(row["sample_id"]), set(row["rejection_reasons"])
        # A pair shows which text is better: doubt and a mere ranking say nothing about that.
        of_the_text = against - NOT_ABOUT_TEXT or "rejected_by_person" in against
        if best and row["teacher_output"] and of_the_text and not against & DOUBT_REASONS:
            yield best, best["teacher_output"], row["teacher_output"], "attempts"


def _pairs_of_comparisons(config: DistillConfig) -> Iterator[tuple[Json, str, str, str]]:
    storage = config.storage
    prompts = {row["sample_id"]: row for row in _read_rows(storage.path_of("raw_dataset"), "raw_dataset")}
    votes: dict[tuple[str, frozenset[str]], set[tuple[str, str] | None]] = {}
    for event in preferences.latest_preferences(preferences.read(storage.path_of("preferences"))):
        first, second = event.first_output, event.second_output
        texts = {"first": (first, second), "second": (second, first), "tie": None}
        pair = event.sample_id, frozenset((first, second))
        votes.setdefault(pair, set()).add(texts[event.preferred])
    for (sample, _), choices in votes.items():
        # Without ties and disagreements.
        winner = choices.pop() if len(choices) == 1 else None
        if winner and sample in prompts:
            yield prompts[sample], *winner, "comparisons"


def _read_rows(path: Path, table: str = "filtered_dataset") -> Iterator[Json]:
    for batch in read_batches(path, TABLES[table]):
        yield from batch.to_pylist()


def write_lines(dst: Path, rows: Iterable[Json]) -> int:
    """Write JSONL atomically; returns the number of lines."""
    count = 0
    with replace_atomically(dst) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json_line(row))
            count += 1
    return count


def run_export(config: DistillConfig, src: Path | None, dst: Path) -> None:
    src = src or config.storage.path_of("rejections")
    count = write_lines(dst, label_tasks(src))
    print(f"labels: {count} answers of {src} -> {dst}")
    print(f"the labelling configuration for their Label Studio project:\n{LABEL_CONFIG}")


def run_import(config: DistillConfig, src: Path) -> None:
    events = read_decisions(src)
    new = record_decisions(config, events)
    print(f"labels: {len(events)} decisions in {src}, {new} of them new -> {config.storage.path_of('annotations')}")


def run_preferences(config: DistillConfig, dst: Path, splits: list[str]) -> None:
    counts: Counter[str] = Counter()
    written = write_lines(dst, preference_pairs(config, splits, counts))
    sources = ", ".join(f"{counts[name]} from {name}" for name in ("attempts", "comparisons"))
    skipped = ", ".join(f"{counts[name]} {name}" for name in counts if name.startswith("of "))
    print(f"labels: {written} pairs ({sources}; left out: {skipped or 'none'}) -> {dst}")


def main() -> None:
    parser = cli.build_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="answers as tasks of Label Studio")
    export.add_argument("--src", type=Path, metavar="FILE", help="default: storage.rejections")
    export.add_argument("--dst", type=Path, metavar="FILE", required=True)
    importer = commands.add_parser("import", help="decisions made in Label Studio")
    importer.add_argument("--src", type=Path, metavar="FILE", required=True)
    pair = commands.add_parser("preferences", help="pairs for preference training")
    pair.add_argument("--dst", type=Path, metavar="FILE", required=True)
    pair.add_argument("--split", nargs="+", choices=["train", "val", "test"], default=["train"])
    for command in commands.choices.values():  # --config also after the command's name
        command.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE")
    args = parser.parse_args()
    config = load_config(args.config)
    if args.command == "export":
        run_export(config, args.src, args.dst)
    elif args.command == "import":
        run_import(config, args.src)
    else:
        run_preferences(config, args.dst, args.split)


if __name__ == "__main__":
    cli.run(main)
