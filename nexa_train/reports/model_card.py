"""The model card, in Hugging Face's format: what the student is, in words for whoever gets it.

`facts` gathers what `final/training.json` says; `card` writes the card of that and, once there is
one, of the evaluation report. `final/` is sealed before it is evaluated, so the card in it says
that no scores are known yet; the evaluation writes the same card with scores beside its report, as
`evaluation/model_card.md` (docs/adr/0017). Reads metrics.jsonl, the training set and the manifests.

Names that come from data or from an API stand as code, in which Markdown and HTML mean nothing;
inputs are named without their folders.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from nexa_distill.contracts import TABLES
from nexa_distill.reporting.markdown import as_code, table
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.manifests import StageRun, code_version
from nexa_distill.storage.tables import read_batches
from nexa_train.models.bundled import BUNDLED, BUNDLED_LICENSE, BUNDLED_SOURCE
from nexa_train.reports.evaluation_text import (
    NOT_MEASURED,
    TITLES,
    figures,
    groups,
    number,
    regression,
)

Json = dict[str, Any]
COUNTED = ("split", "template_name", "domain", "model_id")
SPLITS = ("train", "val", "test")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def facts(config: StudentConfig, stage: StageRun, dataset: Path, folder: Path) -> Json:
    """Where the training in `folder` came from, what it read, and how it went."""
    return {
        "run_name": config.run_name, "run_id": stage.id, "code_version": code_version(),
        "student": config.student, "keep_layers": config.keep_layers, **_origin(config.student),
        "settings": config.training_settings(), "losses": _losses(folder / "metrics.jsonl"),
        "dataset": _counts(dataset),
        "inputs": [{"name": Path(i["path"]).name, "sha256": i["sha256"]} for i in stage.inputs],
    }  # fmt: skip


def _origin(student: str) -> Json:
    """`base_model`, as a hub id, and `license`: null where they are not known."""
    if student == BUNDLED:
        return {"base_model": BUNDLED_SOURCE, "license": BUNDLED_LICENSE}
    if Path(student).is_dir():
        return {"base_model": None, "license": _license(Path(student) / "README.md")}
    return {"base_model": student if HUB_ID.fullmatch(student) else None, "license": None}


def _license(readme: Path) -> str | None:
    """What the front matter of a model card says."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        said = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    name = said.get("license") if isinstance(said, dict) else None
    return name if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) else None


