"""The finished checkpoint, and the proof that what is on disk is the model that was trained.

Writes: `final/`: merged weights (safetensors, bfloat16), tokenizer, chat template, `training.json`
        and the model card `README.md`; under another name until the proof is done
Keeps:  nothing of a folder that fails it, and everything that the training saved before
Raises: ExportRefused (3) naming what differs; nothing is sealed then

The proof: the folder is loaded again, as its users will load it. Each weight must be that of the
model in memory, bit for bit; for `PROMPTS` conversations of the validation split (without one: of
the training split) the prompt must have the same tokens, and the greedy answer to it, `TOKENS`
long, must be the same. That shows lost or untied weights, a configuration that builds another
model, another tokenizer, template or end of turn. It does not show what another precision,
hardware or server makes of the same files.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError, QualityGateMissed
from nexa_distill.handoff import read_batches, write_json, write_text
from nexa_distill.manifests import StageRun
from nexa_distill.student_config import StudentConfig
from nexa_train import checkpoints, model_card
from nexa_train.chat import prompt_ids
from nexa_train.generation import new_tokens, stop_tokens
from nexa_train.local_models import load_model, load_tokenizer
from nexa_train.sft_data import Dataset

PROMPTS, TOKENS = 4, 32
PRECISION = torch.bfloat16
Messages = list[dict[str, str]]


class ExportRefused(QualityGateMissed):
    """The saved folder is not the model that was trained."""


def write(
    model: Any, tokenizer: Any, final: Path, *, config: StudentConfig, stage: StageRun,
    dataset: Path, data: Dataset, val_loss: float | None,
) -> None:  # fmt: skip
    """Save `model`, whole and on one device, as `final` in bfloat16; the model is changed to that.

    `dataset` is the file that `data` was made from, `stage` the training.
    """
    prompts = proof_prompts(dataset, data)
    to_precision(model)
    with checkpoints.complete_folder(final) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        prove(temporary, model, tokenizer, prompts)
        facts = model_card.facts(config, stage, dataset, final.parent) | {
            "parameters": sum(p.numel() for p in model.parameters()),
            "train_samples": len(data.train), "val_samples": len(data.val),
            "skipped": data.skipped, "samples_sha256": data.sha256, "val_loss": val_loss,
            "proof": {"prompts": len(prompts), "tokens": TOKENS, "precision": "bfloat16"},
        }  # fmt: skip
        write_json(temporary / "training.json", facts)
        write_text(temporary / "README.md", model_card.card(facts, None))


def to_precision(model: Any) -> None:
    """The weights in bfloat16, and only they: buffers such as rotary frequencies stay exact, as
    they are in a model that is loaded in bfloat16.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(PRECISION)


def proof_prompts(dataset: Path, data: Dataset) -> dict[str, Messages]:
    """What is asked in the proof: conversations without their last answer, by `sample_id`."""
    wanted = pa.array([sample.sample_id for sample in (data.val or data.train)[:PROMPTS]])
    columns = ["sample_id", "messages"]
    return {
        row["sample_id"]: row["messages"][:-1]
        for batch in read_batches(dataset, TABLES["sft_parquet"], columns=columns)
        for row in batch.filter(pc.is_in(batch["sample_id"], wanted)).to_pylist()
    }


def prove(folder: Path, model: Any, tokenizer: Any, prompts: Mapping[str, Messages]) -> None:
    """Raises ExportRefused unless `folder` holds `model` and `tokenizer`."""
    try:
        loaded, reader = load_model(str(folder), dtype=PRECISION), load_tokenizer(str(folder))
    except InputError as error:
        raise _refused(f"it cannot be loaded ({error})") from None
    loaded = loaded.to(next(model.parameters()).device).eval()
    model.eval()
    model.set_attn_implementation(loaded.config._attn_implementation)  # packing has one of its own
    for difference in _differences(model, tokenizer, loaded, reader, prompts):
        raise _refused(difference)


def _refused(why: str) -> ExportRefused:
    return ExportRefused(
        f"the saved checkpoint is not the model that was trained: {why}. Nothing was sealed, and "
        "the step-* checkpoints are intact: run the same command again; if it says the same, this "
        "student's class cannot be saved by this transformers, take another student or version"
    )


def _differences(
    model: Any, tokenizer: Any, loaded: Any, reader: Any, prompts: Mapping[str, Messages]
) -> Iterator[str]:
    """In words, the cheapest to find first."""
    stops, again = stop_tokens(model, tokenizer), stop_tokens(loaded, reader)
    if stops != again:
        yield f"an answer ended with the tokens {stops}, and would now end with {again}"
    for sample, messages in prompts.items():
        if prompt_ids(tokenizer, messages) != prompt_ids(reader, messages):
            yield f"its tokenizer or chat template reads the prompt of {sample} differently"
    saved = loaded.state_dict()
    for name, weight in model.state_dict().items():
        if name not in saved or not torch.equal(saved[name].to(PRECISION), weight.to(PRECISION)):
            yield f"the weight {name} is another"
    for sample, messages in prompts.items():
        ids = prompt_ids(tokenizer, messages)
        said, now = (
            new_tokens(m, reader, [ids], max_new_tokens=TOKENS, temperature=0.0, top_k=0, top_p=1.0,
                       stops=stops, seed=0)[0]
            for m in (model, loaded)
        )  # fmt: skip
        if said != now or tokenizer.decode(said) != reader.decode(now):
            yield f"its greedy answer to {sample} is {reader.decode(now)!r}, " + (
                f"the trained model's is {tokenizer.decode(said)!r}"
            )
