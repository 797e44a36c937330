"""Convert a user's file of prompts to the table that dedup would write.

Reads   Parquet without keys, or any other raw file (`files.py`), whose rows contain prompts
Writes  a table of contracts.INPUTS beside `storage.raw_dataset`: ids as canonicalize computes them,
        one cluster per document, every row in the train split
Raises  InputError (65) for a row without a prompt, naming the commands that make prompts of texts
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.contracts import INPUTS
from nexa_distill.errors import InputError
from nexa_distill.raw_data.files import read_raw
from nexa_distill.raw_data.formats import has_rows
from nexa_distill.raw_data.prompts import prompt_rows
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.tables import table_writer

KEYS = {"sample_id", "cluster_id", "split"}
BATCH_ROWS = 4096


def prepare_prompts(src: Path, config: DistillConfig, renamed: Mapping[str, str]) -> tuple[Path, Mapping[str, str]]:
    """(path, renamed): both unchanged if `src` has keys, else the table made from it and {}.

    `renamed`: column of contracts.INPUTS -> its name in `src`.
    """
    if not _lacks_keys(src):
        return src, renamed
    names = {"prompt_column": "user_prompt", "context_column": "context", "task_type_column": "template_name"}
    update = {key: renamed[column] for key, column in names.items() if column in renamed}
    columns = config.defaults.model_copy(update=update)
    dst = config.storage.path_of("raw_dataset").with_name(f"handed_in_{src.stem}.parquet")
    rows = prompt_rows(read_raw(src, config.input.delimiter), columns, _print_line)
    with table_writer(dst, INPUTS) as out:
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            inputs = [{**row, "cluster_id": row["document_id"], "split": "train"} for row in batch]
            out.write(pa.Table.from_pylist(inputs, schema=INPUTS))
        if not out.rows:
            raise InputError(f"{src}: holds no rows; nothing to request")
    _print_line(f"{src} has no sample_id: computed, and every row is in the train split -> {dst}")
    return dst, {}


def _lacks_keys(src: Path) -> bool:
    if not src.is_file() or not has_rows(src):
        return False
    if src.suffix.lower() != ".parquet":
        return True
    try:
        # One of the keys is enough: a table without the others is refused by its reader, which names them.
        return not KEYS & set(pq.read_schema(src).names)
    except (pa.ArrowException, OSError):
        return False  # not complete: the reader of the table raises


def _print_line(line: str) -> None:
    print(f"teacher: {line}")
