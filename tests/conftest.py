"""Precisions to compute in, whatever the processor does: bfloat16 is emulated where it is slow."""

from collections.abc import Iterator

import pytest

from nexa_train.hardware import SWITCH

SWITCHES = {"float32": "off", "bfloat16": "on"}


@pytest.fixture(scope="module")
def float32() -> Iterator[None]:
    """The module computes in float32, but for tests that ask for `precision`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(SWITCH, SWITCHES["float32"])
        yield


@pytest.fixture(scope="module", params=SWITCHES)
def precision(float32: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """Each precision in turn, in this process and those it starts."""
    name: str = request.param
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(SWITCH, SWITCHES[name])
        yield name
