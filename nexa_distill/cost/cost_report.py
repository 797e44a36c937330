"""Cost report: spending per stage, cost per kept sample, projection to the target size.

Reads   the journals of the paid stages, the tables of answers and of kept answers
Writes  reports/cost_report.json and .md; not a byte if nothing has changed

Spending covers all runs in the journals. Keep rate and projection cover the answers of the current
tables; they are null if the kept answers are missing or outdated. Null also means: not measured.
"""

import math
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import TABLES
from nexa_distill.cost.cost_report_text import format_figure
from nexa_distill.cost.spending import Figures, load_spending, safe_ratio, sum_complete, sum_known
from nexa_distill.errors import NexaError
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.storage.manifests import load_manifest, valid_regenerations
from nexa_distill.storage.tables import read_columns

TEACHERS = ("teacher", "regenerate")  # their tokens are teacher tokens
PER_SAMPLE = (*TEACHERS, "judge")  # stages that cost more when there are more samples
NOTES = (
    "Dollars and tokens are those of complete answers. A request without a complete answer may "
    "have been billed too: it counts as uncertain, with its maximum cost.",
    "Per kept sample: all spending so far, including answers of earlier settings.",
    "Projected: at the keep rate, the requests per sample, the tokens and the cost per answer "
    "and the answers per second that were measured for the answers in the current tables.",
)


class _AnswerMeans(NamedTuple):
    """Requests of a stage, each counted once even if several rows share it."""

    requests: int
    answers: int
    tokens: float | None  # prompt and completion, mean per answer
    usd: float | None  # mean per answer


def write_cost_report(config: DistillConfig) -> Figures:
    path, figures = config.storage.path_of("reports") / "cost_report.json", build_cost_report(config)
    return stage_reports.write_report(path, figures, "cost_report.md.j2", figure=format_figure)


def build_cost_report(config: DistillConfig) -> Figures:
    """Tokens as billed, US dollars at the prices of the time, seconds of wall time."""
    stages, unread = load_spending(config.storage)
    kept = _count_kept(config.storage)
    samples = kept["kept_samples"] if kept else None
    total = _sum_stages(stages) | {"distilled_tokens": kept["tokens"] if kept else None}
    each = ("usd", "seconds", "teacher_tokens")
    return {
        "stages": stages,
        "total": total,
        "kept": kept,
        "per_kept_sample": {name: safe_ratio(total[name], samples) for name in each},
        "projection": _project_costs(config, stages, samples),
        "notes": [*NOTES, *unread],
    }


def _sum_stages(stages: dict[str, Figures]) -> Figures:
    counts = ("requests_sent", "answered", "uncertain", "uncertain_usd_at_most")
    summed = (*counts, "usd", "answers_without_price", "seconds")
    of_teachers = [figures for name, figures in stages.items() if name in TEACHERS]
    tokens = ("prompt_tokens", "completion_tokens")
    return {
        **{key: sum_known(figures[key] for figures in stages.values()) for key in summed},
        "teacher_tokens": sum_known(figures[key] for figures in of_teachers for key in tokens),
    }


def _count_kept(storage: Storage) -> Figures | None:
    path, answers = storage.path_of("filtered_dataset"), storage.path_of("collected_dataset")
    manifest = load_manifest(path, storage)
    sources = [load_manifest(source, storage) for source in (answers, *valid_regenerations(storage))]
    made_from = {item["sha256"] for item in manifest["inputs"]} if manifest else set()
    # Every table of answers must be among its inputs, in its present version.
    if any(source is None or source["sha256"] not in made_from for source in sources):
        return None
    try:
        tokens = _read_columns(path, "filtered_dataset", ["completion_tokens"])["completion_tokens"]
        asked = [_read_columns(storage.path_of(key), key, ["sample_id"]) for key in ("collected_dataset", "unanswered")]
    except NexaError:
        return None
    prompts = pc.count_distinct(pa.concat_tables(asked)["sample_id"]).as_py()
    return {
        "prompts": prompts,
        "kept_samples": len(tokens),
        "keep_rate": safe_ratio(len(tokens), prompts),
        "tokens": pc.sum(tokens).as_py(),
        "samples_without_token_counts": tokens.null_count,
    }


def _read_columns(path: Path, key: str, columns: list[str]) -> pa.Table:
    table = TABLES[key]
    return read_columns(path, table, columns) if path.exists() else table.schema.empty_table().select(columns)


def _project_costs(config: DistillConfig, stages: dict[str, Figures], samples: int | None) -> Figures:
    target, parts = config.budget.target_samples, dict[str, Figures]()
    for name, figures in stages.items():
        if name in PER_SAMPLE and samples:
            now = _current_answers(name, figures, config.storage)
            if now.requests:
                # As if each further sample cost what the current ones did.
                parts[name] = _scale_stage(now, figures["answers_per_second"], target / samples)
    return {
        "target_samples": target,
        "stages": parts,
        "requests": sum_complete(part["requests"] for part in parts.values()),
        "tokens": sum_complete(part["tokens"] for part in parts.values()),
        "teacher_tokens": sum_complete(parts[name]["tokens"] for name in TEACHERS if name in parts),
        "seconds": sum_complete(part["seconds"] for part in parts.values()),
        "teacher_usd": parts["teacher"]["usd"] if "teacher" in parts else None,
        "total_usd": sum_complete(part["usd"] for part in parts.values()),
    }


def _scale_stage(now: _AnswerMeans, per_second: float | None, scale: float) -> Figures:
    answers = now.answers * scale
    return {
        "requests": math.ceil(now.requests * scale),
        "tokens": None if now.tokens is None else round(answers * now.tokens),
        "seconds": safe_ratio(answers, per_second),
        "usd": None if now.usd is None else answers * now.usd,
    }


def _current_answers(stage: str, figures: Figures, storage: Storage) -> _AnswerMeans:
    if stage == "teacher":
        return _measure_answers(storage.path_of("collected_dataset"), storage.path_of("unanswered"))
    if stage == "regenerate":
        for path in valid_regenerations(storage):
            return _measure_answers(path, path.with_name(f"{path.stem}.unanswered.parquet"))
        return _AnswerMeans(0, 0, None, None)
    # A stage without a table of answers: those of its journal.
    answered = figures["answered"]
    tokens = sum_complete((figures["prompt_tokens"], figures["completion_tokens"]))
    counted = answered - figures["answers_without_token_counts"]
    priced = answered - figures["answers_without_price"]
    return _AnswerMeans(answered, answered, safe_ratio(tokens, counted), safe_ratio(figures["usd"], priced))


def _measure_answers(table: Path, unanswered: Path) -> _AnswerMeans:
    columns = ["request_key", "prompt_tokens", "completion_tokens", "cost_usd"]
    rows = _read_columns(table, "collected_dataset", columns)
    rows = rows.filter(pc.is_valid(rows["request_key"]))  # without: from a file or an annotator
    # Rows that share a request share its answer and its cost.
    once = rows.group_by("request_key").aggregate([(name, "min") for name in columns[1:]])
    missing = pc.count_distinct(_read_columns(unanswered, "unanswered", ["request_key"])["request_key"])
    tokens = pc.add(once["prompt_tokens_min"], once["completion_tokens_min"])
    usd = once["cost_usd_min"]
    return _AnswerMeans(once.num_rows + missing.as_py(), once.num_rows, pc.mean(tokens).as_py(), pc.mean(usd).as_py())
