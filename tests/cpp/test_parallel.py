"""The thread pool alone, compiled with and without the thread sanitizer: no work lost, done twice or seen
too early, whoever calls, sleeps, throws, forks or changes the number of threads meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = [
    ROOT / "tests/cpp/parallel_stress.cpp",
    *(ROOT / "csrc/cpu" / f"{name}.cpp" for name in ("parallel", "pool", "cores", "isa")),
]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or "c++"
SANITIZERS = {"plain": [], "tsan": ["-fsanitize=thread"]}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler"),
]


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stress program; skips where the compiler has no thread sanitizer or it does not start here."""
    flags = ["-std=c++20", "-O1", "-g", "-pthread", *SANITIZERS[request.param]]
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tsan":
        (folder / "empty.cpp").write_text("int main() {}\n")
        trial = [COMPILER, *flags, folder / "empty.cpp", "-o", folder / "empty"]
        if subprocess.run(trial, capture_output=True).returncode != 0:
            pytest.skip("the compiler has no thread sanitizer")
        if subprocess.run([folder / "empty"], capture_output=True).returncode != 0:
            pytest.skip("the thread sanitizer does not run on this kernel")
    path = folder / "stress"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    subprocess.run([COMPILER, *flags, *includes, *SOURCES, "-o", path], check=True)
    return path


def output(program: Path, *args: object) -> str:
    run = subprocess.run([program, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize("mode", ["callers", "sleepers", "nested", "exceptions"])
def test_stress(program: Path, mode: str) -> None:
    assert output(program, mode) == ""


def test_workers_keep_off_their_callers_core(program: Path) -> None:
    """Wherever the caller is moved to; and a worker whose cores somebody else has chosen stays there."""
    assert output(program, "cores") == ""


def test_two_callers_share_the_pool(program: Path) -> None:
    """Both get help, and together they run no more threads than were set."""
    assert output(program, "fairness") == ""


def test_works_after_a_fork(program: Path) -> None:
    if "tsan" in str(program.parent):
        pytest.skip("the thread sanitizer does not support threads after a fork")
    assert output(program, "fork") == ""


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "800000 100000", "a/b/cpu.max": "300000 100000"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {}, 0),
        (
            "3:cpuset:/x\n2:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("2:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 0),
        ("nonsense\n", {"cpu.max": "garbage"}, 0),
    ],
)
def test_cgroup_quota(
    program: Path, tmp_path: Path, membership: str, files: dict[str, str], cores: int
) -> None:
    """A container's quota bounds the threads, whichever group above the process's own holds it."""
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "membership").write_text(membership)
    assert int(output(program, "cgroup", tmp_path / "root", tmp_path / "membership")) == cores
