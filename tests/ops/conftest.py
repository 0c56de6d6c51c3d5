"""Fixtures of the op tests: every instruction set of this machine, and the path without kernels."""

from collections.abc import Iterator

import pytest
import torch

from afnext import ops
from afnext.ops import runtime


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``backend`` runs over the levels for which the op of the file, test_<op>.py, has kernels of its own:
    at any other it would run the same ones again."""
    if "backend" in metafunc.fixturenames:
        op = metafunc.module.__name__.rpartition("test_")[2]
        levels = runtime.available_cpu_isas(op) or runtime.available_cpu_isas()
        metafunc.parametrize("backend", [*levels, "reference"], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set and once in plain torch."""
    if request.param == "reference":
        with ops.force_reference():
            yield request.param
        return
    before = runtime.cpu_isa()
    runtime.set_cpu_isa(request.param)
    yield request.param
    runtime.set_cpu_isa(before)


@pytest.fixture(params=runtime.available_cpu_isas())
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set."""
    before = runtime.cpu_isa()
    runtime.set_cpu_isa(request.param)
    yield request.param
    runtime.set_cpu_isa(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
