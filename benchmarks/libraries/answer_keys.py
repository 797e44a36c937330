"""1,000,000 answers and 4,000,000 checks: `AnswerIndex` against DuckDB over the same Parquet files.

Both refuse a repeated key, find the answer of each check, and choose the best attempt of each sample.
"""

# ruff: noqa: S608  the only texts in the queries are paths of this file
import hashlib
import importlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.libraries.rounds import run_rounds
from nexa_distill.contracts import OUTPUTS, TABLES
from nexa_distill.storage.answer_index import KEY, AnswerIndex

KEY_SCHEMA = pa.schema([OUTPUTS.field(name) for name in KEY])
SAMPLES, ATTEMPTS, CHECKS = 250_000, 4, 4
FOLDER = Path(tempfile.gettempdir()) / "nexa-answer-keys"
ANSWER_FILE, CHECK_FILE = FOLDER / "answers.parquet", FOLDER / "checks.parquet"


def write_tables() -> None:
    if CHECK_FILE.exists():
        return
    FOLDER.mkdir(exist_ok=True)
    ids = pa.array([hashlib.sha256(str(number).encode()).hexdigest() for number in range(SAMPLES)])
    keys = np.arange(SAMPLES * ATTEMPTS)
    checks = np.repeat(np.random.default_rng(0).permutation(keys), CHECKS)
    for path, rows in ((ANSWER_FILE, keys), (CHECK_FILE, checks)):
        columns = {"sample_id": ids.take(pa.array(rows // ATTEMPTS)), "attempt": rows % ATTEMPTS}
        pq.write_table(pa.table(columns).cast(KEY_SCHEMA), path, compression="zstd")


def draw_ranks() -> npt.NDArray[np.float64]:
    return np.random.default_rng(1).random(SAMPLES * ATTEMPTS)


def report_figures(started: float, positions: int, best: npt.NDArray[np.int64]) -> str:
    return f"{time.perf_counter() - started:.2f} s (sums {positions}, {int(best.sum())})"


def measure_ours() -> str:
    write_tables()
    started, total = time.perf_counter(), 0
    index = AnswerIndex([ANSWER_FILE], replace(TABLES["collected_dataset"], schema=KEY_SCHEMA))
    for batch in pq.ParquetFile(CHECK_FILE, pre_buffer=False).iter_batches(columns=KEY):
        total += int(index.find_positions(pa.Table.from_batches([batch])).sum())
    return report_figures(started, total, index.best_attempts(np.arange(len(index)), draw_ranks()))


def measure_duckdb() -> str:
    write_tables()
    started, total = time.perf_counter(), 0
    db = importlib.import_module("duckdb").connect()
    db.execute("SET threads=2")
    answers, checks = (f"read_parquet('{path}', file_row_number=true)" for path in (ANSWER_FILE, CHECK_FILE))
    if db.execute(f"SELECT sample_id FROM {answers} GROUP BY sample_id, attempt HAVING count(*) > 1").fetchone():
        raise ValueError("an answer occurs twice")
    found = db.execute(
        f"SELECT a.file_row_number AS place FROM {checks} c LEFT JOIN {answers} a USING (sample_id, attempt) "
        "ORDER BY c.file_row_number"
    )
    for batch in found.to_arrow_reader(65_536):
        total += int(np.asarray(batch["place"]).sum())
    db.register("ranks", pa.table({"rank": draw_ranks()}))
    best = db.execute(
        f"SELECT arg_min(file_row_number, (-rank, attempt)) AS best FROM {answers} POSITIONAL JOIN ranks "
        "GROUP BY sample_id"
    ).fetchnumpy()["best"]
    return report_figures(started, total, np.asarray(best))


if __name__ == "__main__":
    run_rounds("benchmarks.libraries.answer_keys", {"ours": measure_ours, "duckdb": measure_duckdb})
