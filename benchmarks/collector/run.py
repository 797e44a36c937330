"""Requests per second of the collector and of other clients, against a server on loopback.

    python -m benchmarks.collector.run [--scenario latency|instant|lognormal|storm|memory]

`latency`    every answer takes 200 ms; the ceiling is requests in flight / 200 ms
`instant`    answers at once: what a request costs the client; set against bare aiohttp
`lognormal`  p50 100 ms, p99 1 s; the bound is list scheduling of the same latencies in order
`storm`      50 requests/s are let through, 25 from the 45th second on, the rest gets 429
`memory`     peak memory of the collector at 100,000 and 1,000,000 rows

First each contender's answers to a few requests are checked (and those of every later run); then
rounds are interleaved, and the table gives medians and ranges. Seconds are the server's: first
request received to last answer sent. CPU per request is what a run took beyond the small one, so
start-up and imports do not count; "whole run" counts them. Ours also keeps a journal on disk and
writes sealed tables.

Other clients run in environments of their own, made under `--environments` (and kept there; the
default is a temporary folder). One that cannot be installed, answers wrongly, is billed twice for
an answer or has more in flight than allowed is "not measured".
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.collector import tables
from benchmarks.collector.contenders import CONTENDERS, ENVIRONMENTS, Contender
from benchmarks.collector.one_run import Run, one_run
from benchmarks.collector.server import Bucket
from benchmarks.collector.tables import Measured
from benchmarks.environments import Environments, Unfit

CHECKED = 256  # requests of the run before anything is timed
LATENCY_SECONDS, RATE, HALVE_AFTER = 0.2, 50.0, 45.0
FIXED = ["--latency", str(LATENCY_SECONDS)]
STORM = [*FIXED, "--rate", str(RATE), "--halve-after", str(HALVE_AFTER)]


@dataclass(frozen=True)
class Scenario:
    """What is run when nothing is said on the command line. `server`: its arguments."""

    requests: int
    in_flight: int
    server: list[str]
    rounds: int = 3
    contenders: str = ",".join(CONTENDERS)


SCENARIOS = {
    "latency": Scenario(20_000, 256, FIXED),
    "instant": Scenario(20_000, 64, []),
    "lognormal": Scenario(20_000, 256, ["--latency", "lognormal"]),
    "storm": Scenario(3_375, 64, STORM, rounds=1, contenders="ours"),
    "memory": Scenario(1_000_000, 64, [], rounds=1, contenders="ours"),
}


def measure(scenario: Scenario, chosen: list[Contender], environments: Environments, folder: Path) -> Measured:
    """One small run each, then the rounds; whoever is unfit drops out with all its figures."""
    found = Measured({contender.name: [] for contender in chosen}, {}, {})

    def attempt(contender: Contender, requests: int) -> Run | None:
        name = contender.name
        if name in found.unfit:
            return None
        try:
            run = one_run(contender, environments, folder, requests, scenario.in_flight, scenario.server)
            if run.answered < requests and scenario.server != STORM:
                raise Unfit(f"{run.answered} answers to {requests} requests")
        except Unfit as error:
            found.unfit[name] = str(error)
            del found.rounds[name]
            print(f"{name} is not measured", file=sys.stderr, flush=True)
            return None
        said = f"{name}: {requests:,} requests, {run.rate:,.0f}/s, {run.wall_seconds:.1f} s in all"
        print(said, file=sys.stderr, flush=True)
        return run

    for contender in chosen:
        if run := attempt(contender, CHECKED):
            found.small[contender.name] = run
    for _ in range(scenario.rounds):
        for contender in chosen:
            if run := attempt(contender, round(scenario.requests * contender.share)):
                found.rounds[contender.name].append(run)
    return found


def written(name: str, scenario: Scenario, found: Measured) -> str:
    """The scenario's table."""
    if name == "latency":
        return tables.latency_table(found, scenario.in_flight, LATENCY_SECONDS)
    if name == "instant":
        return tables.instant_table(found)
    if name == "lognormal":
        return tables.lognormal_table(found, scenario.in_flight)
    if name == "storm":
        return tables.storm_table(found, Bucket(RATE, HALVE_AFTER))
    return tables.memory_table(found)


def two_sizes(contender: Contender, requests: int) -> list[Contender]:
    """The contender at a tenth of the rows and at all of them."""
    return [
        dataclasses.replace(contender, name=f"{contender.name}, {round(requests * share):,} rows", share=share)
        for share in (0.1, 1.0)
    ]


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--scenario", choices=SCENARIOS, default="latency")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--requests", type=int, metavar="N")
    parser.add_argument("--in-flight", type=int, metavar="K")
    parser.add_argument("--folder", type=Path, default=Path(), help="where journals are written")
    parser.add_argument("--environments", type=Path, metavar="DIR")
    parser.add_argument("--contenders", metavar="A,B,...", help=f"of {', '.join(CONTENDERS)}")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    keys = ("rounds", "requests", "in_flight", "contenders")
    given = {key: value for key in keys if (value := getattr(args, key)) is not None}
    scenario = dataclasses.replace(SCENARIOS[args.scenario], **given)
    names = scenario.contenders.split(",")
    if unknown := set(names) - set(CONTENDERS):
        sys.exit(f"unknown contender {', '.join(unknown)}; known: {', '.join(CONTENDERS)}")
    chosen = [CONTENDERS[name] for name in names]
    if args.scenario == "memory":
        chosen = [size for one in chosen for size in two_sizes(one, scenario.requests)]
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="collector-") as name:
        folder = Path(name).resolve()
        place = (args.environments or folder / "environments").resolve()
        environments = Environments(place, ENVIRONMENTS)
        found = measure(scenario, chosen, environments, folder)
    print(f"\n{args.scenario}: {scenario.in_flight} in flight, {scenario.rounds} rounds, ", end="")
    print(f"{os.cpu_count()} cores, load at the end {os.getloadavg()[0]:.1f}\n")
    print(written(args.scenario, scenario, found))
    return 1 if found.unfit.keys() & {one.name for one in chosen if not one.environment} else 0


if __name__ == "__main__":
    sys.exit(main())
