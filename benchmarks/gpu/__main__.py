"""``python -m benchmarks.gpu``: builds the module if need be, checks the kernels, measures, writes gpu.json.

Needs numpy and torch beside this checkout. Each row is printed and written as soon as it is measured, and the
time budget is kept between rows, so that a run that is cut off leaves what it has.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..case import Case
from ..results import Failure, Result, document, result_of, table, write
from .build import BuildError, load_module

if TYPE_CHECKING:  # these need the module, which may have to be built first
    from .lab import Lab
    from .row import Row

SAVED = Path(__file__).parents[1] / "results"


class Record:
    """Outcomes, and the file that grows with them."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.machine: dict[str, Any] = {}
        self.results: list[Result] = []
        self.failures: list[Failure] = []
        self.missing: list[str] = []

    def add(self, outcome: Result | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
            print(f"FAILED {outcome}", flush=True)
        else:
            self.results.append(outcome)
            print(table(outcome), flush=True)

    def write(self, peaks: Any, complete: bool) -> None:
        if self.path is not None:
            content = document(self.machine, peaks, self.results, self.failures, complete=complete)
            write(self.path, content | {"no_kernel": self.missing})


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 1 where anything failed, 2 where there is no GPU or no module for it."""
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + options.budget
    if not options.rehearse and not torch.cuda.is_available():
        print("gpu: torch sees no GPU; --rehearse runs the rows on the CPU", file=sys.stderr)
        return 2
    try:
        module = load_module(cuda=not options.rehearse, rebuild=options.build)
    except BuildError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    if options.first_cases:
        return _first_cases(module)
    return _run(module, options, deadline)


def _run(module: Any, options: argparse.Namespace, deadline: float) -> int:
    from .. import machine
    from .lab import Lab

    lab = Lab(options.rehearse)
    torch.manual_seed(0)
    gpu = {} if lab.rehearse else _gpu()
    record = Record(options.json or (None if lab.rehearse else SAVED / slug(gpu) / "gpu.json"))
    record.machine = {**machine.describe(), **({"gpu": gpu} if gpu else {"rehearsal": True})}
    print(gpu or "a rehearsal on the CPU: figures mean nothing", flush=True)
    if not lab.rehearse:
        _check(module, record, time.monotonic() + 0.4 * options.budget)
    peaks = lab.peaks
    rates = ", ".join(f"{name} {rate / 1e12:.4g} TFLOP/s" for name, rate in peaks.compute.items())
    print(f"copy {peaks.memory / 1e12:.3g} TB/s, {rates}", flush=True)
    complete = _measure(lab, record, deadline, options.only)
    record.write(peaks, complete)
    if record.path is not None:
        print(f"wrote {record.path}", flush=True)
    if record.missing:
        print("no kernel: " + ", ".join(record.missing), flush=True)
    print(f"{len(record.results)} rows, {len(record.failures)} failures", flush=True)
    return 1 if record.failures else 0


def _check(module: Any, record: Record, deadline: float) -> None:
    from .correctness import run_cases, sanitize

    for what, outcomes in (
        ("cases", run_cases(module, deadline=deadline)),
        ("compute-sanitizer", sanitize()),
    ):
        good = 0
        for _, failure in outcomes:
            good += failure is None
            if failure is not None:
                record.add(failure)
        print(f"{what}: {good} right", flush=True)


def _first_cases(module: Any) -> int:
    from .correctness import run_cases

    failures = [failure for _, failure in run_cases(module, first_only=True) if failure]
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def _measure(lab: Lab, record: Record, deadline: float, only: str) -> bool:
    """Whether all rows had their turn before the deadline."""
    from afnext import ops
    from afnext.ops import runtime

    from . import attention_rows, linear_rows, small_rows, step_rows

    # What matters most comes first, in case that time runs out.
    rows = [*attention_rows.ROWS, *step_rows.ROWS, *small_rows.ROWS, *linear_rows.ROWS]
    for row in rows:
        if only and not re.search(only, f"{row.op} {row.name}"):
            continue
        if time.monotonic() > deadline:
            print("out of time", flush=True)
            return False
        if row.op == "decode_step" and not hasattr(ops, "PagedAttentionPlan"):
            record.missing.append(f"{row.op} {row.name}")
            continue
        if not lab.rehearse and not all(map(runtime.has_cuda_kernels, row.ops)):
            record.missing.append(f"{row.op} {row.name}")
            continue
        record.add(_outcome(lab, record, row))
        lab.release()
        record.write(lab.peaks, complete=False)
    return True


def _outcome(lab: Lab, record: Record, row: Row) -> Result | Failure:
    try:
        case = row.case(lab)
        if case.check is not None:
            case.check()
        case = replace(case, peers=_running(case, row.op, record))
        timings = lab.time({case.label: case.ours, **case.peers})
        return result_of(row.op, case, timings, lab.peaks)
    except Exception as error:
        return Failure.of(row.op, row.name, error)


def _running(case: Case, op: str, record: Record) -> dict[str, Any]:
    """The peers that this machine runs; torch refuses some backends for some shapes."""
    running = {}
    for name, call in case.peers.items():
        try:
            call()
            running[name] = call
        except RuntimeError as error:
            words = " ".join(str(error).split())[:120]
            record.missing.append(f"peer of {op} {case.name}: {name} ({words})")
    return running


def _gpu() -> dict[str, Any]:
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def slug(gpu: dict[str, Any]) -> str:
    """A folder name, as ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--build", action="store_true", help="build even if a module is installed")
    parser.add_argument("--budget", type=float, default=480, help="seconds, about; rows stop then")
    parser.add_argument("--only", default="", help="a regular expression on rows' names")
    parser.add_argument("--json", type=Path, help="where results go, if not benchmarks/results")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--first-cases", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
