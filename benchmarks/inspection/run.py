"""How long a person waits in the inspection room, measured in a browser.

    python -m benchmarks.inspection.run [--rows 200000] [--moves 30] [--openings 5]

What is measured is said in README.md.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from playwright.sync_api import Page, expect

from benchmarks.filtering.memory import prepare
from nexa_distill.settings.pipeline import load_config
from tests.support.browser import inspector, pages

DECISIONS = 10_000
PLACE = re.compile(r"^Answer [\d,]+ of")
WORD = "measure"  # in most answers
Times = dict[str, list[float]]


def seconds(action: Callable[[], object]) -> float:
    """Of one action."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def stands(page: Page, place: int) -> None:
    """The answer in this place (from 1) is drawn: its text, and the buttons."""
    expect(page.get_by_text(f"Answer {place:,} of")).to_be_visible(timeout=60_000)
    expect(page.locator(".text").last).to_be_visible(timeout=60_000)
    expect(page.get_by_role("button", name="Accept")).to_be_visible(timeout=60_000)


def idle(page: Page) -> None:
    """No script runs: the next key press is measured alone."""
    state = "[data-testid='stApp'][data-test-script-state='notRunning']"
    expect(page.locator(state)).to_be_attached(timeout=60_000)
    page.wait_for_timeout(300)


def opened(tab: Page, url: str) -> None:
    """A tab that shows the first answer."""
    tab.goto(url)
    stands(tab, 1)


def next_place(page: Page, place: int) -> None:
    """The key, until the answer in this place is drawn."""
    page.keyboard.press("j")
    stands(page, place)


def other_place(page: Page, before: str) -> None:
    """The key, until another answer than the one before is drawn."""
    page.keyboard.press("j")
    expect(page.get_by_text(PLACE)).not_to_have_text(before)


def accepted(page: Page, done: int) -> None:
    """A decision, until the page counts it."""
    page.keyboard.press("a")
    expect(page.get_by_text(f"{done:,} decided")).to_be_visible()


def filtered(page: Page) -> None:
    """A filter by text, until what passes it is counted."""
    box = page.get_by_label("Text in prompt, context or answer")
    box.fill(WORD)
    box.press("Enter")
    expect(page.get_by_text("in the file)")).to_be_visible()


def memory(pid: int) -> float:
    """Resident, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def opening(config: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """A new server, its first tab and its second."""
    src = load_config(config).storage.path_of("collected_dataset")
    with inspector(folder / "log", "--config", config, "--src", src) as server, pages() as page:
        for name in ("first tab of a new server", "second tab"):
            yield name, seconds(partial(opened, page.context.new_page(), server.url))
        yield "server, MB", memory(server.process.pid)


def moves(config: Path, folder: Path, count: int) -> Iterator[tuple[str, float]]:
    """Key presses in one tab."""
    src = load_config(config).storage.path_of("collected_dataset")
    flags = ("--config", config, "--src", src, "--annotator", "ann")
    with inspector(folder / "log", *flags) as server, pages() as page:
        opened(page, server.url)
        page.wait_for_timeout(2000)  # a page that has just been drawn does not listen to keys yet
        for place in range(2, count + 2):
            idle(page)
            yield "next", seconds(partial(next_place, page, place))
        yield "a filter by text, once", seconds(partial(filtered, page))
        page.get_by_text("Prompt", exact=True).click()
        for _ in range(count):
            idle(page)
            yield ("next, filtered", seconds(partial(other_place, page, page.get_by_text(PLACE).inner_text())))
        page.goto(f"{server.url}/?row={DECISIONS + 1}")
        stands(page, DECISIONS + 2)
        for number in range(count):
            idle(page)
            yield "decide", seconds(partial(accepted, page, DECISIONS + number + 1))


def decide_some(config: Path) -> None:
    """Decisions that were made before, on the first answers."""
    storage = load_config(config).storage
    keys = pq.read_table(storage.path_of("collected_dataset"), columns=["sample_id", "attempt"])
    path = storage.path_of("annotations")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(keys.slice(0, DECISIONS).to_pylist()):
            action = "reject" if number % 3 else "accept"
            file.write(json.dumps({**row, "action": action, "annotator": "ann"}) + "\n")


def measure(rows: int, count: int, openings: int) -> Times:
    """Every figure, by name."""
    found: Times = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = prepare(folder, rows)
        command = [sys.executable, "-m", "nexa_distill.filter_pairs", "--pipeline-config", str(config)]
        subprocess.run(command, check=True)
        for _ in range(openings):
            for what, value in opening(config, folder):
                print(f"{what}: {value:.3f}", file=sys.stderr, flush=True)
                found.setdefault(what, []).append(value)
        decide_some(config)
        for what, value in moves(config, folder, count):
            print(f"{what}: {value:.3f}", file=sys.stderr, flush=True)
            found.setdefault(what, []).append(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--moves", type=int, default=30)
    parser.add_argument("--openings", type=int, default=5)
    given = parser.parse_args()
    print("| what | median | range | times |\n|---|---|---|---|")
    for what, values in measure(given.rows, given.moves, given.openings).items():
        unit = ".0f" if what.endswith("MB") else ".3f"
        spread = f"{min(values):{unit}} to {max(values):{unit}}"
        print(f"| {what} | {statistics.median(values):{unit}} | {spread} | {len(values)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
