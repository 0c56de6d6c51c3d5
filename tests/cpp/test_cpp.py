"""The kernels without Python: a CMake package for other projects, reference cases through the C++
interface, the same on 64-bit Arm and under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from afnext import ops
from afnext.ops import runtime
from tests.cpp import make_cases

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs CMake, Ninja"
    ),
]


def run(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def without_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder where CMake may not look for Python."""
    folder = tmp_path_factory.mktemp("configured")
    packages = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in ("Python", "pybind11")]
    run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DAFNEXT_PYTHON=OFF", *packages)
    return folder


@pytest.fixture(scope="module")
def package(without_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the C++ library is installed: of this checkout's own build, if there is one."""
    prefix = tmp_path_factory.mktemp("installed")
    built = sorted(ROOT.glob("build/cp*/libafnext.a"), key=lambda path: path.stat().st_mtime)
    if not built:
        run("cmake", "--build", without_python)
    folder = built[-1].parent if built else without_python
    run("cmake", "--install", folder, "--component", "cpp", "--prefix", prefix)
    return prefix


def build(project: Path, package: Path, folder: Path) -> None:
    run("cmake", "-S", project, "-B", folder, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={package}",
        "-DCMAKE_BUILD_TYPE=Debug")  # fmt: skip
    run("cmake", "--build", folder)


def test_configures_without_python(without_python: Path) -> None:
    assert "pybind11_DIR" not in (without_python / "CMakeCache.txt").read_text()


def test_only_the_library_and_its_headers_are_installed(package: Path) -> None:
    names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    headers = {f"include/afnext/{path.name}" for path in (ROOT / "csrc/include/afnext").iterdir()}
    assert headers <= names
    assert {Path(name).suffix for name in names - headers} == {".a", ".cmake"}


def test_another_project_gets_every_level(package: Path, tmp_path: Path) -> None:
    """A sum's order depends on the width of vectors, so its bits tell which kernel ran: each level's are
    those that Python gets. A static library whose kernels were dropped would give one or none."""
    build(ROOT / "tests/cpp/consumer", package, tmp_path)
    levels = runtime.available_cpu_isas("rms_norm")
    done = subprocess.run([tmp_path / "consumer", *levels], capture_output=True, check=True)
    results = np.frombuffer(done.stdout, np.float32).reshape(len(levels), 300, 1001)
    x = (np.arange(300 * 1001) % 97).astype(np.float32).reshape(300, 1001) / np.float32(97)
    before = runtime.cpu_isa()
    for level, result in zip(levels, results, strict=True):
        runtime.set_cpu_isa(level)
        assert np.array_equal(result, ops.rms_norm(x, np.ones(1001, np.float32), 1e-6))
    runtime.set_cpu_isa(before)
    assert len({result.tobytes() for result in results}) == len(levels)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    make_cases.main(folder)
    return folder


@pytest.fixture(scope="module")
def driver(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    build(ROOT / "tests/cpp", package, folder)
    return folder / "driver"


def test_reference_cases(driver: Path, cases: Path) -> None:
    """Float64 results and misuse of every op, on every level, with one thread and with three."""
    summary = run(driver, cases).splitlines()[-1]
    assert summary.startswith(f"{len(make_cases.OPS)} ops")
    assert summary.endswith("0 failures; " + " ".join(runtime.available_cpu_isas()))


@pytest.mark.parametrize("cap", runtime.LEVELS)
def test_the_environment_caps_the_level(driver: Path, cases: Path, cap: str) -> None:
    """Every name is understood, also that of a level which this machine lacks."""
    done = subprocess.run([driver, cases, "rotate"], capture_output=True, text=True,
                          env={**os.environ, "AFNEXT_CPU_ISA": cap})  # fmt: skip
    allowed = runtime.LEVELS[: runtime.LEVELS.index(cap) + 1]
    levels = [name for name in runtime.available_cpu_isas() if name in allowed]
    assert done.stdout.splitlines()[-1].endswith("0 failures; " + " ".join(levels))


def test_the_driver_can_fail(driver: Path, cases: Path, tmp_path: Path) -> None:
    """A result that is off by more than its tolerance is found, and an error that does not come."""
    text = (cases / "cases.txt").read_text().splitlines()
    first = text.index(next(line for line in text if line.startswith("case silu_mul")))
    end = next(i for i in range(first + 1, len(text)) if text[i].startswith("case"))
    shutil.copy(cases / "cases.bin", tmp_path)
    for extra, complaint in (
        ("throws gate", "should throw"),
        ("tensor more float32 1 1 - 0 0 0", "more: 1 of 1 elements are wrong"),
    ):
        (tmp_path / "cases.txt").write_text("\n".join([*text[first:end], extra]))
        done = subprocess.run([driver, tmp_path], capture_output=True, text=True)
        assert done.returncode == 1
        assert complaint in done.stdout


def run_preset(name: str, cases: Path) -> str:
    """Configure, build and test a preset of CMakePresets.json in its own, kept, build folder."""
    run("cmake", "--preset", name, f"-DAFNEXT_CASES={cases}")
    run("cmake", "--build", "--preset", name)
    return run("ctest", "--preset", name, "--verbose")


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="needs a cross compiler and QEMU: g++-aarch64-linux-gnu, qemu-user",
)
def test_reference_cases_on_aarch64(cases: Path) -> None:
    assert f"{len(make_cases.OPS)} ops" in run_preset("aarch64", cases)


@pytest.mark.sweep
@pytest.mark.parametrize("preset", ["sanitize", "sanitize-threads"])
def test_reference_cases_under_sanitizers(preset: str, cases: Path) -> None:
    """No access out of bounds, no undefined behaviour on any level; no race on those of the preset."""
    assert " 0 failures" in run_preset(preset, cases)
