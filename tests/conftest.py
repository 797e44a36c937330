"""Precisions to compute in, whatever the processor does: bfloat16 is emulated where it is slow."""

from collections.abc import Iterator

import pytest

from tests.support.precision import PRECISIONS, computing_in


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
