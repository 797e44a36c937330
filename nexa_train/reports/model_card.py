"""The model card of a student, in Hugging Face's format.

`training_facts` gathers the content of `final/training.json`; `render_card` renders it, with the scores of the
evaluation report if there is one. `final/` is sealed before its evaluation, so its card has no
scores; the evaluation writes `evaluation/model_card.md` with scores (docs/adr/0017).
"""

import json
import re
from collections import Counter
from pathlib import Path

import yaml

from nexa_distill.contracts import TABLES
from nexa_distill.reporting.training_curve import read_metrics
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.atomic import Json
from nexa_distill.storage.manifests import StageRun, code_version
from nexa_distill.storage.tables import read_batches
from nexa_train.models.bundled import BUNDLED, BUNDLED_LICENSE, BUNDLED_SOURCE
from nexa_train.reports.evaluation_text import build_context
from nexa_train.reports.formats import render_report

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
    rows = read_metrics(metrics)
    losses = {name: [row[name] for row in rows if name in row] for name in ("loss", "val_loss")}
    return {name: {"first": values[0], "last": values[-1]} if values else None for name, values in losses.items()}


def read_training_facts(checkpoint: Path) -> Json:
    """The training.json of a checkpoint; empty for one of an earlier version."""
    path = checkpoint / "training.json"
    training: Json = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return training if "end_of_turn" in training else {}  # too few facts for a card


def render_card(training: Json, report: Json | None) -> str:
    """The card of a checkpoint: from its training.json, and the report on it if there is one."""
    scores = build_context(report) if report else {"report": None}
    facts = {"front_matter": _front_matter(training), "base": _base_name(training)} if training else {}
    return render_report("model_card.md.j2", training=training, splits=SPLITS, **facts, **scores)


def _base_name(training: Json) -> str:
    return str(training["base_model"] or Path(training["student"]).name)


def _front_matter(training: Json) -> str:
    front_matter = {name: training[name] for name in ("license", "base_model") if training[name]}
    front_matter |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front_matter["tags"] = ["distillation", "nexa-distill", "safetensors", "conversational"]
    return str(yaml.safe_dump(front_matter, sort_keys=False))
