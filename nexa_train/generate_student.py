"""Answers of the student to the held-out prompts, before and after training.

Reads:  `storage.raw_dataset` (rows of the split that `generate.split` names) and the checkpoint
Writes: `storage.student_outputs` (trained) and `storage.baseline_outputs` (the same `keep_layers`
        of the same model, untrained), both contracts.OUTPUTS: the teacher's gates judge them
Keeps:  every prompt: one answer each, attempt 0, in the order of `sample_id`
Raises: InputMissing (66) without prompts or a sealed checkpoint, InputError (65)

The same rows get the same answers on every run; other hardware, or another batch_size, may round
differently. `finish_reason` is "stop" at an end of turn, and "length" if `max_new_tokens` or the
context length cut the answer. A prompt that fills the context has no answer.

Run: python -m nexa_train.generate_student [--config configs/baseline_distill.yaml]
         [--pipeline-config FILE] [--only trained|baseline] [--checkpoint DIR --dst FILE]
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from nexa_distill.collection.answers.extraction import Cleaner, build_cleaner
from nexa_distill.collection.requests.body import row_messages
from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import OUTPUTS, TABLES, Row
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import Generation, StudentConfig, load_both
from nexa_distill.settings.tasks import load_system_prompts
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import read_table, table_writer
from nexa_distill.text.hashing import sha256_text
from nexa_train.data.chat_format import ChatFormat, RowRefused, chat_format
from nexa_train.evaluation.held_out_prompts import select_held_out
from nexa_train.models.bundled import resolve_model
from nexa_train.models.generation import new_tokens
from nexa_train.models.loading import load_for_inference
from nexa_train.models.replies import Reply, read_reply

AnswerSet = Literal["trained", "baseline"]


@dataclass(frozen=True)
class Prompt:
    """One row to answer, and its rendered prompt as token ids."""

    row: Row
    ids: list[int]


def _encode_prompt(form: ChatFormat, row: Row, system: str | None) -> Prompt:
    try:
        return Prompt(row, form.prompt_ids(row_messages(row, system)))
    except RowRefused:
        return Prompt(row, [])  # no ids, no answer


def batch_prompts(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    # Similar lengths need the least padding; the longest batch first shows a lack of memory early.
    ordered = sorted(prompts, key=lambda p: (-len(p.ids), p.row["sample_id"]))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def answer_prompts(
    model: Any,
    form: ChatFormat,
    prompts: Sequence[Prompt],
    generate: Generation,
    model_id: str,
    cleaner: Cleaner,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[Row]:
    """One row of contracts.OUTPUTS per prompt, batch by batch. The model is in evaluation mode.

    `on_token` is called with the tokens of each answer of the current batch so far.
    """
    tokenizer, stops = form.tokenizer, form.stop_tokens
    for batch in batch_prompts(prompts, generate.batch_size):
        start = time.perf_counter()
        new = _generate_batch(model, tokenizer, batch, generate, stops, on_token)
        # A batch's time divided by its rows: the sum over all rows is the elapsed time.
        milliseconds = 1000 * (time.perf_counter() - start) / len(batch)
        for prompt, tokens in zip(batch, new, strict=True):
            row = _output_row(prompt, read_reply(tokenizer, prompt.ids, tokens, stops), model_id, milliseconds)
            text, raw = cleaner(row["template_name"], row["teacher_output"])
            yield row | {"teacher_output": text, "raw_output": raw}


def _generate_batch(
    model: Any,
    tokenizer: Any,
    batch: list[Prompt],
    generate: Generation,
    stops: list[int],
    on_token: Callable[[int], None] | None,
) -> list[list[int]]:
    own = model.generation_config
    # Above a temperature of 0 the checkpoint's top_k and top_p apply, as on a server. The seed
    # comes from the samples, so a repeated run gives the same answers.
    return new_tokens(
        model,
        tokenizer,
        [prompt.ids for prompt in batch],
        stops=stops,
        max_new_tokens=generate.max_new_tokens,
        temperature=generate.temperature,
        top_k=own.top_k or 0,
        top_p=own.top_p or 1.0,
        seed=int(sha256_text(batch[0].row["sample_id"])[:8], 16),
        on_token=on_token,
    )


def _output_row(prompt: Prompt, reply: Reply, model_id: str, milliseconds: float) -> Row:
    return {
        **prompt.row,
        **reply.output_columns(model_id),
        "prompt_tokens": len(prompt.ids),
        "total_tokens": len(prompt.ids) + reply.tokens,
        "latency_ms": milliseconds,
        "created_at": datetime.now(UTC),
    }


def run(
    config: DistillConfig,
    student: StudentConfig,
    *,
    only: AnswerSet | None = None,
    checkpoint: Path | None = None,
    dst: Path | None = None,
) -> None:
    """`checkpoint` and `dst` replace the trained student's own; then no baseline is written."""
    storage = config.storage
    # The baseline does not depend on training: a new training makes only the trained answers stale.
    if only != "trained" and checkpoint is None and dst is None:
        model = (student.student, student.keep_layers, f"{student.run_name} (before training)")
        _answer_all(config, student, storage.path_of("baseline_outputs"), None, model)
    if only != "baseline":
        folder = checkpoint or student.checkpoint_path(storage)
        trained = (str(folder), None, student.run_name)
        _answer_all(config, student, dst or storage.path_of("student_outputs"), folder, trained)


