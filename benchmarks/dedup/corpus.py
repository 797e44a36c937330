"""Texts with planted near-duplicates, the same for every contender."""

import json
import random
from collections.abc import Iterator
from pathlib import Path


def texts(count: int, seed: int = 7) -> list[str]:
    """Shuffled texts of 80 to 220 words; about one in three is a changed copy of another.

    Words have natural frequencies (1 / rank). A copy has 0 to 12 % of its words replaced, each at
    its own place, so that similarities of three-word shingles spread from 0.5 to 1.
    """
    draw = random.Random(seed)
    letters = "etaoinshrdlucm"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    weights = [0.0]
    for rank in range(len(words)):
        weights.append(weights[-1] + 1 / (8 + rank))
    made: list[str] = []
    while len(made) < count:
        chosen = draw.choices(words, cum_weights=weights[1:], k=draw.randint(80, 220))
        made.append(" ".join(chosen))
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            copy = list(chosen)
            for place in draw.sample(range(len(copy)), int(draw.random() * 0.12 * len(copy))):
                copy[place] = draw.choice(words)
            made.append(" ".join(copy))
    return draw.sample(made[:count], count)


def write(path: Path, made: list[str]) -> None:
    """One JSON string per line."""
    path.write_text("".join(json.dumps(text) + "\n" for text in made), encoding="utf-8")


def read(path: Path) -> Iterator[str]:
    """What `write` wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def shingles(text: str, words: int = 3) -> set[str]:
    """Word n-grams as strings."""
    found = text.split()
    return {" ".join(found[i : i + words]) for i in range(max(len(found) - words + 1, 1))}
