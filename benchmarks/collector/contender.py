"""What the scripts of the other clients share: their arguments and how they hand over answers.

    python -m benchmarks.collector.with_NAME BASE_URL PROMPTS IN_FLIGHT OUT FOLDER VARIANT

Standard library only. `OUT` gets one JSON line [prompt, answer] per answer, after the last one has
arrived; caches belong into `FOLDER`.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.collector.questions import read_prompts


@dataclass(frozen=True)
class Job:
    """One run of a contender. `variant` may be empty."""

    base_url: str
    prompts: Path
    in_flight: int
    out: Path
    folder: Path
    variant: str


def job() -> Job:
    base_url, prompts, in_flight, out, folder, variant = sys.argv[1:]
    return Job(base_url, Path(prompts), int(in_flight), Path(out), Path(folder), variant)


def hand_over(out: Path, answers: Iterable[tuple[str, str]]) -> None:
    with out.open("w") as file:
        file.writelines(f"{json.dumps(pair)}\n" for pair in answers)


async def ask_all(given: Job, ask: Callable[[str], Awaitable[str]]) -> list[tuple[str, str]]:
    """`in_flight` workers that share one iterator over the prompts."""
    prompts, answers = read_prompts(given.prompts), list[tuple[str, str]]()

    async def work() -> None:
        for text in prompts:
            answers.append((text, await ask(text)))

    await asyncio.gather(*(work() for _ in range(given.in_flight)))
    return answers
