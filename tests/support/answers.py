"""Answers and configurations for tests: rows of contracts.OUTPUTS, and a project in a folder."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from nexa_distill.contracts import OUTPUTS
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import table_writer
from nexa_distill.text.hashing import sha256_text

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEM_PROMPT = "nexa_distill/prompts/system_toolproto.txt"
GOOD = (
    "We propose to measure how quickly labelled cargo reaches the nucleus when the gradient is "
    "lowered step by step. Cells from three donors are imaged every ten seconds for one hour, and "
    "import is compared between untreated samples and samples that received an inhibitor. If the "
    "gradient sets direction, cargo should leave as fast as it enters once the gradient is gone. "
    "A second experiment would reverse it and test whether export receptors now load cargo inside "
    "the cytoplasm. Rates come from fits of a single exponential, and a permutation test on donor "
    "averages decides whether the difference could be chance alone."
)


def answer(number: int = 0, output: str | None = GOOD, **columns: Any) -> dict[str, Any]:
    """One row of contracts.OUTPUTS that passes every rule, but for what `columns` change."""
    row: dict[str, Any] = dict.fromkeys(OUTPUTS.names)
    row |= {
        "sample_id": sha256_text(str(number)), "task_id": f"task-{number}", "domain": "biology",
        "template_name": "hypothesis", "user_prompt": f"Propose hypothesis {number}.",
        "context": "Nuclear transport.", "source_file": "passages.jsonl", "source_row": number,
        "cluster_id": str(number), "split": "train", "attempt": 0, "teacher_output": output,
        "model_id": "teacher-1", "finish_reason": "stop", "prompt_tokens": 10,
        "completion_tokens": 20, "total_tokens": 30, "latency_ms": 5.0, "cost_usd": 0.0,
        "request_key": f"key-{number}", "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    unknown = columns.keys() - row.keys()
    if unknown:
        raise KeyError(f"not columns of OUTPUTS: {unknown}")
    return row | columns


def project(folder: Path, **sections: Any) -> DistillConfig:
    """The shipped configuration with its storage under `folder`; the YAML is `folder/config.yaml`.

    `sections` lay values over it. The filters file is the shipped one.
    """
    values: dict[str, Any] = {
        "extends": str(REPOSITORY / "configs/distill_config.yaml"),
        "storage": {"root": str(folder / "processed"), "logs": str(folder / "logs")},
        "filters": str(REPOSITORY / "configs/filters.yaml"),
        "student": str(REPOSITORY / "configs/baseline_distill.yaml"),
        "collection": {"system_prompt_path": str(REPOSITORY / SYSTEM_PROMPT)},
        **sections,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_config(path)


def write_answers(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as contracts.OUTPUTS, without a manifest."""
    with table_writer(path, OUTPUTS) as out:
        out.write(pa.Table.from_pylist([dict(row) for row in rows], schema=OUTPUTS))
    return path


def collect(config: DistillConfig, rows: Sequence[Mapping[str, Any]], key: str = "collected_dataset") -> Path:
    """Write rows at their `storage:` path and seal them, as the collecting stage would."""
    path = write_answers(config.storage.path_of(key), rows)
    repaired = [config.storage.path_of("collected_dataset")] if key == "regen_dataset" else []
    StageRun("teacher", config.storage, inputs=repaired, settings={}).seal_output(path, rows_in=len(rows), rejected=0)
    return path
