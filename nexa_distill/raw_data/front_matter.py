"""Split the front matter of a Markdown file from its text.

Formats: YAML between `---` lines (Jekyll, Hugo, Obsidian, Pandoc; a closing `...` too) and TOML
between `+++` lines (Hugo).
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
COLUMNS = ("title", "domain")  # columns of a prompt; other keys are for other programs


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """(`title` and `domain` if the front matter has them, the text after it)."""
    block = BLOCK.match(text)
    if not block:
        return {}, text
    metadata = _parse_yaml(block["yaml"]) if block["toml"] is None else _parse_toml(block["toml"])
    if metadata is None:  # not a mapping: a line `---` is also a horizontal rule
        return {}, text
    kept = {name: metadata[name] for name in COLUMNS if name in metadata}
    plain = {name: str(value) for name, value in kept.items() if isinstance(value, str | int)}
    return plain, text[block.end() :].lstrip("\n")


def _parse_yaml(text: str) -> dict[str, Any] | None:
    try:
        metadata = yaml.safe_load(text) if text.strip() else {}
    except (yaml.YAMLError, ValueError):  # `title: Tides: an overview` is common, and not YAML
        metadata = dict(PAIR.findall(text)) or None
    return metadata if isinstance(metadata, dict) else None


def _parse_toml(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return dict(re.findall(r'^(\w+)\s*=\s*"(.*)"', text, re.MULTILINE)) or None
