"""The model card of a student, in Hugging Face's format.

`training_facts` gathers the content of `final/training.json`; `render_card` renders it, with the scores of the
evaluation report if there is one. `final/` is sealed before its evaluation, so its card has no
scores; the evaluation writes `evaluation/model_card.md` with scores (docs/adr/0017).
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from nexa_distill.contracts import TABLES
from nexa_distill.reporting.markdown import as_code, markdown_table
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.manifests import StageRun, code_version
from nexa_distill.storage.tables import read_batches
from nexa_train.models.bundled import BUNDLED, BUNDLED_LICENSE, BUNDLED_SOURCE
from nexa_train.reports.evaluation_text import (
    NOT_MEASURED,
    TITLES,
    figure_rows,
    format_number,
    group_table,
    regression_paragraph,
)

Json = dict[str, Any]
COUNTED_COLUMNS = ("split", "template_name", "domain", "model_id")
SPLITS = ("train", "val", "test")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def training_facts(config: StudentConfig, stage: StageRun, dataset: Path, folder: Path) -> Json:
    """Source, settings, inputs and losses of the training in `folder`."""
    return {
        "run_name": config.run_name,
        "run_id": stage.id,
        "code_version": code_version(),
        "student": config.student,
        "keep_layers": config.keep_layers,
        **_base_model_facts(config.student),
        "settings": config.training_settings(),
        "losses": _first_and_last_losses(folder / "metrics.jsonl"),
        "dataset": _count_rows(dataset),
        # Without folders: a card is public.
        "inputs": [{"name": Path(i["path"]).name, "sha256": i["sha256"]} for i in stage.inputs],
    }


def _base_model_facts(student: str) -> Json:
    """`base_model`, as a hub id, and `license`: None if unknown."""
    if student == BUNDLED:
        return {"base_model": BUNDLED_SOURCE, "license": BUNDLED_LICENSE}
    if Path(student).is_dir():
        return {"base_model": None, "license": _read_license(Path(student) / "README.md")}
    return {"base_model": student if HUB_ID.fullmatch(student) else None, "license": None}


def _read_license(readme: Path) -> str | None:
    """The licence in the front matter of a model card."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        front_matter = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None
    name = front_matter.get("license") if isinstance(front_matter, dict) else None
    return name if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) else None


