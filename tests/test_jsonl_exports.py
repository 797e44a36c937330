"""Every exported JSONL opens with `datasets`, whatever the order of its rows and its size.

`datasets` takes the types from the first block of a file: 10 MB, here 4,000 bytes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from nexa_distill import labels, to_sft
from nexa_distill.collection.requests.body import row_messages
from nexa_distill.contracts import REJECTIONS
from nexa_distill.storage.tables import table_writer
from tests.support.answers import answer, collect, project

Row = dict[str, Any]


def opened(path: Path, cache: Path, **options: Any) -> datasets.Dataset:
    return datasets.load_dataset(
        "json", data_files=str(path), split="train", chunksize=4000, cache_dir=str(cache), **options
    )


def plain(number: int) -> Row:
    return answer(number, domain=None, repaired_reason=None, system_prompt=None)


def complete(number: int) -> Row:
    return answer(
        number, domain="physics", repaired_reason="too_short", attempt=1, system_prompt="Be brief.",
        reasoning_output="I think.",
    )  # fmt: skip


ORDERS: dict[str, Callable[[int], Row]] = {
    "nulls first": lambda n: plain(n) if n < 30 else complete(n),
    "nulls last": lambda n: complete(n) if n < 30 else plain(n),
    "one value": lambda n: complete(n) if n == 59 else plain(n),
    "no value": plain,
}


@pytest.mark.parametrize(
    ("form", "order"),
    [
        ("messages", "nulls first"), ("messages", "nulls last"), ("messages", "one value"),
        ("messages", "no value"), ("input_output", "nulls first"), ("alpaca", "nulls first"),
        ("alpaca", "nulls last"), ("sharegpt", "nulls first"),
    ],
)  # fmt: skip
def test_d21_an_export_opens_whatever_the_order_of_its_rows(tmp_path: Path, order: str, form: str) -> None:
    config = project(tmp_path)
    rows = [ORDERS[order](n) for n in range(60)]
    collect(config, rows, "filtered_dataset")
    to_sft.run(config, form=form)
    whole = config.storage.path_of("sft_jsonl")
    files = [whole, config.storage.path_of("splits") / "train.jsonl"]
    if to_sft.FORMATS[form]:
        files = [to_sft.export_path(whole, form)]
    for file in files:
        found = opened(file, tmp_path / "cache")
        assert found.num_rows == 60
        assert file.stat().st_size > 3 * 4000
    if form == "messages":
        assert list(found["repaired_reason"]) == [row["repaired_reason"] or "" for row in rows]
        assert list(found["domain"]) == [row["domain"] or "" for row in rows]
        assert found[59]["messages"][-1]["content"] == rows[59]["teacher_output"]


def test_d21_the_table_keeps_its_nulls(tmp_path: Path) -> None:
    config = project(tmp_path)
    collect(config, [plain(0), complete(1)], "filtered_dataset")
    to_sft.run(config)
    found = datasets.load_dataset(
        "parquet", data_files=str(config.storage.path_of("sft_parquet")), split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert list(found["repaired_reason"]) == [None, "too_short"]


def test_d21_tasks_for_annotators_open_too(tmp_path: Path) -> None:
    config = project(tmp_path)
    rows = [ORDERS["nulls first"](n) for n in range(60)]
    for row in rows[:30]:
        row |= {"context": None, "teacher_output": None}
    extra = {"rejection_reason": "too_short", "rejection_reasons": ["too_short"]}
    src = config.storage.path_of("rejections")
    with table_writer(src, REJECTIONS) as out:
        out.write(pa.Table.from_pylist([row | extra for row in rows], schema=REJECTIONS))
    labels.run_export(config, None, tmp_path / "tasks.jsonl")
    found = opened(tmp_path / "tasks.jsonl", tmp_path / "cache")
    assert [row["data"]["domain"] for row in found] == [row["domain"] or "" for row in rows]


def test_d21_preference_pairs_open_with_and_without_a_system_message(tmp_path: Path) -> None:
    config = project(tmp_path)
    pairs = [
        {"prompt": row_messages(ORDERS["nulls first"](n), None),
         "chosen": [to_sft.assistant_message("Yes. " * 9)],
         "rejected": [to_sft.assistant_message("No. " * 9)],
         "sample_id": str(n), "source": "attempts"}
        for n in range(60)
    ]  # fmt: skip
    labels.write_lines(tmp_path / "pairs.jsonl", pairs)
    found = opened(tmp_path / "pairs.jsonl", tmp_path / "cache")
    assert [len(row["prompt"]) for row in found] == [1] * 30 + [2] * 30
    assert json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0]) == pairs[0]
    assert config.storage.root
