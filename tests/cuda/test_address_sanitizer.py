"""Global memory: the core cases, kernels under AddressSanitizer, which sees accesses beyond a tensor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.build import load_file
from tests.cuda.conftest import ROOT, build_emulated
from tests.cuda.harness import Kernels, all_cases

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("ninja") is None,
        reason="needs CMake and Ninja",
    ),
]
BUILD = ROOT / "build" / "emulated-asan"
FAULT = "short"  # as an argument: a tensor that is shorter than the kernel was told


def checked(*arguments: str) -> subprocess.CompletedProcess[str]:
    module = build_emulated(BUILD, "-DEMULATION_ADDRESS_SANITIZER=ON")
    # Python was built without the sanitizer, which has to come first, and beside it what throws.
    libraries = " ".join(map(_library, ("libasan.so", "libstdc++.so.6")))
    environment = {
        **os.environ,
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, __file__, str(module), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _library(name: str) -> str:
    where = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()


def test_kernels_stay_within_their_tensors() -> None:
    done = checked()
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "cases within bounds" in done.stdout


def test_an_access_beyond_a_tensor_is_found() -> None:
    done = checked(FAULT)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "rms_norm" in done.stderr


def _run(module: Path, fault: bool) -> None:
    import torch

    kernels = Kernels(load_file(module), emulated=True)
    if fault:
        x, out = (kernels.put(torch.ones(2, 64)) for _ in range(2))
        weight = kernels.put(torch.ones(60))
        weight.shape = (64,)
        kernels.compiled.rms_norm(x, None, weight, 1e-6, out, None)
        return
    count = 0
    for _, case in all_cases():
        if case.core:
            case.run(kernels)
            count += 1
    print(count, "cases within bounds")


if __name__ == "__main__":
    _run(Path(sys.argv[1]), FAULT in sys.argv[2:])
