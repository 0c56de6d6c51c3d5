"""The cases of tests/cuda on the GPU, and a few of them under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..results import Failure
from . import supervision
from .build import load_module
from .supervision import Job

TOOLS = ("memcheck", "racecheck")
SECONDS = 30.0  # a case may take
SANITIZED_SECONDS = 90.0  # under a tool
OLDER = {"AFNEXT_CUDA_SM": "80"}  # the kernels of GPUs before Hopper
WITH_OLDER = ("attention", "attention_backward")  # ops that have others for Hopper


def checker(settings: Mapping[str, Any]) -> Callable[[str], None]:
    """A child's work: runs the case of a name, ``"op case"``."""
    import torch

    from tests.cuda.harness import Kernels, cases

    torch.set_num_threads(2)  # several children share the cores
    kernels = Kernels(load_module(cuda=True), emulated=False)

    def check(name: str) -> None:
        op, _, case_name = name.partition(" ")
        next(case for case in cases(op) if case.name == case_name).run(kernels)

    return check


def jobs() -> dict[str, Job]:
    """All cases, a job for an op, and the sanitizers', by what they are called."""
    from tests.cuda.harness import OPS, cases

    work = f"{__name__}:checker"
    found = {}
    for op in OPS:
        names = [f"{op} {case.name}" for case in cases(op)]
        found[op] = Job(work, names, SECONDS)
        if op in WITH_OLDER:
            found[f"{op} (sm_80's)"] = Job(work, names, SECONDS, environment=OLDER)
    if program := _sanitizer():
        first = [f"{op} {cases(op)[0].name}" for op in OPS]
        for tool in TOOLS:
            wrapper = (program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5")
            found[tool] = Job(work, first, SANITIZED_SECONDS, wrapper=wrapper)
    return found


def run_all(deadline: float) -> Iterator[tuple[str, int, list[Failure]]]:
    """Of each job its name, how many items were right, and what was wrong with the others.

    As many jobs run at once as two cores each allow.
    """

    def run(name: str, job: Job) -> tuple[str, int, list[Failure]]:
        answers = list(supervision.run(job, deadline))
        failures = [Failure(name, item, a.error) for item, a in answers if a.error]
        return name, len(answers) - len(failures), failures

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        # Tools, which are slow, and the longest lists begin.
        by_length = sorted(
            jobs().items(), key=lambda entry: (not entry[1].wrapper, -len(entry[1].items))
        )
        yield from pool.map(lambda entry: run(*entry), by_length)


def _sanitizer() -> str | None:
    name = "compute-sanitizer"
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
