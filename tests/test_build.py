"""What is built: no torch inside, no code of a high instruction set behind a shared name, a wheel and a
source distribution that install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from afnext.ops import _compiled, runtime
from tests.cuda import nvcc

ROOT = Path(__file__).parent.parent
MODULE = Path(_compiled.compiled.__file__)


def symbols(*arguments: str | Path) -> str:
    return subprocess.run(["nm", *arguments], capture_output=True, text=True, check=True).stdout


def assert_links_no_torch(module: Path) -> None:
    output = subprocess.run(["ldd", module], capture_output=True, text=True, check=True).stdout
    libraries = [
        line.split()[0] for line in output.splitlines()
    ]  # without the addresses: hexadecimal, they spell c10
    assert any("libc.so" in name for name in libraries)
    for unwanted in ("torch", "c10", "cuda"):
        assert not any(unwanted in name for name in libraries)


@pytest.mark.skipif(shutil.which("ldd") is None, reason="needs ldd")
def test_links_no_torch() -> None:
    assert_links_no_torch(MODULE)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_a_profile_can_name_the_kernels() -> None:
    """The module keeps the names of its functions, each level's, for perf; other modules see none."""
    names = symbols("-C", MODULE)
    for op in ("rms_norm", "log_mel"):
        for level in runtime.compiled_cpu_isas(op):
            assert re.search(rf"^[0-9a-f]+ t afnext::cpu::{level}::{op}\(", names, re.MULTILINE)
    assert "afnext" not in symbols("-D", "-C", "--defined-only", MODULE)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_no_kernel_object_shares_code_with_another_level() -> None:
    """A weak symbol outside of its level's namespace could be taken from the AVX-512 object and run on
    a machine without it: the linker keeps any one of equal names."""
    objects = [p for p in ROOT.glob("build/*/CMakeFiles/afnext_*_*.dir/**/*.o") if p.is_file()]
    if not objects:
        pytest.skip("no build folder: the module was installed from a wheel")
    for path in objects:
        level = path.relative_to(ROOT).parts[3].removesuffix(".dir")
        for line in symbols("-C", path).splitlines():
            kind, _, name = line[17:].partition(" ")
            # DW.ref. is the address of the exception handler, and no code.
            if kind in "WVu" and not name.startswith("DW.ref."):
                own = any(
                    level.endswith(f"_{isa}") and f"cpu::{isa}::" in name
                    for isa in ("baseline", "avx2", "avx_vnni", "avx512", "avx512_bf16", "amx")
                )
                assert own, f"{path.name} of {level}: {name}"


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake")
@pytest.mark.parametrize(
    ("version", "archs", "needed"),
    [
        ("12.4.131", "80;90a", "12.5"),
        ("12.5.40", "80;90a", None),
        ("12.6.85", "80;90a;120", "12.8"),
        ("12.8.93", "90a-real;100a;120", None),
        ("13.0.88", "100", None),
    ],
)
def test_an_old_cuda_toolkit_is_refused(
    version: str, archs: str, needed: str | None, tmp_path: Path
) -> None:
    """In one line, before hundreds of lines of nvcc's about functions that it lacks."""
    script = tmp_path / "check.cmake"
    check = f'afnext_check_toolkit({version} "{archs}")'
    script.write_text(f"include({ROOT}/cmake/CudaToolkit.cmake)\n{check}\n")
    done = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == (needed is not None), done.stderr
    if needed is not None:
        words = " ".join(done.stderr.split())
        assert f"need CUDA toolkit {needed} or newer, found {version}" in words


@pytest.mark.sweep
def test_source_distribution_and_wheel_install(tmp_path: Path) -> None:
    """sdist, a wheel built from it, types and assets inside, auditwheel content with its tag.

    Two levels suffice to compile every source once; the module of this checkout has all.
    """
    run = [sys.executable, "-m"]
    env = {**os.environ, "PIP_NO_INDEX": ""}
    levels = "-Ccmake.define.AFNEXT_DISABLED_ISAS=avx2;avx_vnni;avx512;avx512_bf16"
    subprocess.run(
        [*run, "build", "--no-isolation", levels, "--outdir", tmp_path, ROOT], check=True, env=env
    )
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {"CMakeLists.txt", "csrc/include/afnext/attention.h", "LICENSE"} <= names
    assert not any(n.startswith((".venv", "build/")) for n in names)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"afnext/py.typed", "afnext/_C.pyi", "afnext/assets/nano/model.safetensors"} <= names
    assert "afnext/benchmarks/__main__.py" in names
    assert "afnext/recipes/nano/chain.yaml" in names
    audit = subprocess.run(
        [*run, "auditwheel", "show", wheel], capture_output=True, text=True, check=True
    )
    assert "manylinux" in audit.stdout
    site = tmp_path / "site"
    subprocess.run([*run, "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    code = "import afnext, afnext._C; print(afnext.__file__, afnext._C.__file__)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert found.stdout.count(str(site)) == 2


@pytest.mark.sweep
@pytest.mark.long  # test_compile has compiled the same kernels
@pytest.mark.skipif(nvcc.nvcc() is None, reason="needs nvcc")
def test_a_wheel_with_cuda_kernels_is_small_and_needs_no_toolkit(tmp_path: Path) -> None:
    """For two architectures; CUDA's runtime is inside, its driver is found when asked."""
    options = [
        "AFNEXT_CUDA=on",
        "AFNEXT_CUDA_ARCHS=80;90a",
        f"CMAKE_CUDA_COMPILER={nvcc.nvcc()}",
        "AFNEXT_DISABLED_ISAS=avx2;avx_vnni;avx512;avx512_bf16;amx",
    ]
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    defines = [f"-Ccmake.define.{option}" for option in options]
    subprocess.run([*build, *defines, f"-Cbuild-dir={tmp_path}/build", ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 60e6
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith(".so"))
        assert_links_no_torch(Path(content.extract(name, tmp_path)))
