"""Instruction items from datasets of the hub, or from local files with the same columns.

DistilQwen_100k has `instruction` and `output`. OmniThought has `question` and a list `reasoning` of
chains, each with `Reasoning_Verbosity` and `Cognitive_Difficulty` ({"level": 0..10}) and the whole
chain in `full_response` (https://huggingface.co/datasets/alibaba-pai/OmniThought).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputError
from nexa_distill.raw_data.hub import load_split
from nexa_train.data.instructions import KEYS, convert_to_text

FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
TOP_LEVEL = 10  # the highest level of both scales
Items = list[dict[str, str]]


def load_rows(source: str, split: str) -> Any:
    """The rows of a hub id, a local folder or a file; `split` may have a slice. Raises InputError."""
    path = Path(source)
    if not path.is_file():
        return load_split(source, str(path) if path.is_dir() else source, split=split)
    kind = FORMATS.get(path.suffix)
    if kind is None:
        raise InputError(f"{source}: expected one of {', '.join(FORMATS)}")
    # Cells are text: guessing types would turn 0 beside an empty cell into 0.0.
    cells: dict[str, Any] = {"converters": dict.fromkeys(KEYS, str)} if kind == "csv" else {}
    return load_split(source, kind, split=split, data_files=str(path), **cells)


def instruction_items(source: str, split: str) -> Items:
    """Items of a dataset with `instruction`, `output` and optional `input`. Raises InputError."""
    data = load_rows(source, split)
    if len(data) and not {"instruction", "output"} <= data[0].keys():
        raise InputError(f"{source}: columns {', '.join(data[0])}, expected instruction and output")
    items = [
        {key: convert_to_text(f"{source}: row {number}", key, row.get(key)) for key in KEYS}
        for number, row in enumerate(data)
    ]
    return [item for item in items if item["instruction"]]


def reasoning_items(source: str, split: str, rv_min: float, cd_min: float) -> Items | None:
    """The first chain of each question with both levels (0..1, else InputError); None for another schema."""
    for name, level in (("rv_min", rv_min), ("cd_min", cd_min)):
        if level > 1:
            raise InputError(f"{name} is {level}; levels are 0..1, write {level / TOP_LEVEL:g}")
    items = []
    for row in load_rows(source, split):
        try:
            chains = [chain for chain in row["reasoning"] if _reaches_levels(chain, rv_min, cd_min)]
            if chains:
                answer = chains[0]["full_response"]
                items.append({"instruction": row["question"], "input": "", "output": answer})
        except (KeyError, TypeError):
            return None
    return items


def _reaches_levels(chain: Mapping[str, Any], rv_min: float, cd_min: float) -> bool:
    verbosity = chain["Reasoning_Verbosity"]["level"]
    difficulty = chain["Cognitive_Difficulty"]["level"]
    return verbosity >= rv_min * TOP_LEVEL and difficulty >= cd_min * TOP_LEVEL and bool(chain["full_response"])
