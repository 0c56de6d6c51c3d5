"""Compiles the CUDA kernels for real GPUs, with no GPU, and reads what the assembler says of them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "nvcc"
ARCHS = ("80", "90a")
ALL_ARCHS = (*ARCHS, "100", "120")
JOBS = 2
REGISTERS = 65536  # of a multiprocessor

FLAGS = ["-std=c++20", "-O3", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
# Notes that are no complaint: nvcc's and the assembler's own progress.
PROGRESS = re.compile(r"^(ptxas info\s+: |\s+\d+ bytes stack frame|\s*$|\S+\.cu$|\S+\.ptx$)")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
THREADS = re.compile(r"\.entry (\w+)\(.*?\)\s*((?:\.\w+[^\n]*\n)*)", re.DOTALL)
# Said as information, meant as a warning: C7508 (setmaxnreg ignored), C7510 (wgmma serialised), ...
ADVICE = re.compile(r"\(C\d{4}\)|serialized|ignored to maintain|setmaxnreg")


@dataclass(frozen=True)
class Kernel:
    """One instance of a kernel, as the assembler reports it.

    Attributes:
        name: demangled where ``c++filt`` is there.
        threads: the most of a block; 0 where the kernel does not bound them.
        stack, spills: bytes of local memory.
        shared: bytes of static shared memory; what a launch asks for is not known here.
    """

    name: str
    threads: int
    registers: int
    stack: int
    spills: int
    shared: int

    @property
    def blocks(self) -> int:
        """Blocks whose registers fit into a multiprocessor (warps take them by 256)."""
        warps = -(-self.threads // 32)
        return REGISTERS // (warps * 32 * -(-self.registers // 8) * 8) if warps else 0


@dataclass(frozen=True)
class Compiled:
    """One source, compiled for one architecture."""

    source: Path
    arch: str
    failed: bool
    log: str
    ptx: str
    cubin: Path

    @property
    def name(self) -> str:
        """The source's place in csrc/cuda, without suffix."""
        return self.source.relative_to(CUDA).with_suffix("").as_posix()

    @property
    def complaints(self) -> list[str]:
        """Lines of nvcc and ptxas that are no progress notes, or that tell of slower code."""
        return [
            line
            for line in self.log.splitlines()
            if not PROGRESS.match(line) or ADVICE.search(line)
        ]

    @property
    def kernels(self) -> list[Kernel]:
        threads = dict(_threads(self.ptx))
        found = list(ENTRY.finditer(self.log))
        names = demangled([entry["name"] for entry in found])
        return [
            Kernel(
                name,
                threads.get(entry["name"], 0),
                int(entry["registers"]),
                int(entry["stack"]),
                int(entry["stores"]) + int(entry["loads"]),
                int(smem[1]) if (smem := re.search(r"(\d+) bytes smem", entry["rest"])) else 0,
            )
            for name, entry in zip(names, found, strict=True)
        ]

    def sass(self) -> str | None:
        """The machine code's text; None without a disassembler."""
        tool = disassembler()
        return None if tool is None else _disassembled(tool, self.cubin)


def nvcc() -> str | None:
    """The compiler, where there is one."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@cache
def disassembler() -> str | None:
    """nvdisasm, of a CUDA toolkit or of the wheel ``nvidia-cuda-nvdisasm``; None where there is none."""
    packages = Path(sysconfig.get_path("purelib"))
    folders = ["/usr/local/cuda/bin", *map(str, packages.glob("nvidia/*/bin"))]
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path=":".join(folders))


@cache
def _disassembled(tool: str, cubin: Path) -> str:
    return subprocess.run([tool, cubin], capture_output=True, text=True, check=True).stdout


def sources() -> list[Path]:
    return sorted(CUDA.rglob("*.cu"))


def compile_all(
    archs: Iterable[str] = ARCHS, files: Iterable[Path] | None = None
) -> list[Compiled]:
    """Every source for every architecture, once: what has not changed is not compiled again."""
    files = sources() if files is None else list(files)
    jobs = [(source, arch) for source in files for arch in archs]
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda job: compile_one(*job), jobs))


def compile_one(source: Path, arch: str) -> Compiled:
    folder = BUILD / arch / source.relative_to(CUDA).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    cubin, ptx, log, stamp = (
        folder / name for name in ("out.cubin", f"{source.stem}.ptx", "log.txt", "stamp")
    )
    digest = _digest(source, arch)
    if not (stamp.exists() and stamp.read_text() == digest):
        stamp.unlink(missing_ok=True)
        ptx.unlink(missing_ok=True)
        target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        keep = ["--keep", "--keep-dir", folder]
        command = [nvcc(), *FLAGS, target, *keep, "-cubin", source, "-o", cubin]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, cwd=folder
        )
        log.write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            return Compiled(source, arch, True, log.read_text(), "", cubin)
        for left in (*folder.glob("*.ii"), *folder.glob("*.gpu"), *folder.glob("*.c")):
            left.unlink()
        stamp.write_text(digest)
    text = ptx.read_text() if ptx.exists() else ""
    return Compiled(source, arch, False, log.read_text(), text, cubin)


def demangled(names: list[str]) -> list[str]:
    """Without the namespaces that are the same in all."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    text = "\n".join(names)
    out = subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout
    return [_short(line) for line in out.splitlines()]


def _short(name: str) -> str:
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"\(anonymous namespace\)::|afnext::cuda::|\b_GLOBAL__N\w+::", "", name)
    return re.sub(r"\([^()]*\)$", "", name)


def _threads(ptx: str) -> Iterator[tuple[str, int]]:
    for entry in THREADS.finditer(ptx):
        bound = re.search(r"\.(?:max|req)ntid (\d+)(?:, (\d+))?(?:, (\d+))?", entry[2])
        if bound:
            x, y, z = (int(size or 1) for size in bound.groups())
            yield entry[1], x * y * z


@cache
def _headers() -> bytes:
    state = hashlib.sha256()
    for header in sorted((ROOT / "csrc").rglob("*.h")):
        state.update(header.read_bytes())
    return state.digest()


def _digest(source: Path, arch: str) -> str:
    command = " ".join([nvcc() or "", arch, *FLAGS])
    return hashlib.sha256(_headers() + source.read_bytes() + command.encode()).hexdigest()