def _counts(dataset: Path) -> Json:
    """Rows by split, task type, domain and teacher; null is a value like others."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    for rows in read_batches(dataset, TABLES["sft_parquet"], columns=list(COUNTED)):
        for name in COUNTED:
            counts[name].update(value or "not said" for value in rows[name].to_pylist())
    return {name: dict(count.most_common()) for name, count in counts.items()}


def _losses(metrics: Path) -> Json:
    """The first and the last that were measured; null where none was."""
    text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    found = {name: [row[name] for row in rows if name in row] for name in ("loss", "val_loss")}
    return {
        name: {"first": values[0], "last": values[-1]} if values else None
        for name, values in found.items()
    }


def read(checkpoint: Path) -> Json:
    """Its training.json; one that an earlier version wrote says too little for a card: empty."""
    path = checkpoint / "training.json"
    found: Json = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if "end_of_turn" in found else {}


def card(training: Json, report: Json | None) -> str:
    """The card of a checkpoint: from its training.json, and the report on it if there is one."""
    if not training:
        note = "How it was trained is not known here: its checkpoint is of an earlier version."
        return "\n".join(["# Student", "", note, "", *_scores(report)]) + "\n"
    lines = [*_front_matter(training), f"# {as_code(training['run_name'])}", ""]
    lines += [*_what(training), *_use(training), *_data(training), *_training(training)]
    lines += _scores(report)
    return "\n".join([*lines, *_lineage(training, report)]) + "\n"


def _front_matter(training: Json) -> list[str]:
    known = {name: training[name] for name in ("license", "base_model") if training[name]}
    said = yaml.safe_dump(
        {
            **known, "library_name": "transformers", "pipeline_tag": "text-generation",
            "tags": ["distillation", "nexa-distill", "safetensors", "conversational"],
        },
        sort_keys=False,
    )  # fmt: skip
    return ["---", said.rstrip(), "---", ""]


def _what(training: Json) -> list[str]:
    layers = training["keep_layers"]
    cut = f", of which it keeps {len(layers)} layers" if layers else ""
    base = as_code(training["base_model"] or Path(training["student"]).name)
    license_ = training["license"]
    return [
        f"A student of {number(training['parameters'])} parameters, made from {base}{cut}. It was "
        "trained on the samples below, each of which the preflight looked at. Weights are bfloat16 "
        "safetensors; ask it with the chat template that is in the folder.", "",
        (f"The licence is that of the base model, {as_code(license_)}." if license_ else
         "The licence of the base model is not known here.")
        + " The terms of the teacher and of the data hold beside it.", "",
    ]  # fmt: skip


def _data(training: Json) -> list[str]:
    counts = training["dataset"]
    rows = [[name, number(counts["split"].get(name, 0))] for name in SPLITS]
    lines = ["## Data", "", *table(["split", "samples"], rows), ""]
    skipped = sum(training["skipped"].values())
    lines += [
        f"Trained on {number(training['train_samples'])} of them, {number(skipped)} were refused. "
        f"sha256 of all tokens and labels: `{training['samples_sha256']}`.", "",
    ]  # fmt: skip
    for title, key in (("teacher", "model_id"), ("task type", "template_name"),
                       ("domain", "domain")):  # fmt: skip
        named = [[as_code(name), number(count)] for name, count in counts[key].items()]
        lines += [*table([title, "samples"], named), ""]
    return lines


def _training(training: Json) -> list[str]:
    rows = [
        [title, *(number(pair[end], 4) if pair else NOT_MEASURED for end in ("first", "last"))]
        for title, pair in (
            ("training loss", training["losses"]["loss"]),
            ("validation loss", training["losses"]["val_loss"]),
        )
    ]
    settings = [
        [key, as_code(value)]
        for part in ("train", "distillation")
        for key, value in training["settings"].get(part, {}).items()
    ]
    return [
        "## Training", "", *table(["nats per trained token", "first", "last"], rows), "",
        *table(["setting", "value"], settings), "",
    ]  # fmt: skip


def _scores(report: Json | None) -> list[str]:
    if report is None:
        return [
            "## Scores", "",
            "Not evaluated yet when this was written: the checkpoint is sealed before its "
            "evaluation, which writes this card with scores as `evaluation/model_card.md`.", "",
        ]  # fmt: skip
    models = report["models"]
    lines = ["## Scores", "", *(f"- {sentence}" for sentence in report["headline"])]
    lines += [f"- {regression(report['regression'])}", ""]
    lines += table(["", *TITLES.values()], [[name, *texts] for name, texts in figures(models)])
    for title, key in (("task type", "by_task"), ("domain", "by_domain")):
        lines += ["", *groups(models, title, key)]
    return [
        *lines, "",
        f"On {number(report['prompts'])} prompts of the {report['split']} split, none of which was "
        "trained on; brackets are 95 % score intervals.", "",
    ]  # fmt: skip


def _lineage(training: Json, report: Json | None) -> list[str]:
    proof = training["proof"]
    rows = [["training run", as_code(training["run_id"])],
            ["code", as_code(training["code_version"])]]  # fmt: skip
    rows += [[f"input {as_code(i['name'])}", f"`{i['sha256']}`"] for i in training["inputs"]]
    if report:
        rows += [["evaluation run", as_code(report["run_id"])],
                 ["checkpoint", as_code(report["facts"]["checkpoint_sha256"])]]  # fmt: skip
    return [
        "## Lineage", "", *table(["what", "id or sha256"], rows), "",
        f"This folder was loaded again before it was sealed: every weight and the greedy answers "
        f"to {proof['prompts']} prompts ({proof['tokens']} tokens each, {proof['precision']}) were "
        f"those of the model in memory, and the loss of {proof['rows']} rows that of the model as "
        "it was trained.",
    ]  # fmt: skip


def _use(training: Json) -> list[str]:
    """What a program that loads the folder has to know."""
    end = as_code(training["end_of_turn"]).replace(r"\|", "|")  # which is a table's escape
    sentences = [
        f"An answer ends with {end}: see `generation_config.json`.",
        "The chat template is in `chat_template.jinja`, with the settings of the training.",
    ]
    if training["folds_system"]:
        sentences.append(
            "It has no system role: system text was put at the head of the first user message, "
            "with an empty line after it."
        )
    sentences.append("Written by transformers 5, with the names that transformers 4 reads.")
    return ["## Use", "", " ".join([*sentences, *training["notes"]]), ""]
