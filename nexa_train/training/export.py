"""Write the finished student, and prove that the folder on disk is the model that was trained.

Writes: `final/`: merged weights (safetensors, bfloat16), tokenizer, chat template with the run's
        settings, `generation_config.json` with the end tokens of the training, `training.json` and
        the model card `README.md`; under a temporary name until the proof is done
Raises: ExportRefused (3) naming the difference; nothing is sealed then, the folder is removed, and
        the checkpoints of the training are kept
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError, QualityGateMissed
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.atomic import write_json, write_text
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import read_batches
from nexa_train.data.chat_format import ChatFormat
from nexa_train.data.chat_tokenization import Sample
from nexa_train.data.dataset import Dataset
from nexa_train.models.folders import complete_folder
from nexa_train.models.generation import padding_token
from nexa_train.models.loading import load_model, load_tokenizer
from nexa_train.reports import model_card
from nexa_train.training import as_trained, folder_notes
from nexa_train.training.as_trained import ANSWER_TOKENS, AsTrained, Differences

PROMPTS = 4
PRECISION = torch.bfloat16
# Nats that an export may differ by (as_trained.Differences): weights are rounded to bfloat16, 8
# bits of mantissa, which can swap two tokens of nearly equal probability. Measured: see
# docs/baseline.md, "What rounding changes in an export".
ALLOWED = {"row": 0.1, "mean": 0.01, "choice": 0.25}
NATS = {"row": "the loss of a row", "mean": "the mean loss of all rows", "choice": "a token of a greedy answer"}
Messages = list[dict[str, str]]


class ExportRefused(QualityGateMissed):
    """The saved folder is not the model that was trained."""


def export_student(
    model: Any,
    form: ChatFormat,
    final: Path,
    *,
    config: StudentConfig,
    stage: StageRun,
    dataset: Path,
    data: Dataset,
    val_loss: float | None,
    before: AsTrained,
) -> None:
    """Save `model`, on one device, as `final`; its weights are cast to bfloat16 in place. `dataset`: file of `data`."""
    prompts = proof_prompts(dataset, data)
    to_precision(model)
    set_stop_tokens(model, form)
    with complete_folder(final) as temporary:
        model.save_pretrained(temporary)
        folder_notes.save_tokenizer(form.tokenizer, temporary)
        folder_notes.write_older_names(temporary)
        differences = prove_export(temporary, model, form, prompts, before, proof_samples(data))
        facts = model_card.training_facts(config, stage, dataset, final.parent) | {
            "parameters": sum(p.numel() for p in model.parameters()),
            "train_samples": len(data.train),
            "val_samples": len(data.val),
            "skipped": data.skipped,
            "samples_sha256": data.sha256,
            "val_loss": val_loss,
            "proof": {
                "rows": len(before.losses),
                "prompts": len(prompts),
                "tokens": ANSWER_TOKENS,
                "precision": "bfloat16",
                "differences": differences._asdict(),
            },
            "end_of_turn": form.end_text,
            "folds_system": form.folds_system,
            "notes": folder_notes.reader_notes(temporary),
        }
        write_json(temporary / "training.json", facts)
        write_text(temporary / "README.md", model_card.render_card(facts, None))


def to_precision(model: Any) -> None:
    # Buffers such as rotary frequencies stay exact, as in a model that is loaded in bfloat16.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(PRECISION)


def set_stop_tokens(model: Any, form: ChatFormat) -> None:
    # `generate` and every server of these files have to end an answer where the training did; the
    # list of the base model may name another token (an end of document) or more of them.
    stops: int | list[int] = form.stop_tokens[0] if len(form.stop_tokens) == 1 else form.stop_tokens
    own = model.generation_config
    for settings in (own, model.config, model.config.get_text_config()):
        settings.eos_token_id = stops
    own.pad_token_id = padding_token(model, form.tokenizer, form.stop_tokens)
    if not own.do_sample:  # a changed file is validated, and these are for sampling only
        own.temperature = own.top_p = own.top_k = None


def proof_samples(data: Dataset) -> list[Sample]:
    return data.val or data.train[:PROMPTS]


def proof_prompts(dataset: Path, data: Dataset) -> dict[str, Messages]:
    sample_ids = pa.array([sample.sample_id for sample in proof_samples(data)[:PROMPTS]])
    columns = ["sample_id", "messages"]
    return {
        row["sample_id"]: row["messages"][:-1]  # the last answer is generated
        for batch in read_batches(dataset, TABLES["sft_parquet"], columns=columns)
        for row in batch.filter(pc.is_in(batch["sample_id"], sample_ids)).to_pylist()
    }


def prove_export(
    folder: Path,
    model: Any,
    form: ChatFormat,
    prompts: Mapping[str, Messages],
    before: AsTrained,
    samples: Sequence[Sample],
) -> Differences:
    """Raises ExportRefused unless `folder` equals `model` and its tokenizer, and fits `before`."""
    try:
        # As its users load it. Other precisions, hardware and servers are not covered.
        loaded, reader = load_model(str(folder), dtype=PRECISION), load_tokenizer(str(folder))
    except InputError as error:
        raise _export_refused(f"it cannot be loaded ({error})") from None
    loaded = loaded.to(next(model.parameters()).device).eval()
    model.eval()
    model.set_attn_implementation(loaded.config._attn_implementation)  # packing replaced it
    # Compared with the saved model: lost or untied weights, another configuration, tokenizer,
    # template or end of turn.
    for difference in _find_differences(model, form, loaded, reader, prompts):
        raise _export_refused(difference)
    # Compared with the model as it was trained: a wrong merge or cast. In float32 only the rounding
    # of the weights is left as a difference.
    differences = as_trained.compare_export(before, loaded.float(), samples, form, prompts)
    for name, value in differences._asdict().items():
        if value is not None and not value <= ALLOWED[name]:  # true for NaN too
            raise _export_refused(
                f"{NATS[name]} is {value:.3f} nats from the model as it was trained, before it was "
                f"merged and cast; rounding explains at most {ALLOWED[name]:g}"
            )
    return differences


def _export_refused(why: str) -> ExportRefused:
    return ExportRefused(
        f"the saved checkpoint is not the model that was trained: {why}. Nothing was sealed, and "
        "the step-* checkpoints are intact: run the same command again; if this error repeats, "
        "this student's class cannot be saved by this transformers, take another student or version"
    )


def _find_differences(
    model: Any, form: ChatFormat, loaded: Any, reader: Any, prompts: Mapping[str, Messages]
) -> Iterator[str]:
    # The cheapest first, since the first one ends the proof.
    stops = loaded.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else sorted(stops or [])
    if stops != form.stop_tokens:
        yield f"generation_config.json ends an answer with {stops}, the training with {form.stop_tokens}"
    for sample, messages in prompts.items():
        prompt = reader.apply_chat_template(form.plain_messages(messages), add_generation_prompt=True)
        if list(prompt["input_ids"]) != form.prompt_ids(messages):
            yield f"its tokenizer or chat template reads the prompt of {sample} differently"
    saved = loaded.state_dict()
    for name, weight in model.state_dict().items():
        if name not in saved or not torch.equal(saved[name].to(PRECISION), weight.to(PRECISION)):
            yield f"the weight {name} differs"
    expected, now = (as_trained.greedy_answers(m, form, prompts) for m in (model, loaded))
    for sample, answer in expected.items():
        if answer != now[sample] or form.tokenizer.decode(answer) != reader.decode(now[sample]):
            yield f"its greedy answer to {sample} is {reader.decode(now[sample])!r}, " + (
                f"the model's in memory is {form.tokenizer.decode(answer)!r}"
            )
