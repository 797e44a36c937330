"""Answers per second that the exec gate checks, beside a process per query and plain sqlite3.

    python -m benchmarks.exec_gate.run [--geoquery DIR] [--answers 5000] [--rounds 5]

What is measured is said in README.md. Limits are those of configs/distill_config.yaml.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from nexa_distill.execution.checks import Job
from nexa_distill.execution.database_perturbation import write_perturbed_copies
from nexa_distill.execution.pool import WorkerPool
from nexa_distill.execution.sql import Limits
from nexa_distill.settings.pipeline import load_config
from nexa_distill.storage.manifests import sha256_path

ROOT = Path(__file__).resolve().parents[2]
BOMB = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"
HOSTILE = (
    "", ";", "-- nothing", "DROP TABLE city", "DELETE FROM city", "PRAGMA writable_schema = 1",
    "ATTACH '/etc/passwd' AS p", "SELECT load_extension('/tmp/x.so')",
    "SELECT zeroblob(1000000000)", "SELECT city_name FROM city; DROP TABLE city", BOMB,
    "SELECT count(*) FROM city a, city b, city c, city d",
)  # fmt: skip
CHILD = """
import json, sqlite3, sys
path, answer, gold = json.load(sys.stdin)
base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
found, known = (base.execute(query).fetchall() for query in (answer, gold))
print(bool(known) and sorted(map(repr, found)) == sorted(map(repr, known)))
"""
Answers = Sequence[tuple[str, str]]
Verdicts = list[bool]


def load(folder: Path, count: int) -> list[tuple[str, str]]:
    """(answer, gold query), every hundredth answer hostile."""
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["gold_sql"] for line in lines]
    made = []
    for i in range(count):
        gold = golds[i % len(golds)]
        made.append((HOSTILE[i // 100 % len(HOSTILE)] if i % 100 == 50 else gold, gold))
    return made


def ours(paths: Sequence[Path], limits: Limits) -> Callable[[Answers], Verdicts]:
    """The pool, which is started before the clock, as in a long run."""
    setting = {
        "limits": asdict(limits), "kinds": ["sql"], "schemas": {},
        "databases": {"geography": [str(path) for path in paths]},
    }  # fmt: skip
    pool = WorkerPool(setting, os.cpu_count() or 1).__enter__()

    def check(answers: Answers) -> Verdicts:
        jobs = (Job("sql", answer, gold, "geography") for answer, gold in answers)
        return [found[1].ok is True for found in pool.map_jobs(jobs)]

    return check


def process_per_query(path: Path, limits: Limits) -> Callable[[Answers], Verdicts]:
    """A Python process for each answer, ended at the timeout, as many at once as cores."""

    def one(answer: str, gold: str) -> bool:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", CHILD],
                input=json.dumps([str(path), answer, gold]), capture_output=True, text=True,
                timeout=limits.timeout_seconds, check=False, env={},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return done.stdout.strip() == "True"

    def check(answers: Answers) -> Verdicts:
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            return list(threads.map(lambda pair: one(*pair), answers))

    return check


def uncontained(path: Path) -> Callable[[Answers], Verdicts]:
    """One thread, one connection, no limit of any kind; hostile answers are left out."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def one(answer: str, gold: str) -> bool:
        found, known = (base.execute(query).fetchall() for query in (answer, gold))
        return bool(known) and sorted(map(repr, found)) == sorted(map(repr, known))

    return lambda answers: [one(answer, gold) for answer, gold in answers if answer == gold]


def table(counts: dict[str, int], seconds: dict[str, list[float]]) -> str:
    lines = ["| contender | answers/s, median | range | times a process per query |",
             "|---|---|---|---|"]  # fmt: skip
    speeds = {name: [counts[name] / s for s in values] for name, values in seconds.items()}
    base = statistics.median(speeds["a process per query"])
    for name, values in speeds.items():
        middle = statistics.median(values)
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        lines.append(f"| {name} | {middle:,.0f} | {spread} | {middle / base:.1f} |")
    return "\n".join(lines)


def measure(folder: Path, geoquery: Path, count: int, rounds: int) -> None:
    database = geoquery / "geography.sqlite"
    execution = load_config(ROOT / "configs/distill_config.yaml").execution
    limits = Limits(**execution.model_dump(include=set(Limits.__dataclass_fields__)))
    copies = write_perturbed_copies(database, folder, sha256_path(database))
    answers = load(geoquery, count)
    contenders = {
        "ours, every check": (ours([database, *copies], limits), answers),
        "a process per query": (process_per_query(database, limits), answers[: count // 20]),
        "plain sqlite3, one thread, nothing hostile": (uncontained(database), answers),
    }
    counts = {}
    for name, (check, given) in contenders.items():
        verdicts = check(given)
        counts[name] = len(verdicts)
        print(f"{name}: {sum(verdicts):,} of {len(verdicts):,} answers match", flush=True)
    shares = {name: check(answers[:50]) for name, (check, _) in contenders.items()}
    if any(found != next(iter(shares.values())) for found in shares.values()):
        sys.exit(f"not the same verdicts: {shares}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (check, given) in contenders.items():
            started = time.perf_counter()
            check(given)
            seconds[name].append(time.perf_counter() - started)
    load_now = os.getloadavg()[0]
    print(f"\n{count:,} answers, {rounds} rounds, {os.cpu_count()} cores, load {load_now:.1f}\n")
    print(table(counts, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geoquery", type=Path, metavar="DIR", default=ROOT.parent / "shared/data/geoquery")
    parser.add_argument("--answers", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not (args.geoquery / "geography.sqlite").is_file():
        sys.exit(f"not measured: {args.geoquery} does not hold GeoQuery; pass --geoquery DIR")
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), args.geoquery, args.answers, args.rounds)


if __name__ == "__main__":
    main()
