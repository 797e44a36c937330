"""One run of a contender against a fresh server: figures, and whether they may be used.

A run is fit when every answer in its output is right and stands there once, each was billed once,
and no more requests were in flight than allowed. Everything else raises Unfit, with the reason.
"""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.collector.contenders import Contender, server_python
from benchmarks.collector.questions import DECODING, MODEL, SYSTEM, answer, prompt, write_prompts
from benchmarks.environments import Environments, Unfit
from benchmarks.measured import LAUNCHER
from nexa_distill.contracts import INPUTS, canonical_input, sample_id

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 3600


@dataclass(frozen=True)
class Run:
    """What one run took. `seconds`: first request received to last answer sent, at the server."""

    requests: int
    answered: int
    billed: int
    rejected: int
    seconds: float
    last_billed: float
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float
    slowest_commit_ms: float | None  # of an answer, from its arrival; ours only

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds


def one_run(
    contender: Contender, environments: Environments, where: Path, requests: int, in_flight: int,
    server: list[str],
) -> Run:  # fmt: skip
    """`server`: its arguments. Files stand below `where` until the end. Raises Unfit."""
    python = environments.python(contender.environment)
    with tempfile.TemporaryDirectory(dir=where) as name, serving(server_python(environments), server) as address:
        folder, base_url = Path(name), f"{address}/v1"
        (folder / "cache").mkdir()
        if contender.environment is None:
            command, out = our_command(folder, base_url, requests, in_flight)
        else:
            script = f"benchmarks.collector.{contender.script}"
            prompts, out = folder / "prompts.txt", folder / "answers.jsonl"
            write_prompts(prompts, requests)
            options = [base_url, prompts, in_flight, out, folder / "cache", contender.variant]
            command = [python, "-m", script, *map(str, options)]
        figures = measure(command, folder)
        with urllib.request.urlopen(f"{address}/stats") as response:  # noqa: S310
            stats = json.load(response)
        answered, slowest = right_answers(out), slowest_commit(folder)
    if stats["most_in_flight"] > in_flight:
        raise Unfit(f"{stats['most_in_flight']} requests in flight, allowed {in_flight}")
    if stats["billed"] != answered:
        raise Unfit(f"{stats['billed']} billed for {answered} answers")
    counted = {key: stats[key] for key in ("billed", "rejected", "seconds", "last_billed")}
    return Run(requests, answered, **counted, **figures, slowest_commit_ms=slowest)


@contextlib.contextmanager
def serving(python: str, arguments: list[str]) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [python, "-m", "benchmarks.collector.server", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            if not port:
                sys.exit(f"the server did not start: {' '.join(command)}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def our_command(folder: Path, base_url: str, requests: int, in_flight: int) -> tuple[list[str], Path]:
    """The stage as it is run, and the table that it writes."""
    config, src, out = folder / "config.yaml", folder / "prompts.parquet", folder / "out.parquet"
    write_inputs(src, requests)
    settings = {
        "extends": str(ROOT / "configs/distill_config.yaml"),
        "provider": "vllm",
        "providers": {"vllm": {"base_url": base_url, "model": MODEL}},
        "storage": {"root": str(folder / "processed"), "logs": str(folder / "logs")},
        "collection": {
            "concurrency": in_flight, "batch_size": 256, "timeout_seconds": 60.0, **DECODING
        },
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    module = "nexa_distill.collect_teacher"
    command = [sys.executable, "-m", module, "--config", config, "--src", src, "--dst", out]
    return [str(part) for part in command], out


def write_inputs(path: Path, rows: int, batch: int = 4096) -> None:
    """The prompts as the stage before ours would write them."""
    with pq.ParquetWriter(path, INPUTS) as out:
        for start in range(0, rows, batch):
            numbers = range(start, min(start + batch, rows))
            out.write(pa.Table.from_pylist([_input(n) for n in numbers], schema=INPUTS))


def _input(number: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "task_id": f"q{number}", "template_name": "hypothesis", "system_prompt": SYSTEM,
        "user_prompt": prompt(number), "source_file": "made", "source_row": number,
        "cluster_id": str(number), "split": "train",
    }  # fmt: skip
    return row | {"sample_id": sample_id(row["task_id"], canonical_input(row))}


def slowest_commit(folder: Path) -> float | None:
    """As the journal below `folder` says, if there is one."""
    for journal in folder.rglob("journal/*.sqlite"):
        with contextlib.closing(sqlite3.connect(journal)) as db:
            (slowest,) = db.execute("SELECT max(slowest_commit_ms) FROM runs").fetchone()
            return float(slowest)
    return None


def measure(command: list[str], folder: Path) -> dict[str, Any]:
    """Figures of `measured.py`. Raises Unfit with the end of what the command printed."""
    quiet = {
        "TELEMETRY_ENABLED": "false", "NEMO_TELEMETRY_ENABLED": "false", "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1",
        "HF_HOME": str(folder / "cache/hf"), "DATA_DESIGNER_HOME": str(folder / "cache/home"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "CURATOR_DISABLE_RICH_DISPLAY": "1",
    }  # fmt: skip
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(
            [*LAUNCHER, *command], cwd=ROOT, env=os.environ | quiet, stdout=subprocess.PIPE,
            stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise Unfit(f"not done after {LIMIT_SECONDS} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing of it is left, as a rule
                os.killpg(process.pid, signal.SIGKILL)
        log.seek(0)
        last_words = " ".join(log.read()[-600:].split())
    figures: dict[str, Any] = json.loads(said or '{"code": 1}')
    if figures.pop("code"):
        raise Unfit(f"ended with an error: {last_words}")
    return figures


def right_answers(out: Path) -> int:
    """Number of answers in the output. Raises Unfit when one is wrong or stands there twice."""
    seen = set()
    for text, given in answers(out):
        if given != answer(text):
            raise Unfit(f"answered {text[:20]!r}... with {str(given)[:60]!r}...")
        if (number := text.partition(":")[0]) in seen:
            raise Unfit(f"has two answers to {text[:20]!r}...")
        seen.add(number)
    return len(seen)


def answers(out: Path) -> Iterator[tuple[str, str]]:
    """(prompt, answer) of an output table or of JSON lines."""
    if out.suffix == ".parquet":
        for batch in pq.ParquetFile(out).iter_batches(columns=["user_prompt", "teacher_output"]):
            for row in batch.to_pylist():
                yield row["user_prompt"], row["teacher_output"]
        return
    with out.open() as file:
        for line in file:
            text, given = json.loads(line)
            yield text, given
