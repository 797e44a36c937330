"""Precisions to compute in, whatever the processor does: bfloat16 is emulated where it is slow.

`--full` runs every case of every sweep, and each command in an interpreter of its own.
"""

from collections.abc import Iterator

import pytest

from tests import warm
from tests.precision import PRECISIONS, computing_in


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="all cases of the sweeps, and an interpreter of its own for each command (slow)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--full") and not hasattr(config, "workerinput"):
        config.add_cleanup(warm.prepare())


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
