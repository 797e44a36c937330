"""A teacher writes the outputs that instruction items lack; what was answered is never asked again.

Reads:  items (`instructions.Item`), a teacher: a model on this machine, or an OpenAI-compatible API
Writes: `storage.raw_dataset` (what is lacking), `storage.collected_dataset` (the answers to it);
        an API's also into `storage.journal`, a local model's into parts below the answers: both
        remember what was answered, and the same command continues after any stop
Keeps:  every item, in its order. An answer that was cut at `max_new_tokens`, or that the API
        flagged, is no answer: an item without a whole one keeps its empty output. The output is the
        answer alone; the reasoning that a teacher shows is in `storage.collected_dataset`
Raises: as the gateway (an API), InputError (65) for a model that cannot be loaded
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.console.progress import Progress
from nexa_distill.contracts import INPUTS, OUTPUTS
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import table_writer
from nexa_train.data.instructions import Item, Prompt, key_of

PART = 32  # prompts of a part: what a kill can cost
ANSWER = ["sample_id", "teacher_output", "finish_reason", "answer_flag"]
Row = dict[str, Any]
Answer = Callable[[], None]  # asks storage.raw_dataset, writes storage.collected_dataset


def fill(items: Sequence[Item], prompt: Prompt, storage: Storage, answer: Answer) -> list[Item]:
    """The items with their outputs, `answer` having been asked for those that had none."""
    src, dst = storage.path("raw_dataset"), storage.path("collected_dataset")
    lacking = {key_of(item): _input(item, prompt) for item in items if not item["output"].strip()}
    if not lacking:
        return list(items)
    rows = list(lacking.values())
    if not src.exists() or pq.read_table(src).to_pylist() != rows:
        with table_writer(src, INPUTS) as out:
            out.write(pa.Table.from_pylist(rows, INPUTS))
        StageRun("dedup", storage, inputs=[], settings={}).seal(src, rows_in=len(rows), rejected=0)
    answer()
    found = pq.read_table(dst, columns=ANSWER).to_pylist()
    whole = {row["sample_id"]: row["teacher_output"].strip() for row in found
             if row["teacher_output"] and row["finish_reason"] != "length"
             and row["answer_flag"] is None}  # fmt: skip
    filled = [item if item["output"].strip() else item | {"output": whole.get(key_of(item), "")}
              for item in items]  # fmt: skip
    cut = sum(row["finish_reason"] == "length" for row in found)
    empty = sum(not item["output"].strip() for item in filled)
    print(f"teacher: {len(filled) - empty} of {len(filled)} items have an output"
          + (f"; {cut} answers were cut, raise inference.max_new_tokens" if cut else ""),
          flush=True)  # fmt: skip
    return filled


def _input(item: Item, prompt: Prompt) -> Row:
    """A row of contracts.INPUTS; a teacher is asked what the student will be asked."""
    key = key_of(item)
    row = dict.fromkeys(INPUTS.names) | {"sample_id": key, "task_id": "instruction"}
    return row | {
        "template_name": "instruction", "user_prompt": prompt(item), "source_file": "job",
        "source_row": 0, "cluster_id": key, "split": "train",
    }  # fmt: skip


def by_api(configured: Callable[[], DistillConfig]) -> Answer:
    """Ask the provider of the configuration, through the ledger; what failed before, again."""

    def answer() -> None:
        from nexa_distill import collect_teacher

        collect_teacher.run(configured(), retry_failed=True)

    return answer


def by_model(
    load: Callable[[], tuple[Any, Any]], settings: Row, storage: Storage, weights: Sequence[Path]
) -> Answer:
    """Ask a model in this process. `settings`: max_new_tokens, temperature, batch_size, seed,
    name."""

    def answer() -> None:
        src, dst = storage.path("raw_dataset"), storage.path("collected_dataset")
        stage = StageRun("teacher", storage, inputs=[src, *weights], settings=settings)
        if stage.is_current(dst):
            print(f"teacher: {dst} is up to date", flush=True)
            return
        known = StageRun("teacher", storage, inputs=weights, settings=settings).key
        folder = dst.with_name(f".{dst.stem}.parts") / known[:16]
        rows = {row["sample_id"]: row for row in pq.read_table(src).to_pylist()}
        asked = {(key, row["user_prompt"]) for key, row in rows.items()}
        done = {
            row["sample_id"]: row
            for row in _parts(folder)
            if (row["sample_id"], row["user_prompt"]) in asked
        }
        left = [row for key, row in rows.items() if key not in done]
        if left:
            for part in _answers(load, left, settings):
                number = len(list(folder.glob("*.parquet")))
                with table_writer(folder / f"{number:06d}.parquet", OUTPUTS) as out:
                    out.write(pa.Table.from_pylist(part, OUTPUTS))
                done |= {row["sample_id"]: row for row in part}
        with table_writer(dst, OUTPUTS) as out:
            out.write(pa.Table.from_pylist([done[key] for key in rows], OUTPUTS))
        stage.seal(dst, rows_in=len(rows), rejected=0)

    return answer


def _parts(folder: Path) -> Iterator[Row]:
    for part in sorted(folder.glob("*.parquet")):
        yield from pq.read_table(part).to_pylist()


def _answers(
    load: Callable[[], tuple[Any, Any]], rows: Sequence[Row], settings: Row
) -> Iterator[list[Row]]:
    from nexa_train.models.replies import replies

    model, tokenizer = load()
    with Progress("teacher", len(rows), unit="answers") as progress:
        for start in range(0, len(rows), PART):
            some = rows[start : start + PART]
            said = replies(model, tokenizer, [row["user_prompt"] for row in some],
                           max_new_tokens=settings["max_new_tokens"], seed=settings["seed"] + start,
                           temperature=settings["temperature"],
                           batch_size=settings["batch_size"])  # fmt: skip
            yield [dict.fromkeys(OUTPUTS.names) | row | {
                "attempt": 0, "teacher_output": reply.text or None,
                "reasoning_output": reply.reasoning, "model_id": settings["name"],
                "finish_reason": "stop" if reply.ended else "length",
                "completion_tokens": reply.tokens,
            } for row, reply in zip(some, said, strict=True)]  # fmt: skip
            progress.add(len(some))
