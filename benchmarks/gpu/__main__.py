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
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from .. import roofline
from ..results import Failure, Peaks, Result, document, table, write
from . import supervision
from .build import BuildError, load_module
from .supervision import Job

SECONDS = 60.0  # a row may take
SAVED = Path(__file__).parents[1] / "results"


class Record:
    """Outcomes, and the file that grows with them."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.machine: dict[str, Any] = {}
        self.peaks: Peaks | None = None
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

    def write(self, complete: bool) -> None:
        if self.path is not None:
            peaks = self.peaks or Peaks(0.0, {})
            content = document(self.machine, peaks, self.results, self.failures, complete=complete)
            write(self.path, content | {"not_here": self.missing})


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 1 where anything failed, 2 where there is no GPU or no module for it."""
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + options.budget
    if not options.rehearse and not torch.cuda.is_available():
        print("gpu: torch sees no GPU; --rehearse runs the rows on the CPU", file=sys.stderr)
        return 2
    try:
        load_module(cuda=not options.rehearse, rebuild=options.build)
    except BuildError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    return _run(options, deadline)


def _run(options: argparse.Namespace, deadline: float) -> int:
    from .. import machine

    gpu = {} if options.rehearse else _gpu()
    record = Record(options.json or (None if options.rehearse else SAVED / slug(gpu) / "gpu.json"))
    record.machine = {**machine.describe(), **({"gpu": gpu} if gpu else {"rehearsal": True})}
    print(gpu or "a rehearsal on the CPU: figures mean nothing", flush=True)
    if not options.rehearse and not options.no_cases:
        _check(record, time.monotonic() + 0.4 * options.budget)
    complete = _measure(record, deadline, options)
    record.write(complete)
    if record.path is not None:
        print(f"wrote {record.path}", flush=True)
        _draw(record, gpu.get("name", "a rehearsal"))
    if record.missing:
        print("not here: " + ", ".join(record.missing), flush=True)
    print(f"{len(record.results)} rows, {len(record.failures)} failures", flush=True)
    return 1 if record.failures else 0


def _check(record: Record, deadline: float) -> None:
    from .correctness import run_all

    for name, good, failures in run_all(deadline):
        for failure in failures:
            record.add(failure)
        print(f"{name}: {good} right, {len(failures)} wrong", flush=True)


def _measure(record: Record, deadline: float, options: argparse.Namespace) -> bool:
    """Whether all rows had their turn before the deadline."""
    from afnext.ops import runtime

    from . import rows
    from .correctness import OLDER

    wanted = []
    for row in rows.ROWS:
        if not re.search(options.only, row.title):
            continue
        if options.rehearse or all(map(runtime.has_cuda_kernels, row.ops)):
            wanted.append(row)
        else:
            record.missing.append(f"a kernel for {row.title}")
    done = 0
    for older, group in groupby(wanted, key=lambda row: row.older):
        by_title = {row.title: row for row in group}
        settings = {"rehearse": options.rehearse, rows.PEAKS: record.peaks and asdict(record.peaks)}
        items = [*by_title] if record.peaks else [rows.PEAKS, *by_title]
        job = Job(f"{rows.__name__}:measurer", items, SECONDS, settings, OLDER if older else {})
        for title, answer in supervision.run(job, deadline):
            done += title in by_title
            if answer.error:
                record.add(_failure(title, answer.error))
            elif title == rows.PEAKS:
                record.peaks = Peaks(**answer.value)
                print(_in_words(record.peaks), flush=True)
            else:
                record.missing += (f"{title}: {peer}" for peer in answer.value["missing"])
                record.add(Result.from_dict(answer.value["result"]))
            record.write(complete=False)
    if done < len(wanted):
        print("out of time", flush=True)
    return done == len(wanted)


def _draw(record: Record, name: str) -> None:
    """A roofline picture beside the file, of those rows that count operations."""
    counted = [result for result in record.results if result.flops]
    if record.path is not None and record.peaks is not None and counted:
        picture = roofline.svg(name, record.peaks, counted)
        record.path.with_suffix(".svg").write_text(picture)


def _failure(title: str, error: str) -> Failure:
    benchmark, _, name = title.partition(" ")
    return Failure(benchmark, name, error)


def _in_words(peaks: Peaks) -> str:
    rates = ", ".join(f"{name} {rate / 1e12:.4g} TFLOP/s" for name, rate in peaks.compute.items())
    return f"copy {peaks.memory / 1e12:.3g} TB/s, {rates}"


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
    parser.add_argument("--no-cases", action="store_true", help="measure without checking first")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
