"""Rows per second of the rule checks: this project, plain Python, and datatrove.

    python -m benchmarks.filtering.run [--rows 200000] [--rounds 5]

Every contender reads the same Parquet file of answers (about 1 kB each), decides by the same six
rules (characters, tokens, action verb, citations, refusals, code fences) and writes the rows that
it keeps; ours also writes the checks table, a seal and a report, and is measured a second time with
every rule of configs/filters.yaml. First it is checked that all keep the same rows. Then rounds
are interleaved; the table gives medians and ranges. Interpreter start and imports are not counted.

datatrove runs in an environment of its own, made for the measurement in a temporary folder
(`--datatrove PYTHON` uses an existing one); where that fails its line says "not measured".
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.filtering.reference import Reference, verb_forms
from nexa_distill import filter_pairs
from nexa_distill.contracts import OUTPUTS
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.settings.pipeline import load_config
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.tables import table_writer
from nexa_distill.text.hashing import sha256_text

DATATROVE = "datatrove[io,processing]==0.10.1"
FILTERS = Path("configs/filters.yaml")
# The six rules that datatrove is given too: patterns that `re` knows.
SIX_RULES: dict[str, Any] = {
    "citation_patterns": [
        r"\[[0-9]{1,3}(?:, ?[0-9]{1,3})*\]",
        r"\bet al\b",
        r"\bdoi ?:|doi\.org/|\barxiv ?:|\bpmid ?:",
    ],
    "refusal_patterns": [
        r"\bas an ai\b", r"\bi(?: am|'m) (?:sorry|unable|not able)\b",
        r"\bi (?:cannot|can't|can not|won't) (?:help|assist|provide|answer|fulfill|comply)\b",
    ],
    "reject_flags": [], "require_stop": False, "max_repetition": None, "forbidden_patterns": [],
    "template_patterns": [], "require_json_for": [],
    "pii": {"email": None, "phone": None, "card": None, "secret": None},
}  # fmt: skip
OPENING = "There is one thing that you should know before the rest of this. "  # English
REFUSAL = "I'm sorry, as an AI I cannot help. "  # an answer refuses at its beginning
FAULTS = {
    0.05: " As shown by Smith et al. [12].", 0.08: REFUSAL,
    0.10: "\n```python\nprint(1)\n", 0.12: " <|im_end|>", 0.13: " 123-45-6789",
    0.14: " Pay by 4111 1111 1111 1111.", 0.15: " See sk-aaaaaaaaaaaaaaaaaaaaaaaa.",
}  # fmt: skip
Contender = Callable[[], None]


def make_answers(path: Path, rows: int) -> None:
    """Answers of about 1 kB over a vocabulary with natural frequencies; one in four has a fault."""
    draw = random.Random(7)
    letters = "eeeeetttaaoooiinnsshhrrdlucmfwypvbgk"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(8000)]
    words += ["measured", "Compare", "testing", "Ünïque", "we", "the"]
    weights = [1 / (8 + i) for i in range(8000)] + [0.1, 0.05, 0.05, 0.005, 0.05, 0.1]
    with table_writer(path, OUTPUTS) as out:
        for start in range(0, rows, 8192):
            batch = [_answer(i, draw, words, weights) for i in range(start, min(start + 8192, rows))]
            out.write(pa.Table.from_pylist(batch, schema=OUTPUTS))


def _answer(number: int, draw: random.Random, words: list[str], weights: list[float]) -> dict[str, object]:
    text = OPENING + " ".join(draw.choices(words, weights, k=draw.randint(120, 240))) + "."
    chance = draw.random()
    fault = next((fault for limit, fault in FAULTS.items() if chance < limit), "")
    text = fault + text if fault == REFUSAL else text + fault
    if 0.13 < chance < 0.18:
        text = text[: draw.randint(0, 500)]
    elif 0.18 < chance < 0.2:
        text = "We measure the cell and then " * 35
    row: dict[str, object] = dict.fromkeys(OUTPUTS.names)
    return row | {
        "sample_id": sha256_text(str(number)), "task_id": f"t{number}",
        "template_name": "hypothesis",
        "user_prompt": f"Propose hypothesis {number}.", "source_file": "a.jsonl",
        "source_row": number, "cluster_id": str(number), "split": "train", "attempt": 0,
        "teacher_output": text, "model_id": "teacher", "finish_reason": "stop",
    }  # fmt: skip


def ours(src: Path, folder: Path, config: FilterConfig) -> None:
    """The stage as it is run: read, check, write both tables, report, seal."""
    storage = {"storage": {"root": str(folder)}}
    pipeline = load_config(Path("configs/distill_config.yaml"))
    pipeline = pipeline.model_copy(update={"storage": pipeline.storage.model_copy(update=storage["storage"])})
    dst = folder / "kept.parquet"
    dst.unlink(missing_ok=True)
    filter_pairs.run(
        pipeline, filters=config, src=[src], dst=dst, checks=folder / "checks.parquet",
        report=folder / "report.json",
    )  # fmt: skip


def plain(src: Path, folder: Path, config: FilterConfig) -> None:
    """The reference, row by row; writes only the kept rows."""
    reference = Reference(config)
    with table_writer(folder / "kept.parquet", OUTPUTS) as out:
        for batch in pq.ParquetFile(src).iter_batches(8192):
            columns = ["teacher_output", "finish_reason", "template_name", "answer_flag"]
            keep = [reference.keeps(row) for row in batch.select(columns).to_pylist()]
            out.write(batch.filter(pa.array(keep)))


def datatrove(python: Path, src: Path, folder: Path, settings: Path) -> float:
    """Seconds of the same six rules as a datatrove pipeline, in its own environment."""
    script = Path(__file__).with_name("datatrove_rules.py")
    command = [str(python), str(script), str(src), str(folder), str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def datatrove_python(given: Path | None, folder: Path) -> Path | None:
    """An interpreter that has datatrove, or None with the reason on stderr."""
    if given:
        return given
    python = folder / "venv/bin/python"
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", DATATROVE, "orjson"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"datatrove is not measured: {error}", file=sys.stderr)
        return None
    return python


def kept(folder: Path) -> list[str]:
    """Sorted keys of the rows that a contender kept."""
    ids: list[str] = []
    for path in sorted(folder.glob("*kept*.parquet")):
        table = pq.read_table(path)
        name = "sample_id" if "sample_id" in table.column_names else "id"
        ids += table[name].to_pylist()
    return sorted(ids)


def timed(work: Contender) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(rows: int, seconds: dict[str, list[float]]) -> str:
    lines = ["| contender | rows/s, median | range | times plain Python |", "|---|---|---|---|"]
    base = statistics.median(seconds["plain Python, six rules"])
    for name, values in seconds.items():
        if not values:
            lines.append(f"| {name} | not measured | | |")
            continue
        middle = statistics.median(values)
        spread = f"{rows / max(values):,.0f} to {rows / min(values):,.0f}"
        lines.append(f"| {name} | {rows / middle:,.0f} | {spread} | {base / middle:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--datatrove", type=Path, metavar="PYTHON")
    args = parser.parse_args()
    everything = load_yaml(FILTERS, FilterConfig)
    six = load_yaml(FILTERS, FilterConfig, SIX_RULES).model_copy(update={"safety_patterns": {}})
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), args, six, everything)


def measure(folder: Path, args: argparse.Namespace, six: FilterConfig, everything: FilterConfig) -> None:
    src = folder / "answers.parquet"
    make_answers(src, args.rows)
    verbs = [form for verb in six.allowed_action_verbs["en"] for form in verb_forms(verb)]
    settings = folder / "six.json"
    names = ("citation_patterns", "refusal_patterns")
    plain_lists = {name: six.model_dump()[name]["en"] for name in names}
    settings.write_text(json.dumps(six.model_dump() | plain_lists | {"verb_forms": verbs}))
    python = datatrove_python(args.datatrove, folder)
    out = {name: folder / name for name in ("six", "all", "plain", "plain_all", "datatrove")}
    for path in out.values():
        path.mkdir()
    contenders: dict[str, Callable[[], float]] = {
        "ours, six rules": lambda: timed(lambda: ours(src, out["six"], six)),
        "ours, every rule": lambda: timed(lambda: ours(src, out["all"], everything)),
        "plain Python, six rules": lambda: timed(lambda: plain(src, out["plain"], six)),
    }
    if python:
        contenders["datatrove, six rules"] = lambda: datatrove(python, src, out["datatrove"], settings)
    for contender in contenders.values():
        contender()
    plain(src, out["plain_all"], everything)
    for same in (("six", "plain"), ("all", "plain_all"), *([("six", "datatrove")] * bool(python))):
        left, right = (kept(out[name]) for name in same)
        if left != right:
            sys.exit(f"{same[0]} keeps {len(left)} rows, {same[1]} {len(right)}: not the same")
        print(f"{same[0]} and {same[1]}: the same {len(left):,} rows kept")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender())
    seconds.setdefault("datatrove, six rules", [])
    print(f"\n{args.rows:,} answers, {args.rounds} rounds, {os.cpu_count()} cores, ", end="")
    print(f"load before the last round's end {os.getloadavg()[0]:.1f}\n")
    print(table(args.rows, seconds))


if __name__ == "__main__":
    main()
