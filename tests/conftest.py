"""Precisions to compute in, whatever the processor does: bfloat16 is emulated where it is slow.

`--full` runs every case of every sweep, and starts an interpreter for each command that tests/warm
forks otherwise.
"""

import signal
from collections.abc import Iterator

import pytest

from tests import sweeps, warm
from tests.support.precision import PRECISIONS, computing_in

IN_BOTH = ("test_train_sft",)  # modules that compute in both precisions in every run
SWEEPS = pytest.StashKey[str]()
# Files, by what they took when it was last measured (with --durations=0).
LONGEST = (
    "test_fsdp", "test_end_to_end", "test_train_sft", "test_distillation", "test_local_models",
    "test_on_policy", "test_lora", "test_easydistill", "test_packed_attention",
    "test_checkpoints", "test_batch_mode", "test_collector_crashes", "test_distill_app",
    "test_collector_disk", "test_collector_provider", "test_families", "test_evaluate_student",
    "test_regression", "test_judge", "test_setup", "test_splits", "test_hostile",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all cases of the sweeps (slow)")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # its parent has done it
    # What is started in the background ignores Ctrl-C, and so would all that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    full = config.getoption("--full")
    config.stash[SWEEPS] = sweeps.prepare(full=full)
    if not full:
        config.add_cleanup(warm.prepare())


def pytest_report_header(config: pytest.Config) -> str:
    return config.stash.get(SWEEPS, "")  # a worker of pytest-xdist has none


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, the files that take longest come first: none is left over at the end."""
    left = set(twice_for_precision(items))
    if left:
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = [item for item in items if item not in left]
    if hasattr(config, "workerinput"):
        rank = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def twice_for_precision(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Of tests in both precisions, those in one that is not the module's today."""
    both: dict[str, list[pytest.Item]] = {}
    for item in items:
        given = getattr(item, "callspec", None)
        name = given.params.get("precision") if given else None
        if name and item.path.stem not in IN_BOTH:
            both.setdefault(item.nodeid.replace(name, "*"), []).append(item)
    for pair in both.values():
        kept = sweeps.turn(f"precision of {pair[0].path.stem}", pair)
        yield from (item for item in pair if item not in kept)


@pytest.fixture(scope="module")
def float32() -> Iterator[None]:
    """The module computes in float32, but for tests that ask for `precision`."""
    with computing_in("float32"):
        yield


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(float32: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """Each precision in turn, in this process and those it starts."""
    name: str = request.param
    with computing_in(name):
        yield name