def _answer_all(
    config: DistillConfig,
    student: StudentConfig,
    dst: Path,
    checkpoint: Path | None,
    model: tuple[str, list[int] | None, str],
) -> None:
    """Write the answers of `model` (name, keep_layers, model_id) to every held-out prompt."""
    storage, (name, keep_layers, model_id) = config.storage, model
    prompts = storage.path_of("raw_dataset")
    inputs = [prompts] if checkpoint is None else [prompts, checkpoint]
    settings = student.generation_settings(config, build_cleaner(config).relevant_settings)
    stage = StageRun("student_gen", storage, inputs=inputs, settings=settings)
    if stage.is_current(dst):
        print(f"student_gen: {dst} is up to date")
        return
    rows = select_held_out(read_table(prompts, TABLES["raw_dataset"]), student.generate)
    if not rows:
        raise InputMissing(
            f"{prompts}: no prompt in the {student.generate.split} split; give the run more raw "
            f"data, or a larger split.{student.generate.split}, and run it from the start"
        )
    resolved = resolve_model(name, storage)
    loaded, tokenizer = load_for_inference(resolved, keep_layers, student)
    form = chat_format(tokenizer)
    systems = load_system_prompts(config)
    encoded_prompts = [_encode_prompt(form, row, systems.find_prompt(row["template_name"])) for row in rows]
    cleaner, answers = build_cleaner(config), []
    with Progress(f"answers of {model_id}", len(encoded_prompts), unit="answers") as progress:
        most = student.generate.max_new_tokens

        def show_tokens(tokens: int) -> None:
            progress.set_note(f"token {tokens} of at most {most}")

        for row in answer_prompts(loaded, form, encoded_prompts, student.generate, model_id, cleaner, show_tokens):
            answers.append(row)
            progress.add()
    if unread := sum(not row["completion_tokens"] for row in answers):
        print(
            f"student_gen: {unread} prompts have no answer: they are longer than {model_id} can "
            "read, or its chat template cannot render them"
        )
    # Answered from the longest on; the file is in the order of `sample_id`.
    answers.sort(key=lambda row: str(row["sample_id"]))
    with table_writer(dst, OUTPUTS) as out:
        out.write(pa.Table.from_pylist(answers, OUTPUTS))
    stage.seal_output(dst, rows_in=len(rows), rejected=0)
    print(f"student_gen: {len(answers)} answers of {model_id} -> {dst}")


def main() -> None:
    parser = cli.build_student_parser(__doc__)
    parser.add_argument("--only", choices=("trained", "baseline"), help="one of the two")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="another trained student")
    parser.add_argument("--dst", type=Path, metavar="FILE", help="file for its answers")
    args = parser.parse_args()
    if (args.checkpoint is None) != (args.dst is None):
        raise InputError("--checkpoint and --dst need each other: one is read, the other written")
    run(*load_both(args), only=args.only, checkpoint=args.checkpoint, dst=args.dst)


if __name__ == "__main__":
    cli.run(main)
