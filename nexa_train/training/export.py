"""The finished checkpoint, and the proof that what is on disk is the model that was trained.

Writes: `final/`: merged weights (safetensors, bfloat16), tokenizer, chat template with the run's
        settings, `generation_config.json` that ends an answer where the training did,
        `training.json` and the model card `README.md`; under another name until the proof is done
Keeps:  nothing of a folder that fails it, and everything that the training saved before
Raises: ExportRefused (3) naming what differs; nothing is sealed then

The proof: the folder is loaded again, as its users will load it, and compared twice. With the model
as it was trained, before any merge, cast or save (`as_trained`): the loss of every validation row,
and greedy answers, within what rounding to bfloat16 changes. With the model in memory that was
saved: each weight bit for bit, the tokens of `PROMPTS` prompts as anyone's `apply_chat_template`
makes them, what ends an answer in `generation_config.json`, and the greedy answers. That shows lost
or untied weights, an adapter merged into a shared weight, a configuration that builds another
model, another tokenizer, template or end of turn. It does not show what another precision, hardware
or server makes of the same files.
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
from nexa_train.training.as_trained import TOKENS, AsTrained, Differences

PROMPTS = 4
PRECISION = torch.bfloat16
# Nats that an export may differ by (as_trained.Differences): it rounds weights to bfloat16, 8 bits
# of mantissa, and where two tokens are nearly as likely, that decides which comes first. Measured:
# see docs/baseline.md, "What rounding changes in an export".
ALLOWED = {"row": 0.1, "mean": 0.01, "choice": 0.25}
NATS = {"row": "the loss of a row", "mean": "the mean loss of all rows",
        "choice": "a token of a greedy answer"}  # fmt: skip
Messages = list[dict[str, str]]


class ExportRefused(QualityGateMissed):
    """The saved folder is not the model that was trained."""


def write(
    model: Any, form: ChatFormat, final: Path, *, config: StudentConfig, stage: StageRun,
    dataset: Path, data: Dataset, val_loss: float | None, before: AsTrained,
) -> None:  # fmt: skip
    """Save `model`, whole and on one device, as `final` in bfloat16; the model is changed to that.

    `dataset` is the file that `data` was made from, `stage` the training, `before` what the model
    did before it was merged.
    """
    prompts = proof_prompts(dataset, data)
    to_precision(model)
    set_stops(model, form)
    with complete_folder(final) as temporary:
        model.save_pretrained(temporary)
        folder_notes.save_tokenizer(form.tokenizer, temporary)
        folder_notes.write_older_names(temporary)
        found = prove(temporary, model, form, prompts, before, proof_samples(data))
        facts = model_card.facts(config, stage, dataset, final.parent) | {
            "parameters": sum(p.numel() for p in model.parameters()),
            "train_samples": len(data.train), "val_samples": len(data.val),
            "skipped": data.skipped, "samples_sha256": data.sha256, "val_loss": val_loss,
            "proof": {"rows": len(before.losses), "prompts": len(prompts), "tokens": TOKENS,
                      "precision": "bfloat16", "differences": found._asdict()},
            "end_of_turn": form.end_text, "folds_system": form.folds_system,
            "notes": folder_notes.notes(temporary),
        }  # fmt: skip
        write_json(temporary / "training.json", facts)
        write_text(temporary / "README.md", model_card.card(facts, None))


def to_precision(model: Any) -> None:
    """The weights in bfloat16, and only they: buffers such as rotary frequencies stay exact, as
    they are in a model that is loaded in bfloat16.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(PRECISION)


def set_stops(model: Any, form: ChatFormat) -> None:
    """Let `generate`, and every server that reads these files, end where the training did.

    The base model's own list may name another token (a base model's end of a document) or more.
    """
    stops: int | list[int] = form.stops[0] if len(form.stops) == 1 else form.stops
    own = model.generation_config
    for settings in (own, model.config, model.config.get_text_config()):
        settings.eos_token_id = stops
    own.pad_token_id = padding_token(model, form.tokenizer, form.stops)
    if not own.do_sample:  # a changed file is validated, and these are only of sampling
        own.temperature = own.top_p = own.top_k = None


def proof_samples(data: Dataset) -> list[Sample]:
    """Whose losses are compared: every validation row."""
    return data.val or data.train[:PROMPTS]


def proof_prompts(dataset: Path, data: Dataset) -> dict[str, Messages]:
    """What is asked in the proof: conversations without their last answer, by `sample_id`."""
    wanted = pa.array([sample.sample_id for sample in proof_samples(data)[:PROMPTS]])
    columns = ["sample_id", "messages"]
    return {
        row["sample_id"]: row["messages"][:-1]
        for batch in read_batches(dataset, TABLES["sft_parquet"], columns=columns)
        for row in batch.filter(pc.is_in(batch["sample_id"], wanted)).to_pylist()
    }


def prove(
    folder: Path, model: Any, form: ChatFormat, prompts: Mapping[str, Messages],
    before: AsTrained, samples: Sequence[Sample],
) -> Differences:  # fmt: skip
    """Raises ExportRefused unless `folder` is `model` and its tokenizer, and does as `before`."""
    try:
        loaded, reader = load_model(str(folder), dtype=PRECISION), load_tokenizer(str(folder))
    except InputError as error:
        raise _refused(f"it cannot be loaded ({error})") from None
    loaded = loaded.to(next(model.parameters()).device).eval()
    model.eval()
    model.set_attn_implementation(loaded.config._attn_implementation)  # packing has one of its own
    for difference in _differences(model, form, loaded, reader, prompts):
        raise _refused(difference)
    # The same weights, computed in float32: what is left is what rounding the weights changes.
    found = as_trained.compare(before, loaded.float(), samples, form, prompts)
    for name, value in found._asdict().items():
        if value is not None and not value <= ALLOWED[name]:  # also holds of what is not a number
            raise _refused(
                f"{NATS[name]} is {value:.3f} nats from the model as it was trained, before it was "
                f"merged and cast; rounding explains at most {ALLOWED[name]:g}"
            )
    return found


def _refused(why: str) -> ExportRefused:
    return ExportRefused(
        f"the saved checkpoint is not the model that was trained: {why}. Nothing was sealed, and "
        "the step-* checkpoints are intact: run the same command again; if it says the same, this "
        "student's class cannot be saved by this transformers, take another student or version"
    )


def _differences(
    model: Any, form: ChatFormat, loaded: Any, reader: Any, prompts: Mapping[str, Messages]
) -> Iterator[str]:
    """In words, the cheapest to find first. `loaded` and `reader` are asked as their users do."""
    stops = loaded.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else sorted(stops or [])
    if stops != form.stops:
        yield f"generation_config.json ends an answer with {stops}, the training with {form.stops}"
    for sample, messages in prompts.items():
        made = reader.apply_chat_template(form.plain(messages), add_generation_prompt=True)
        if list(made["input_ids"]) != form.prompt_ids(messages):
            yield f"its tokenizer or chat template reads the prompt of {sample} differently"
    saved = loaded.state_dict()
    for name, weight in model.state_dict().items():
        if name not in saved or not torch.equal(saved[name].to(PRECISION), weight.to(PRECISION)):
            yield f"the weight {name} is another"
    expected, now = (as_trained.greedy_answers(m, form, prompts) for m in (model, loaded))
    for sample, answer in expected.items():
        if answer != now[sample] or form.tokenizer.decode(answer) != reader.decode(now[sample]):
            yield f"its greedy answer to {sample} is {reader.decode(now[sample])!r}, " + (
                f"the model's in memory is {form.tokenizer.decode(answer)!r}"
            )
