"""The cases of tests/cuda on the GPU, and a few of them under compute-sanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from ..results import Failure
from .build import ROOT

TOOLS = ("memcheck", "racecheck")
SECONDS = 60.0  # of a tool's run


def run_cases(
    module: Any, *, first_only: bool = False, deadline: float = float("inf")
) -> Iterator[tuple[str, Failure | None]]:
    """Each case's name and what is wrong with it; those left at the deadline are not run."""
    from tests.cuda.harness import Kernels, all_cases

    kernels = Kernels(module, emulated=False)
    seen: set[str] = set()
    for op, case in all_cases():
        if time.monotonic() > deadline:
            return
        if first_only and op in seen:
            continue
        seen.add(op)
        try:
            case.run(kernels)
        except Exception as error:
            yield f"{op} {case.name}", Failure.of("cases", f"{op} {case.name}", error)
        else:
            yield f"{op} {case.name}", None


def sanitize() -> Iterator[tuple[str, Failure | None]]:
    """The first case of each op under each tool, in a process of its own; nothing where there is no tool."""
    program = shutil.which("compute-sanitizer", path="/usr/local/cuda/bin") or shutil.which(
        "compute-sanitizer"
    )
    if program is None:
        return
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable]
        command += ["-m", "benchmarks.gpu", "--first-cases"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            yield tool, Failure("compute-sanitizer", tool, f"not done after {SECONDS:.0f} s")
            continue
        words = " ".join((done.stdout + done.stderr)[-800:].split())
        yield tool, Failure("compute-sanitizer", tool, words) if done.returncode else None
