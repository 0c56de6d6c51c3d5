"""``python -m tests.cuda.address_sanitizer MODULE [OP ...]``: core cases, emulated, under AddressSanitizer.

It sees what a kernel reads or writes beyond a tensor. ``MODULE`` is built by :func:`build`; the interpreter
has to run in :func:`environment`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.build import load_file
from tests.cuda.conftest import ROOT, build_emulated
from tests.cuda.harness import OPS, Kernels, cases

BUILD = ROOT / "build" / "emulated-asan"
FAULT = "fault"  # instead of an op: a tensor that is shorter than the kernel is told


def build(folder: Path = BUILD, source: Path = ROOT) -> Path:
    """The module with instrumented kernels."""
    return build_emulated(folder, "-DEMULATION_ADDRESS_SANITIZER=ON", source=source)


def environment() -> dict[str, str]:
    """Python was built without the sanitizer, which has to come first, and beside it what throws."""
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(map(_library, ("libasan.so", "libstdc++.so.6"))),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }


def _library(name: str) -> str:
    where = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()


def command(module: Path, *ops: str) -> list[str]:
    """Runs the core cases of some ops, by default of all."""
    return [sys.executable, "-m", __name__, str(module), *ops]


def main(module: str, *ops: str) -> None:
    kernels = Kernels(load_file(Path(module)), emulated=True)
    if ops == (FAULT,):
        _read_beyond(kernels)
        return
    count = 0
    for op in ops or OPS:
        for case in cases(op):
            if case.core:
                kernels.begin()
                case.run(kernels)
                count += 1
    print(count, "cases within bounds")


def _read_beyond(kernels: Kernels) -> None:
    import torch

    x, out = (kernels.put(torch.ones(2, 64)) for _ in range(2))
    weight = kernels.put(torch.ones(60))
    weight.shape = (64,)
    kernels.compiled.rms_norm(x, None, weight, 1e-6, out, None)


if __name__ == "__main__":
    main(*sys.argv[1:])
