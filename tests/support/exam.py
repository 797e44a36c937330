"""Held-out prompts, a teacher's answers and a tiny student, all at their sealed places."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from nexa_distill.contracts import INPUTS, SFT
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import table_writer
from nexa_train.models.loading import load_model
from tests.support.answers import REPOSITORY, answer, collect, project
from tests.support.tiny_model import save_config, save_model, tokenizer

ANSWER = "We measure one, two, three."
LAX = {"min_char_length": 5, "min_token_length": 2, "require_action_verb": False,
       "max_repetition": None}  # fmt: skip


def rows(count: int = 24, held_out: int = 12) -> list[dict[str, Any]]:
    """The teacher's answers: two per source document, the first `held_out` in the test split."""
    return [
        answer(
            i, ANSWER, cluster_id=str(i // 2), split="test" if i < held_out else "train",
            user_prompt=f"Count {i}.", system_prompt="Be brief.",
            template_name=("hypothesis", "methodology")[i % 2],
            domain=None if i % 3 == 0 else "biology",
        )
        for i in range(count)
    ]  # fmt: skip


def write(config: DistillConfig, key: str, schema: pa.Schema, found: Sequence[Any]) -> Path:
    """Write and seal a table at its place."""
    path = config.storage.path_of(key)
    with table_writer(path, schema) as out:
        out.write(pa.Table.from_pylist(list(found), schema))
    stage = StageRun("test", config.storage, inputs=[], settings={})
    stage.seal_output(path, rows_in=len(found), rejected=0)
    return path


def sft_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of contracts.SFT from an answer."""
    said = {"system": row["system_prompt"], "user": row["user_prompt"],
            "assistant": row["teacher_output"]}  # fmt: skip
    messages = [{"role": role, "content": text} for role, text in said.items()]
    return {name: row[name] for name in SFT.names if name != "messages"} | {"messages": messages}


def prepare(folder: Path, **train: Any) -> tuple[DistillConfig, StudentConfig]:
    """Everything that generation, training and evaluation read, but the checkpoint."""
    filters = folder / "filters.yaml"
    shipped = str(REPOSITORY / "configs/filters.yaml")
    filters.write_text(yaml.safe_dump({"extends": shipped, **LAX}))
    path = save_config(folder / "student.yaml", save_model(folder / "model"), **train)
    values = yaml.safe_load(path.read_text())
    values["generate"] |= {"max_new_tokens": 40, "temperature": 0.0, "batch_size": 3,
                           "max_prompts": None}  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    sections: dict[str, Any] = {"filters": str(filters), "student": str(path)}
    config = project(folder, **sections)
    found = rows()
    write(config, "raw_dataset", INPUTS, [{n: row[n] for n in INPUTS.names} for row in found])
    collect(config, found)
    write(config, "sft_parquet", SFT, [sft_row(row) for row in found])
    return config, load_yaml(path, StudentConfig)


def save_untrained(config: DistillConfig, student: StudentConfig) -> Path:
    """A checkpoint at the trained student's place that learned nothing."""
    final = student.checkpoint_path(config.storage)
    load_model(student.student, student.keep_layers).save_pretrained(final)
    tokenizer().save_pretrained(final)
    stage = StageRun("train", config.storage, inputs=[], settings={})
    stage.seal_output(final, rows_in=0, rejected=0, count=0)
    return final
