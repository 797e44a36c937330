"""A teacher writes the missing outputs of instruction items; no answered item is requested again.

Reads:  items (`instructions.Item`), a teacher: a local model, or an OpenAI-compatible API
Writes: `storage.raw_dataset` (items without output), `storage.collected_dataset` (their answers);
        an API's answers also in `storage.journal`, a local model's in parts beside them: the same
        command continues after any stop
Keeps:  every item, in order. An item whose answer was cut at `max_new_tokens`, or flagged by the
        API, keeps its empty output. The output is the answer without the reasoning, which is in
        `storage.collected_dataset`
Raises: as the client (an API), InputError (65) for a model that cannot be loaded
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.console.progress import Progress
from nexa_distill.contracts import INPUTS, OUTPUTS, Row
from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import table_writer
from nexa_train.data.instructions import Item, Prompt, item_key

PART_PROMPTS = 32  # prompts of a part: the most that a kill can lose
ANSWER_COLUMNS = ["sample_id", "teacher_output", "finish_reason", "answer_flag"]
AskTeacher = Callable[[], object]  # reads storage.raw_dataset, writes storage.collected_dataset


def fill_outputs(items: Sequence[Item], prompt: Prompt, storage: Storage, answer: AskTeacher) -> list[Item]:
    """The items with their outputs; `answer` is called if some have none."""
    src, dst = storage.path_of("raw_dataset"), storage.path_of("collected_dataset")
    lacking = {item_key(item): _input_row(item, prompt) for item in items if not item["output"].strip()}
    if not lacking:
        return list(items)
    rows = list(lacking.values())
    # An unchanged table keeps its seal, so its answers stay current.
    if not src.exists() or pq.read_table(src).to_pylist() != rows:
        with table_writer(src, INPUTS) as out:
            out.write(pa.Table.from_pylist(rows, INPUTS))
        StageRun("dedup", storage, inputs=[], settings={}).seal_output(src, rows_in=len(rows), rejected=0)
    answer()
    answers = pq.read_table(dst, columns=ANSWER_COLUMNS).to_pylist()
    outputs = {
        row["sample_id"]: row["teacher_output"].strip()
        for row in answers
        if row["teacher_output"] and row["finish_reason"] != "length" and row["answer_flag"] is None
    }
    filled = [item if item["output"].strip() else item | {"output": outputs.get(item_key(item), "")} for item in items]
    cut = sum(row["finish_reason"] == "length" for row in answers)
    count = sum(bool(item["output"].strip()) for item in filled)
    hint = f"; {cut} answers were cut, raise inference.max_new_tokens" if cut else ""
    print(f"teacher: {count} of {len(filled)} items have an output{hint}", flush=True)
    return filled


def _input_row(item: Item, prompt: Prompt) -> Row:
    """A row of contracts.INPUTS; teacher and student get the same prompt."""
    key = item_key(item)
    row = dict.fromkeys(INPUTS.names) | {"sample_id": key, "task_id": "instruction"}
    return row | {
        "template_name": "instruction",
        "user_prompt": prompt(item),
        "source_file": "job",
        "source_row": 0,
        "cluster_id": key,
        "split": "train",
    }


def answer_by_model(
    load: Callable[[], tuple[Any, Any]], settings: Row, storage: Storage, weights: Sequence[Path]
) -> None:
    """Ask a model in this process. `settings`: name, batch_size and sampling of the job."""
    src, dst = storage.path_of("raw_dataset"), storage.path_of("collected_dataset")
    stage = StageRun("teacher", storage, inputs=[src, *weights], settings=settings)
    if stage.is_current(dst):
        print(f"teacher: {dst} is up to date", flush=True)
        return
    # Parts depend on model and settings, not on the items: more items reuse old answers.
    key = StageRun("teacher", storage, inputs=weights, settings=settings).resume_key
    folder = dst.with_name(f".{dst.stem}.parts") / key[:16]
    rows = {row["sample_id"]: row for row in pq.read_table(src).to_pylist()}
    done = {
        row["sample_id"]: row
        for part in sorted(folder.glob("*.parquet"))
        for row in pq.read_table(part).to_pylist()
        if row["user_prompt"] == rows.get(row["sample_id"], {}).get("user_prompt")
    }
    if missing := [row for name, row in rows.items() if name not in done]:
        for part in _generate_parts(load, missing, settings):
            number = len(list(folder.glob("*.parquet")))
            _write_outputs(folder / f"{number:06d}.parquet", part)
            done |= {row["sample_id"]: row for row in part}
    _write_outputs(dst, [done[key] for key in rows])
    stage.seal_output(dst, rows_in=len(rows), rejected=0)


def _write_outputs(path: Path, rows: Sequence[Row]) -> None:
    with table_writer(path, OUTPUTS) as out:
        out.write(pa.Table.from_pylist(rows, OUTPUTS))


def _generate_parts(load: Callable[[], tuple[Any, Any]], rows: Sequence[Row], settings: Row) -> Iterator[list[Row]]:
    from nexa_train.models.replies import generate_replies

    model, tokenizer = load()
    sampling = {name: settings[name] for name in ("max_new_tokens", "temperature", "batch_size")}
    with Progress("teacher", len(rows), unit="answers") as progress:
        for start in range(0, len(rows), PART_PROMPTS):
            some = rows[start : start + PART_PROMPTS]
            prompts = [row["user_prompt"] for row in some]
            replies = generate_replies(model, tokenizer, prompts, seed=settings["seed"] + start, **sampling)
            yield [
                row | reply.output_columns(settings["name"]) | {"teacher_output": reply.text or None}
                for row, reply in zip(some, replies, strict=True)
            ]
            progress.add(len(some))
