"""Fixtures of the op tests: every instruction set of this machine, and the path without kernels."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from afnext import ops
from afnext.ops import runtime

HERE = Path(__file__).parent
LEVEL_FIXTURES = ("backend", "kernel", "path")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``backend`` runs over the levels for which the op of the file, test_<op>.py, has kernels of its own:
    at any other it would run the same ones again."""
    if "backend" in metafunc.fixturenames:
        op = metafunc.module.__name__.rpartition("test_")[2]
        levels = runtime.available_cpu_isas(op) or runtime.available_cpu_isas()
        metafunc.parametrize("backend", [*levels, "reference"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """make test has the lowest and the highest instruction set that an op has kernels for, and plain torch;
    those between are left to the sweep."""
    for item in items:
        if not item.path.is_relative_to(HERE) or not hasattr(item, "callspec"):
            continue
        op = item.path.stem.removeprefix("test_")
        levels = runtime.available_cpu_isas(op) or runtime.available_cpu_isas()
        if any(item.callspec.params.get(name) in levels[1:-1] for name in LEVEL_FIXTURES):
            item.add_marker(pytest.mark.sweep)


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
