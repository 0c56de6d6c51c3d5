"""Builds the compiled module with emulated CUDA kernels: the kernels' own source, run on the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.build import load_file
from tests.cuda.harness import Kernels

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "emulated"


def build_emulated(folder: Path, *options: str, source: Path = ROOT) -> Path:
    """Configures and builds ``source`` into ``folder``; gives the module's path."""
    import pybind11

    configure = [
        *("cmake", "-S", source, "-B", folder, "-G", "Ninja", "-DAFNEXT_CUDA=emulated"),
        # The CPU's kernels are not what is tested: one level is enough to link.
        "-DAFNEXT_DISABLED_ISAS=avx2;avx_vnni;avx512;avx512_bf16;amx",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *options,
    ]
    if shutil.which("ccache"):
        configure.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    for command in (configure, ["cmake", "--build", folder, "--target", "_C"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return next(folder.glob("_C.*.so"))


@pytest.fixture(scope="session")
def emulated() -> Any:
    """The module with emulated kernels. A build that fails is an error, a missing tool a skip."""
    if shutil.which("cmake") is None or shutil.which("ninja") is None:
        pytest.skip("needs CMake and Ninja")
    given = os.environ.get("AFNEXT_EMULATED_MODULE")
    return load_file(Path(given) if given else build_emulated(BUILD))


@pytest.fixture
def kernels(emulated: Any) -> Kernels:
    return Kernels(emulated, emulated=True)
