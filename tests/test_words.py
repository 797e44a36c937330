"""Functions are named by a verb and an object, and prose has the field's plain words (CONTRIBUTING.md, "Words")."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.workspace import ROOT

PACKAGES = ("nexa_distill", "nexa_train", "scripts")
# One-word names that are conventions: of commands, files, streams, and of classes of other libraries.
ONE_WORD = {
    "add",
    "append",
    "arguments",
    "close",
    "entry",
    "error",
    "fileno",
    "flush",
    "forward",
    "isatty",
    "main",
    "move",
}
ONE_WORD |= {"read", "regenerate", "render", "run", "save", "send", "settings", "start", "write"}
NO_NAMES = {"found", "made", "said", "given"}  # of variables
FORBIDDEN = re.compile(r"\b(?:anew|mends?|mended|of equals|lays? over)\b|\bfor good\b(?! reason)")
STANDS = re.compile(r"\bstands?\b")
MOST_STANDS = 2  # in 10,000 words
LATIN_LISTS = {"nexa_distill/gating/citations.py", "nexa_distill/gating/opening.py"}  # words of other languages


def sources() -> dict[str, str]:
    """Path from the root -> text of each module."""
    paths = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def prose() -> dict[str, str]:
    """Path from the root -> text of documents, settings, templates and modules."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    paths += [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "scripts").rglob("*.sh")]
    paths += [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.j2")]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    return {name: text for name, text in (texts | sources()).items() if name not in LATIN_LISTS}


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("__"):
            yield node


def one_word_names(text: str) -> set[str]:
    """Public names of functions without an object."""
    names = {node.name for node in functions(text)}
    return {name for name in names if not name.startswith("_") and "_" not in name} - ONE_WORD


def empty_names(text: str) -> set[str]:
    """Variables that are named by a participle instead of by what they contain."""
    stores = (n for f in functions(text) for n in ast.walk(f) if isinstance(n, ast.Name))
    return {n.id for n in stores if isinstance(n.ctx, ast.Store)} & NO_NAMES


def dialect_words(texts: dict[str, str]) -> list[str]:
    return [f"{name}: {match[0]}" for name, text in texts.items() for match in FORBIDDEN.finditer(text)]


def stands_per_10_000(texts: dict[str, str]) -> float:
    text = " ".join(texts.values())
    return 1e4 * len(STANDS.findall(text)) / len(re.findall(r"\w+", text))


def test_public_functions_have_a_verb_and_an_object() -> None:
    assert {name: names for name, text in sources().items() if (names := one_word_names(text))} == {}


def test_the_list_of_conventions_has_no_name_that_nobody_uses() -> None:
    used = {node.name for text in sources().values() for node in functions(text)}
    assert used >= ONE_WORD


def test_variables_are_named_by_what_they_contain() -> None:
    assert len({name for name, text in sources().items() if empty_names(text)}) <= 1


def test_prose_is_in_plain_words() -> None:
    assert dialect_words({k: v for k, v in prose().items() if Path(k).name != "CONTRIBUTING.md"}) == []
    assert stands_per_10_000(prose()) <= MOST_STANDS


@pytest.mark.parametrize(
    ("check", "planted"),
    [
        (one_word_names, "def judged() -> int: ..."),
        (empty_names, "def count_rows() -> None:\n    found = 1\n"),
        (lambda text: dialect_words({"x": text}), "# it is decided anew"),
        (lambda text: stands_per_10_000({"x": text}) > MOST_STANDS, "it stands there"),
    ],
)
def test_each_check_sees_what_it_is_for(check, planted: str) -> None:  # type: ignore[no-untyped-def]
    assert check(planted)