def _count_rows(dataset: Path) -> Json:
    """Rows by split, task type, domain and teacher; null counts as "not said"."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED_COLUMNS}
    for rows in read_batches(dataset, TABLES["sft_parquet"], columns=list(COUNTED_COLUMNS)):
        for name in COUNTED_COLUMNS:
            counts[name].update(value or "not said" for value in rows[name].to_pylist())
    return {name: dict(count.most_common()) for name, count in counts.items()}


def _first_and_last_losses(metrics: Path) -> Json:
    """The first and the last measured value of each loss; None without any."""
    text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    losses = {name: [row[name] for row in rows if name in row] for name in ("loss", "val_loss")}
    return {name: {"first": values[0], "last": values[-1]} if values else None for name, values in losses.items()}


def read_training_facts(checkpoint: Path) -> Json:
    """The training.json of a checkpoint; empty for one of an earlier version."""
    path = checkpoint / "training.json"
    training: Json = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return training if "end_of_turn" in training else {}  # too few facts for a card


def render_card(training: Json, report: Json | None) -> str:
    """The card of a checkpoint: from its training.json, and the report on it if there is one."""
    if not training:
        note = "Its training is unknown here: the checkpoint was written by an earlier version."
        return "\n".join(["# Student", "", note, "", *_scores_section(report)]) + "\n"
    lines = [*_front_matter(training), f"# {as_code(training['run_name'])}", ""]
    lines += [
        *_describe_model(training),
        *_use_section(training),
        *_data_section(training),
        *_training_section(training),
    ]
    lines += _scores_section(report)
    return "\n".join([*lines, *_lineage_section(training, report)]) + "\n"


def _front_matter(training: Json) -> list[str]:
    front_matter = {name: training[name] for name in ("license", "base_model") if training[name]}
    front_matter |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front_matter["tags"] = ["distillation", "nexa-distill", "safetensors", "conversational"]
    return ["---", yaml.safe_dump(front_matter, sort_keys=False).rstrip(), "---", ""]


def _describe_model(training: Json) -> list[str]:
    layers = training["keep_layers"]
    cut = f", of which it keeps {len(layers)} layers" if layers else ""
    # Names that come from data or from an API are inline code: no Markdown or HTML in them.
    base = as_code(training["base_model"] or Path(training["student"]).name)
    about = (
        f"A student of {format_number(training['parameters'])} parameters, made from {base}{cut}. It was "
        "trained on the samples below, all of which passed the preflight. Weights are bfloat16 "
        "safetensors; use the chat template in the folder."
    )
    terms = "The licence of the base model is not known here."
    if training["license"]:
        terms = f"The licence is that of the base model, {as_code(training['license'])}."
    return [about, "", f"{terms} The terms of the teacher and of the data apply too.", ""]


def _data_section(training: Json) -> list[str]:
    counts = training["dataset"]
    rows = [[name, format_number(counts["split"].get(name, 0))] for name in SPLITS]
    lines = ["## Data", "", *markdown_table(["split", "samples"], rows), ""]
    skipped = sum(training["skipped"].values())
    trained = f"Trained on {format_number(training['train_samples'])} of them, {format_number(skipped)} were refused."
    digest = f"sha256 of all tokens and labels: `{training['samples_sha256']}`."
    lines += [f"{trained} {digest}", ""]
    titles = {"teacher": "model_id", "task type": "template_name", "domain": "domain"}
    for title, key in titles.items():
        named = [[as_code(name), format_number(count)] for name, count in counts[key].items()]
        lines += [*markdown_table([title, "samples"], named), ""]
    return lines


def _training_section(training: Json) -> list[str]:
    rows = []
    for title, key in (("training loss", "loss"), ("validation loss", "val_loss")):
        pair = training["losses"][key]
        ends = (format_number(pair[end], 4) if pair else NOT_MEASURED for end in ("first", "last"))
        rows.append([title, *ends])
    settings = [
        [key, as_code(value)]
        for part in ("train", "distillation")
        for key, value in training["settings"].get(part, {}).items()
    ]
    lines = ["## Training", "", *markdown_table(["nats per trained token", "first", "last"], rows), ""]
    return [*lines, *markdown_table(["setting", "value"], settings), ""]


def _scores_section(report: Json | None) -> list[str]:
    if report is None:
        note = "Not evaluated yet when this was written: the checkpoint is sealed before its "
        note += "evaluation, which writes this card with scores as `evaluation/model_card.md`."
        return ["## Scores", "", note, ""]
    models = report["models"]
    lines = ["## Scores", "", *(f"- {sentence}" for sentence in report["headline"])]
    lines += [f"- {regression_paragraph(report['regression'])}", ""]
    lines += markdown_table(["", *TITLES.values()], [[name, *texts] for name, texts in figure_rows(models)])
    for title, key in (("task type", "by_task"), ("domain", "by_domain")):
        lines += ["", *group_table(models, title, key)]
    prompts = f"On {format_number(report['prompts'])} prompts of the {report['split']} split, none of which"
    return [*lines, "", f"{prompts} was trained on; brackets are 95 % score intervals.", ""]


def _lineage_section(training: Json, report: Json | None) -> list[str]:
    proof = training["proof"]
    rows = [["training run", as_code(training["run_id"])]]
    rows += [["code", as_code(training["code_version"])]]
    rows += [[f"input {as_code(i['name'])}", f"`{i['sha256']}`"] for i in training["inputs"]]
    if report:
        rows += [["evaluation run", as_code(report["run_id"])]]
        rows += [["checkpoint", as_code(report["facts"]["checkpoint_sha256"])]]
    verified = (
        f"This folder was loaded again before it was sealed: every weight and the greedy answers "
        f"to {proof['prompts']} prompts ({proof['tokens']} tokens each, {proof['precision']}) were "
        f"those of the model in memory, and the loss of {proof['rows']} rows was that of the model "
        "as it was trained."
    )
    return ["## Lineage", "", *markdown_table(["what", "id or sha256"], rows), "", verified]


def _use_section(training: Json) -> list[str]:
    """Facts for a program that loads the folder."""
    end = as_code(training["end_of_turn"]).replace(r"\|", "|")  # the escape is for tables only
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
