"""The word lists of the rules, `words.yaml`, as words and as patterns."""

from pathlib import Path

import yaml

_LISTS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))


def listed_words(*names: str) -> list[str]:
    return [word for name in names for line in _LISTS[name] for word in line.split(", ")]


def any_of(name: str) -> str:
    """A pattern of each word of the list."""
    return "|".join(listed_words(name))
