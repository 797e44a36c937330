"""The figures of a scenario as Markdown: medians and ranges over its rounds."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.collector.contenders import CONTENDERS
from benchmarks.collector.one_run import Run
from benchmarks.collector.questions import lognormal_seconds, makespan, prompt
from benchmarks.collector.server import Bucket


@dataclass
class Measured:
    """By contender: its rounds, the small run before them; and who dropped out, and why."""

    rounds: dict[str, list[Run]]
    small: dict[str, Run]
    unfit: dict[str, str]


def spread(values: list[float], form: str) -> str:
    """`median | least to most` for a table."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} | {low:{form}} to {high:{form}}"


def median(runs: list[Run], key: str) -> float:
    """Of one figure over the rounds."""
    return float(statistics.median(getattr(run, key) for run in runs))


def table(heads: list[str], found: Measured, row: Callable[[str, list[Run]], str]) -> str:
    """Who was not measured stands below with the reason."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {name} | {row(name, runs)} |" for name, runs in found.rounds.items()]
    lines += [f"| {name} | not measured{' |' * (len(heads) - 1)}" for name in found.unfit]
    lines += [f"\n{name} is not measured: {reason}" for name, reason in found.unfit.items()]
    return "\n".join(lines)


def speed_table(found: Measured, share_of: str, share: Callable[[int, Run], float | None]) -> str:
    """`share`: of the best possible, from the number of the round and the run."""

    def row(name: str, runs: list[Run]) -> str:
        small = found.small[name]
        shares = [part for n, run in enumerate(runs) if (part := share(n, run)) is not None]
        further = [(run.cpu_seconds - small.cpu_seconds) / max(1, run.requests - small.requests) for run in runs]
        cells = [
            f"{runs[0].requests:,}",
            spread([run.rate for run in runs], ",.0f"),
            f"{statistics.median(shares):.3f}" if shares else "",
            f"{median(runs, 'wall_seconds'):.1f}",
            f"{statistics.median(further) * 1000:.2f}",
            f"{median(runs, 'peak_mb'):,.0f}",
            ", ".join(f"{run.slowest_commit_ms:.0f}" for run in runs if run.slowest_commit_ms),
        ]
        return " | ".join(cells)

    heads = ["contender", "requests", "requests/s, median", "range", share_of, "whole run, s",
             "CPU, ms per request", "peak memory, MB", "slowest commits, ms"]  # fmt: skip
    return table(heads, found, row)


def latency_table(found: Measured, in_flight: int, seconds: float) -> str:
    """Against `in_flight` answers every `seconds`."""
    ceiling = in_flight / seconds
    return speed_table(found, f"share of {ceiling:,.0f}/s", lambda _, run: run.rate / ceiling)


def instant_table(found: Measured) -> str:
    """Against bare aiohttp in the same round."""
    bare = found.rounds.get(CONTENDERS["aiohttp"].name, [])

    def share(number: int, run: Run) -> float | None:
        return run.rate / bare[number].rate if number < len(bare) else None

    return speed_table(found, "times bare aiohttp in the same round", share)


def lognormal_table(found: Measured, in_flight: int) -> str:
    """Against list scheduling of the same latencies."""
    sizes = {run.requests for runs in found.rounds.values() for run in runs}
    bounds = {size: makespan((lognormal_seconds(prompt(n)) for n in range(size)), in_flight) for size in sizes}
    share_of = "share of the list-scheduling bound"
    return speed_table(found, share_of, lambda _, run: bounds[run.requests] / run.seconds)


def storm_table(found: Measured, bucket: Bucket) -> str:
    """Against what the bucket would have let through until the last billed request."""

    def row(_: str, runs: list[Run]) -> str:
        obtained = [run.billed / bucket.allowed(run.last_billed) for run in runs]
        wasted = [run.rejected / (run.billed + run.rejected) for run in runs]
        cells = [
            f"{runs[0].requests:,}",
            f"{median(runs, 'seconds'):.1f}",
            spread(obtained, ".3f"),
            spread(wasted, ".3f"),
            str(max(run.requests - run.answered for run in runs)),
        ]
        return " | ".join(cells)

    heads = ["contender", "requests", "seconds", "of the allowed rate, median", "range",
             "wasted sends, median", "range", "failed rows, most"]  # fmt: skip
    return table(heads, found, row)


def memory_table(found: Measured) -> str:
    """Each size against the one before it."""
    peaks = {name: max(run.peak_mb for run in runs) for name, runs in found.rounds.items()}
    ratios = {high: f"{peaks[high] / peaks[low]:.2f}" for low, high in pairwise(peaks)}

    def row(name: str, runs: list[Run]) -> str:
        figures = f"{median(runs, 'rate'):,.0f} | {median(runs, 'wall_seconds'):.1f}"
        return f"{figures} | {peaks[name]:,.0f} | {ratios.get(name, '')}"

    heads = ["contender", "requests/s, median", "whole run, s", "peak memory, MB", "ratio"]
    return table(heads, found, row)
