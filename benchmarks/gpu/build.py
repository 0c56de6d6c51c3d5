"""The compiled module with CUDA kernels: the installed one, or one built from this checkout."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "gpu"
GIVEN = "AFNEXT_GPU_MODULE"  # a module's path, for processes of this benchmark's own


class BuildError(RuntimeError):
    """The tools' own words, the end of them."""


def load_module(cuda: bool, rebuild: bool = False) -> Any:
    """Make ``afnext._C`` a module with CUDA kernels (with ``cuda``), and give it.

    Raises:
        BuildError: nothing installed has them, and building failed.
    """
    if given := os.environ.get(GIVEN):
        loaded = sys.modules.get("afnext._C")
        return loaded if loaded is not None and loaded.__file__ == given else _adopt(Path(given))
    if not rebuild:
        try:
            installed = importlib.import_module("afnext._C")
        except ImportError:
            installed = None
        if installed is not None and (installed.has_cuda or not cuda):
            os.environ[GIVEN] = str(installed.__file__)
            return installed
    sys.modules.pop("afnext._C", None)
    path = build()
    os.environ[GIVEN] = str(path)
    return _adopt(path)


def build(folder: Path = FOLDER, *options: str) -> Path:
    """Compile for the GPU present; gives the module's path. Needs CMake, Ninja and nvcc, no network."""
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        *("-DAFNEXT_CUDA=on", f"-DPython_EXECUTABLE={sys.executable}", *_pybind11(), *options),
    ]
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            raise BuildError(f"needs {tool} to build the module with CUDA kernels")
    for command in (configure, ["cmake", "--build", str(folder), "--target", "_C"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError((done.stdout + done.stderr)[-4000:])
    return next(folder.glob("_C.*.so"))


def _pybind11() -> list[str]:
    """Where pybind11 is: a package of it, else the headers that torch ships."""
    if importlib.util.find_spec("pybind11") is not None:
        return [f"-Dpybind11_DIR={importlib.import_module('pybind11').get_cmake_dir()}"]
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    return [f"-DAFNEXT_PYBIND11_INCLUDE={Path(torch.origin).parent / 'include'}"]


def load_file(path: Path) -> Any:
    """The compiled module at ``path``, beside any other of its name."""
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _adopt(path: Path) -> Any:
    module = sys.modules["afnext._C"] = load_file(path)
    return module
