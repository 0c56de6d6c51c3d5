"""Finds the benchmarks, times their cases, and gathers the results."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import peaks as limits
from .case import Case
from .results import Failure, Peaks, Result, Table, result_of
from .timing import alternate

FOLDER = Path(__file__).parent
FRAMEWORK = {
    "__init__", "__main__", "case", "machine", "peaks", "process", "results", "roofline", "run",
    "timeline", "timing",
}  # fmt: skip
QUICK_ROUNDS = 3
MOST_SHARE = 1.05  # of a limit: beyond that it was not measured well, or the case counts too much


def benchmarks() -> dict[str, str]:
    """Name and first docstring line of every benchmark, read without importing it."""
    paths = sorted(path for path in FOLDER.glob("*.py") if path.stem not in FRAMEWORK)
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in paths}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def measure(
    benchmark: str, cases: Iterable[Case], quick: bool = False
) -> Iterator[Result | Failure]:
    """Time the cases of one benchmark, one after the other; one that fails leaves the others alone."""
    for case in cases:
        if quick and case.slow:
            continue
        try:
            outcome: Result | Failure = _timed(benchmark, case, quick)
        except Exception as error:
            outcome = Failure.of(benchmark, case.name, error)
        yield outcome


def _timed(benchmark: str, case: Case, quick: bool) -> Result:
    with case.context():
        if case.check is not None:
            case.check()
        timings = alternate(
            {case.label: case.ours, **case.peers},
            rounds=QUICK_ROUNDS if quick else case.rounds,
            at_least=2e-4 if quick else 2e-3,
        )
    result = result_of(benchmark, case, timings, peaks_for(case))
    if result.share > MOST_SHARE:
        limits.again("memory" if result.bound == "memory" else case.dtype)
        result = result_of(benchmark, case, timings, peaks_for(case))
    if result.share > MOST_SHARE:
        raise AssertionError(
            f"{result.share:.0%} of the {result.bound} limit: that was measured on a busy machine, or the "
            "case counts what it does not do"
        )
    return result


def peaks_for(case: Case) -> Peaks:
    """The limits that the case needs; each is measured once a process."""
    memory = limits.memory() if case.moved else 0.0
    return Peaks(memory, {case.dtype: limits.compute(case.dtype)} if case.flops else {})


def peaks_of(results: Iterable[Result]) -> Peaks:
    """The limits that any of the results was compared with, and those of memory."""
    results = list(results)
    if not results:
        return Peaks(0.0, {})
    dtypes = sorted({result.dtype for result in results if result.flops})
    return Peaks(limits.memory(), {dtype: limits.compute(dtype) for dtype in dtypes})


def run(name: str, quick: bool = False) -> Iterator[Result | Table | Failure]:
    """Run one benchmark of this package.

    Its module has ``cases()``; or ``outcomes(quick)``, which measures by itself; or ``run()``, which prints
    its own table and has no results.
    """
    try:
        module = importlib.import_module(f".{name}", __package__)
        if hasattr(module, "cases"):
            yield from measure(name, module.cases(), quick)
        elif hasattr(module, "outcomes"):
            yield from module.outcomes(quick)
        else:
            module.run()
    except Exception as error:
        yield Failure.of(name, "", error)
