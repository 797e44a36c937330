"""Sweeps: a run takes some of their cases, by its seed; `pytest --full` takes all.

The seed is printed at the head of a run, and is the day unless NEXA_TESTS_SEED gives another: all
cases come round within some days. `python -m tests.sweeps` prints the table of CONTRIBUTING.md.
"""

import ast
import os
import random
import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

SEED, FULL = "NEXA_TESTS_SEED", "NEXA_TESTS_FULL"
HEAD = "| sweep | each run | why the others wait |\n| --- | --- | --- |\n"
PRECISIONS = (
    "precision of a module's tests",
    "1 of 2",
    "the same code in another precision; each module has its own turn, test_train_sft both",
)
T = TypeVar("T")


def prepare(*, full: bool) -> str:
    """Fix the cases for this process and those it starts. Returns the line that says which."""
    os.environ.setdefault(SEED, str(datetime.now(UTC).toordinal()))
    os.environ[FULL] = "1" if full else ""
    taken = "all cases" if full else f"some cases, {SEED}={os.environ[SEED]}; all with --full"
    return f"sweeps: {taken}"


def whole() -> bool:
    """Whether all cases are taken."""
    return bool(os.environ.get(FULL))


def chance(name: str) -> random.Random:
    """The sweep's own, of this run's seed."""
    return random.Random(int(os.environ.get(SEED, "0")) + zlib.crc32(name.encode()))


def some(name: str, cases: Sequence[T], count: int, *, why: str) -> list[T]:
    """`count` of the cases, in their order. `why`: for CONTRIBUTING.md."""
    return turn(name, cases, count)


def turn(name: str, cases: Sequence[T], count: int = 1) -> list[T]:
    """Those of the cases whose turn it is."""
    if whole() or count >= len(cases):
        return list(cases)
    # All come round: each seed goes on in one shuffled circle where the one before it ended.
    places = list(range(len(cases)))
    random.Random(zlib.crc32(name.encode())).shuffle(places)
    start = int(os.environ.get(SEED, "0")) * count
    taken = {places[(start + i) % len(places)] for i in range(count)}
    return [case for place, case in enumerate(cases) if place in taken]


def fewer(name: str, count: int, all_: int, *, why: str) -> int:
    """How often something is repeated: `count`, or `all_` with --full."""
    return all_ if whole() else count


def table() -> str:
    """All sweeps of the tests: what each run takes, and why not all."""
    rows = {PRECISIONS} | {row for path in Path(__file__).parent.rglob("test_*.py") for row in _rows(path.read_text())}
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in sorted(rows))


def _rows(source: str) -> Iterator[tuple[str, str, str]]:
    tree = ast.parse(source)
    texts = {  # what names stand for
        ast.unparse(line.targets[0]): line.value for line in ast.walk(tree) if isinstance(line, ast.Assign)
    }
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        if call.func.id not in ("some", "fewer"):
            continue
        name, *rest = call.args
        count, of = rest[::-1] if call.func.id == "some" else rest
        given = next(word.value for word in call.keywords if word.arg == "why")
        why = ast.literal_eval(texts.get(ast.unparse(given), given))
        each = f"{ast.unparse(count)} of {_size(of)}"
        yield ast.literal_eval(name), each, why


def _size(of: ast.expr) -> str:
    """How many cases, where it can be read: else what they are."""
    if isinstance(of, ast.List | ast.Tuple):
        return str(len(of.elts))
    return ast.unparse(of) if isinstance(of, ast.Constant) else "all"


if __name__ == "__main__":
    sys.stdout.write(table())
