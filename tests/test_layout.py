"""Each part has its place, imports only go down, no folder is full, and the map shows today's."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from nexa_distill.orchestration.stages import STAGES
from tests.layout import (
    FOLDERS,
    HEIGHT,
    MOST_FILES,
    SUMMARY,
    circle,
    files,
    full_folders,
    of_the_training_side,
    says,
    sources,
    upward,
    with_tables,
    without_a_place,
)
from tests.support.workspace import ROOT

MODULES = sources()
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w/]+\.(?:py|sh))`")


def test_each_package_and_each_command_has_its_place_in_the_order() -> None:
    assert without_a_place(MODULES) == set()


@pytest.mark.parametrize("check", [upward, circle, of_the_training_side])
def test_imports_only_go_down(check: Callable[[dict[str, str]], list[Any]]) -> None:
    assert list(map(str, check(MODULES))) == []


def test_the_stages_of_the_data_side_share_one_layer_and_so_never_import_each_other() -> None:
    stages = {f"nexa_distill.{stage.module}" for stage in STAGES if stage.module}
    assert len({HEIGHT[stage] for stage in stages}) == 1
    assert len(stages) > 8


# What is put into a module, and what the checks say of it.
PLANTED = [
    (upward, "nexa_distill.text.words", "from nexa_distill.contracts import CHECKS"),
    (upward, "nexa_distill.journal.schema", "def f():\n    import nexa_distill.raw_data.files"),
    (upward, "nexa_distill.dedup", "from nexa_distill import canonicalize"),
    (upward, "nexa_train.data.packing", "from nexa_train.training import lora"),
    (upward, "nexa_distill.collection.batch.api", "from nexa_distill.collection import client"),
    (circle, "nexa_distill.text.words", "from nexa_distill.text import word_forms"),
    (circle, "nexa_distill.settings.yaml_loading",
     "if TYPE_CHECKING:\n    from nexa_distill.settings.student import Generation"),
    (of_the_training_side, "nexa_distill.judge", "def f():\n    import torch.nn"),
    (of_the_training_side, "nexa_distill.judge", "from nexa_train.data import packing"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "module", "line"), PLANTED)
def test_a_wrong_import_is_found(check: Callable[[dict[str, str]], list[Any]], module: str, line: str) -> None:
    found = check(MODULES | {module: f"{MODULES[module]}\n{line}\n"})
    assert any(module in str(one) for one in found)


def test_a_package_without_a_place_is_found() -> None:
    assert without_a_place(MODULES | {"nexa_distill.news.feed": ""}) == {"nexa_distill.news"}


def test_no_folder_has_more_modules_than_one_can_see() -> None:
    assert full_folders(files(*FOLDERS)) == {}
    crowd = (ROOT / "tests" / f"{number}.py" for number in range(MOST_FILES + 1))
    assert full_folders(crowd) == {"tests": MOST_FILES + 1}


def test_each_module_says_what_it_is() -> None:
    assert [module for module, text in MODULES.items() if not says(text)] == []


def test_the_map_is_that_of_today() -> None:
    document = SUMMARY.read_text(encoding="utf-8")
    assert with_tables(document) == document, "run python -m tests.layout --write"


def test_each_file_that_a_document_names_is_there() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    named = {
        (str(document.relative_to(ROOT)), path)
        for document in documents
        for path in PATH.findall(document.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert [one for one in sorted(named) if not (ROOT / one[1]).exists()] == []
