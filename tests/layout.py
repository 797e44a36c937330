"""The layout of the two packages: which may import which, and the map of them in the documents.

Run: python -m tests.layout [--write]     the tables of docs/pipelines/IMPLEMENTATION_SUMMARY.md
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from tests.support.workspace import ROOT

# From the bottom up. A module imports from its own package and from lower layers, nothing else: not
# from its own layer either, so the stages never import each other. Stages are in pipeline order.
LAYERS = (
    ("nexa_distill", "nexa_distill.errors", "nexa_train"),
    ("nexa_distill.text", "nexa_distill.dialects"),
    ("nexa_distill.dialects.hosted", "nexa_distill.dialects.self_hosted"),
    ("nexa_distill.console", "nexa_distill.contracts"),
    ("nexa_distill.settings",),
    ("nexa_distill.storage",),
    (
        "nexa_distill.raw_data",
        "nexa_distill.journal",
        "nexa_distill.execution",
        "nexa_distill.annotation",
        "nexa_distill.reporting",
    ),
    ("nexa_distill.deduplication", "nexa_distill.collection.requests", "nexa_distill.gating", "nexa_distill.repair"),
    ("nexa_distill.collection.answers",),
    ("nexa_distill.collection.batch",),
    ("nexa_distill.collection",),
    ("nexa_distill.cost", "nexa_distill.judging", "nexa_distill.orchestration"),
    (
        "nexa_distill.probe",
        "nexa_distill.canonicalize",
        "nexa_distill.dedup",
        "nexa_distill.collect_teacher",
        "nexa_distill.filter_pairs",
        "nexa_distill.exec_gate",
        "nexa_distill.judge",
        "nexa_distill.person_checks",
        "nexa_distill.sample_gate",
        "nexa_distill.regenerate_bad",
        "nexa_distill.to_sft",
    ),
    ("nexa_distill.gates", "nexa_distill.labels", "nexa_distill.inspection"),
    ("nexa_distill.inspection.pages",),
    ("nexa_distill.pipeline", "nexa_distill.ui_inspect"),
    ("nexa_train.data",),
    ("nexa_train.models",),
    ("nexa_train.reports",),
    ("nexa_train.training",),
    ("nexa_train.evaluation", "nexa_train.easydistill_jobs"),
    (
        "nexa_train.local_models",
        "nexa_train.token_view",
        "nexa_train.teacher_logits",
        "nexa_train.generate_student",
        "nexa_train.regression",
        "nexa_train.benchmark_student",
    ),
    ("nexa_train.preflight", "nexa_train.evaluate_student"),
    ("nexa_train.train_sft",),
    ("nexa_train.easydistill",),
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}
TOPS = ("nexa_distill", "nexa_train")
NOT_ON_THE_DATA_SIDE = ("torch", "transformers", "accelerate", "peft", "nexa_train")
FOLDERS = (*TOPS, "tests", "benchmarks", "scripts")
MOST_FILES = 18  # Python files of a folder, `__init__.py` among them
SUMMARY = ROOT / "docs/pipelines/IMPLEMENTATION_SUMMARY.md"
BEGIN, END = "<!-- layout: python -m tests.layout --write -->", "<!-- /layout -->"


class Import(NamedTuple):
    """`module` imports `imported`, a module of ours or the name of another package."""

    module: str
    imported: str

    def __str__(self) -> str:
        return f"{self.module} imports {self.imported}"


def files(*folders: str) -> Iterator[Path]:
    """The Python files of some folders; those behind the links named `configs` are not ours."""
    for folder in folders:
        yield from (p for p in sorted((ROOT / folder).rglob("*.py")) if "configs" not in p.parts)


def sources() -> dict[str, str]:
    """The text of each module of both packages, a package by its `__init__.py`."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text(
            encoding="utf-8"
        )
        for path in files(*TOPS)
    }


@cache
def _statements(text: str) -> list[tuple[str, list[str]]]:
    """(module, names) of each import statement, also within functions and under TYPE_CHECKING."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.name, list[str]()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "an import of ours names its module in full"
            found.append((str(node.module), [alias.name for alias in node.names]))
    return found


def imports(modules: Mapping[str, str]) -> list[Import]:
    """Every import of these modules; of a name in a package the module, where it is one."""
    found = []
    for module, text in modules.items():
        for source, names in _statements(text):
            full = [f"{source}.{name}" for name in names]
            targets = {name if name in modules else source for name in full} or {source}
            found += [Import(module, target) for target in sorted(targets)]
    return found


def part_of(module: str, modules: Mapping[str, str]) -> str:
    """What has a place in LAYERS: a package, or a module at the top of one of the two."""
    is_package = any(name.startswith(f"{module}.") for name in modules)
    return module if is_package or module.count(".") == 1 else module.rpartition(".")[0]


def without_a_place(modules: Mapping[str, str]) -> set[str]:
    """Parts that LAYERS does not name, and names in it that are no part."""
    return {part_of(module, modules) for module in modules} ^ HEIGHT.keys()


def upward(modules: Mapping[str, str]) -> list[Import]:
    """Imports from the own layer or a higher one."""
    found = []
    for one in imports(modules):
        if one.imported in modules:
            here, there = (part_of(name, modules) for name in one)
            if here != there and HEIGHT[here] <= HEIGHT[there]:
                found.append(one)
    return found


def circle(modules: Mapping[str, str]) -> list[str]:
    """Some modules that import each other in a circle, within a package too."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for one in imports(modules):
        if one.imported in modules and one.imported != one.module:
            graph[one.module].add(one.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def of_the_training_side(modules: Mapping[str, str]) -> list[Import]:
    """Imports of the data side that would need torch."""
    return [
        one
        for one in imports(modules)
        if one.module.split(".")[0] == "nexa_distill" and one.imported.split(".")[0] in NOT_ON_THE_DATA_SIDE
    ]


def full_folders(paths: Iterator[Path]) -> dict[str, int]:
    """Folders with more than MOST_FILES of these files."""
    count: dict[str, int] = {}
    for path in paths:
        folder = str(path.parent.relative_to(ROOT))
        count[folder] = count.get(folder, 0) + 1
    return {folder: number for folder, number in count.items() if number > MOST_FILES}


def says(text: str) -> str:
    """The first sentence of a module's docstring."""
    doc = " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split())
    sentence = re.match(r".*?[.?!](?=\s|$)", doc)
    return sentence[0] if sentence else doc


def tables() -> str:
    """What stands at the top of each package, and its packages with their modules."""
    modules = sources()
    lines: list[str] = []
    for top in TOPS:
        parts = [part for part in HEIGHT if part.startswith(f"{top}.")]
        packages = [part for part in parts if any(m.startswith(f"{part}.") for m in modules)]
        lines += ["", f"### {top}", "", says(modules[top]), "", "| module | |", "|---|---|"]
        lines += [f"| `{part.partition('.')[2]}` | {says(modules[part])} |" for part in parts if part not in packages]
        lines += ["", "| package | | modules |", "|---|---|---|"]
        for part in packages:
            inside = [m for m in modules if m.rpartition(".")[0] == part and m not in packages]
            names = ", ".join(m.rpartition(".")[2] for m in inside)
            folder = part.partition(".")[2].replace(".", "/")
            lines.append(f"| `{folder}/` | {says(modules[part])} | {names} |")
    return "\n".join(lines).strip()


def with_tables(document: str) -> str:
    """The document with the tables of today between its marks."""
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Print the tables, or write them into the document."""
    if "--write" in sys.argv[1:]:
        SUMMARY.write_text(with_tables(SUMMARY.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())


if __name__ == "__main__":
    main()
