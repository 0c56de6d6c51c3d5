"""``python -m tests.cuda.mutants [OP ...]``: breaks each kernel in one place at a time, tells what notices.

Mutants are a synchronisation left out (a barrier, a wait, a fence, an arrival) or a condition that always
holds. Each is built and run against the core cases of its op, at last under AddressSanitizer; what nothing
notices is harmless there (the list says where to look) or a hole in the tests. Some seconds a mutant.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cuda import address_sanitizer
from tests.cuda.conftest import ROOT, build_emulated
from tests.cuda.harness import OPS

BUILD = ROOT / "build" / "mutants"
TIMEOUT_S = 180

SYNCHRONISATION = re.compile(
    r"^\s*(?:arch::)?("
    r"__syncthreads|__syncwarp|bar_sync|bar_arrive|mbarrier_wait|mbarrier_arrive\w*|fence_proxy_async"
    r"|cp_async_commit_group|cp_async_wait_group|cp_async_bulk_commit_group|cp_async_bulk_wait_group\w*"
    r"|wgmma_fence|wgmma_commit_group|wgmma_wait_group)\b[^;]*;\s*(//.*)?$"
)
CONDITION = re.compile(
    r"^(\s*)(?:\} else )?if \((?!constexpr)(.*)\) (\{|return|continue|break|\w.*;)"
)
KERNEL = re.compile(r"__global__|AFNEXT_DEVICE|__device__")

# What pytest's output says of the kind of the finding, the first that fits.
FINDINGS = [
    ("race", r"\d+ races:|(read|write) (after|under|of a copy)"),
    ("deadlock", r"deadlock"),
    ("misuse", r"arrivals at an mbarrier|wgmma|bulk cop|asynchronous|mbarrier|fence"),
    ("out of bounds", r"beyond (the )?shared|a (load|store) at shared"),
    ("wrong value", r"AssertionError|of \d+ off"),
]


@dataclass(frozen=True)
class Mutant:
    file: Path  # in the tree
    line: int
    before: str
    after: str


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Those of one source, from its first device function on."""
    in_kernel = False
    for number, text in enumerate(file.read_text().splitlines(), start=1):
        in_kernel = in_kernel or bool(KERNEL.search(text))
        if not in_kernel:
            continue
        if SYNCHRONISATION.match(text):
            yield Mutant(file, number, text, re.match(r"\s*", text)[0] + ";")  # type: ignore[index]
        elif (found := CONDITION.match(text)) is not None:
            condition = found.group(2)
            if condition.count("(") == condition.count(")"):
                yield Mutant(file, number, text, text.replace(f"({condition})", "(true)", 1))


def sources(op: str) -> list[Path]:
    """The files of an op: those whose name begins with its name, and with no longer one of another op."""
    folder = ROOT / "csrc" / "cuda"

    def owner(path: Path) -> str:
        return max((name for name in OPS if path.stem.startswith(name)), key=len, default="")

    files = sorted([*folder.glob("*.cu"), *folder.glob("*.h")])
    return [path for path in files if owner(path) == op]


def ran(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str] | None:
    """None where it came to no end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    return None


def finding(op: str, module: Path) -> str:
    """What the core cases of ``op`` say of the module, or an empty string."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "tests/cuda/test_emulated.py"]
    command += ["-k", f"{op}-", "-p", "no:cacheprovider"]
    done = ran(command, {**os.environ, "AFNEXT_EMULATED_MODULE": str(module)})
    if done is None:
        return "no end"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return "crash"
    text = "\n".join(line for line in done.stdout.splitlines() if line.startswith("E "))
    return next((kind for kind, pattern in FINDINGS if re.search(pattern, text)), "error")


def beyond_a_tensor(op: str, tree: Path) -> str:
    """What AddressSanitizer says of the core cases of ``op``.

    Many conditions guard a read of global memory, and what is read beyond a tensor is seldom used.
    """
    module = address_sanitizer.build(BUILD / "build-asan", source=tree)
    done = ran(address_sanitizer.command(module, op), address_sanitizer.environment())
    if done is None:
        return "no end"
    if done.returncode == 0:
        return ""
    return "beyond a tensor" if "AddressSanitizer" in done.stderr else "error"


def copy_tree(tree: Path) -> None:
    """What a build needs, so that mutants never touch the sources themselves."""
    for name in ("csrc", "cmake", "tests/emulation", "CMakeLists.txt", "LICENSE"):
        source, target = ROOT / name, tree / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.cuda.mutants")
    parser.add_argument("ops", nargs="*", metavar="OP", default=[], help="all by default")
    parser.add_argument("--synchronisation", action="store_true", help="no conditions")
    args = parser.parse_args()
    tree = BUILD / "source"
    copy_tree(tree)
    module = build_emulated(BUILD / "build", source=tree)
    tally: Counter[str] = Counter()
    for op in args.ops or OPS:
        for mutant in (m for file in sources(op) for m in mutants_of(file)):
            if args.synchronisation and not SYNCHRONISATION.match(mutant.before):
                continue
            copy = tree / mutant.file.relative_to(ROOT)
            lines = mutant.file.read_text().splitlines()
            lines[mutant.line - 1] = mutant.after
            copy.write_text("\n".join(lines) + "\n")
            try:
                build_emulated(BUILD / "build", source=tree)
                kind = finding(op, module) or beyond_a_tensor(op, tree)
            except AssertionError:
                kind = "does not compile"
            finally:
                shutil.copy(mutant.file, copy)
            tally[kind or "NOT NOTICED"] += 1
            place = f"{mutant.file.name}:{mutant.line}"
            print(f"{kind or 'NOT NOTICED':16} {place:36} {mutant.before.strip()}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in tally.most_common()))
    return 1 if tally["NOT NOTICED"] else 0


if __name__ == "__main__":
    sys.exit(main())
