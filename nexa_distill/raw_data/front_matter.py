"""The metadata at the begin of a Markdown file, apart from its text.

Formats: YAML between `---` lines (Jekyll, Hugo, Obsidian, Pandoc; a closing `...` too) and TOML
between `+++` lines (Hugo). What is not a mapping is text: a line `---` is also a horizontal rule.
"""

import re
import tomllib
from typing import Any

import yaml

BLOCK = re.compile(
    r"\A(?:---[ \t]*\n(?P<yaml>.*?)^(?:---|\.\.\.)|\+\+\+[ \t]*\n(?P<toml>.*?)^\+\+\+)"
    r"[ \t]*(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
PAIR = re.compile(r"^([\w-]+):[ \t]*(.*)$", re.MULTILINE)
COLUMNS = ("title", "domain")  # what a prompt can carry; other keys are for other programs


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """(`title` and `domain` where the front matter has them, the text behind it)."""
    block = BLOCK.match(text)
    if not block:
        return {}, text
    metadata = _parse_yaml(block["yaml"]) if block["toml"] is None else _parse_toml(block["toml"])
    if metadata is None:
        return {}, text
    kept = {name: metadata[name] for name in COLUMNS if name in metadata}
    plain = {name: str(value) for name, value in kept.items() if isinstance(value, str | int)}
    return plain, text[block.end() :].lstrip("\n")


def _parse_yaml(text: str) -> dict[str, Any] | None:
    try:
        metadata = yaml.safe_load(text) if text.strip() else {}
    except (yaml.YAMLError, ValueError):  # `title: Tides: an overview` is common and is no YAML
        metadata = dict(PAIR.findall(text)) or None
    return metadata if isinstance(metadata, dict) else None


def _parse_toml(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return dict(re.findall(r'^(\w+)\s*=\s*"(.*)"', text, re.MULTILINE)) or None
