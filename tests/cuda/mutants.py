"""``python -m tests.cuda.mutants [OP ...]``: breaks each kernel in one place at a time, tells what notices.

Mutants are a synchronisation left out (a barrier, a wait, a fence, an arrival) or a condition that always
holds. One build has all of them, each asleep until it is chosen as the module is loaded, and runs the core
cases of its op, conditions at last under AddressSanitizer. What nothing notices is in the list of the
harmless (harmless_mutants.toml) or a hole in the tests, for which the exit code is 1. Some minutes a build,
some seconds a mutant.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.gpu.build import load_file
from tests.cuda import address_sanitizer
from tests.cuda.conftest import ROOT, build_emulated
from tests.cuda.harness import OPS, Kernels, cases
from tests.cuda.test_emulated import SCHEDULES

BUILD = ROOT / "build" / "mutants"
HARMLESS = Path(__file__).with_name("harmless_mutants.toml")
UNNOTICED = "NOT NOTICED"
CHOSEN = "AFNEXT_MUTANT"  # the number of the one that is awake
NOBODY = 0

# Calls, wherever in a line: the instructions, and what kernels call that does no more than wait or tell.
SYNCHRONISATION = re.compile(
    r"(?:(?:arch::|turns_\.)?\b)("
    r"__syncthreads|__syncwarp|griddepcontrol_wait|bar_sync|bar_arrive|mbarrier_wait|mbarrier_arrive\w*|fence_proxy_async"
    r"|cp_async_commit_group|cp_async_wait_group|cp_async_bulk_commit_group|cp_async_bulk_wait_group\w*"
    r"|wgmma_fence|wgmma_commit_group|wgmma_wait_group|add_release|sync|wait_for_\w+|(?<=turns_\.)\w+)"
    r"(<[^;]*>)?\([^;{]*\);"
)
WAIT = re.compile(r"\bwhile \((.*\bload_acquire\b.*)\) (\{|\w.*;)$")  # for another block
CONDITION = re.compile(
    r"^(\s*)(?:\} else )?if \((?!constexpr)(.*)\) (\{|return|continue|break|\w.*;)"
)
KERNEL = re.compile(r"__global__|AFNEXT_DEVICE|__device__")
AWAKE = f"""#ifndef MUTANTS
#define MUTANTS
#include <cstdlib>
inline const int mutant_awake = [] {{
  const char* chosen = std::getenv("{CHOSEN}");
  return chosen != nullptr ? std::atoi(chosen) : {NOBODY};
}}();
#endif
#line 1
"""

# Whose cases say most of a file: by how its name begins, the longest that fits.
OWNERS = {
    **{op: op for op in OPS},
    "fft": "log_mel",
    "pack": "packed_linear",
    "paged": "paged_attention",
    "paged_batch": "paged_append",
    "rotation": "rotate",
    "turn_heads": "attention_backward",
    "vector": "rms_norm",
}

# What an exception's text says of the kind of the finding, the first that fits.
FINDINGS = [
    ("race", r"\d+ races:|(read|write) (after|under|of a copy)"),
    ("deadlock", r"deadlock"),
    (
        "misuse",
        r"arrivals at an mbarrier|half arrived|wgmma|cp\.async|bulk cop|asynchronous|mbarrier|fence|griddep",
    ),
    ("out of bounds", r"beyond (the )?shared|a (load|store) at shared"),
    ("wrong value", r"AssertionError|of \d+ off"),
]


@dataclass(frozen=True)
class Mutant:
    file: Path  # in the tree
    line: int
    text: str  # what is left out, or always holds
    synchronises: bool
    nth: int = 1  # of those of this text in the file

    @property
    def name(self) -> tuple[str, str, int]:
        """What it is called in the list of the harmless: lines move."""
        return self.file.name, self.text, self.nth

    def insert(self, line: str, number: int) -> str:
        """``line`` of the source with this mutant in it, asleep."""
        if SYNCHRONISATION.fullmatch(self.text):
            return line.replace(self.text, f"{{ if (mutant_awake != {number}) {self.text} }}", 1)
        never = (
            f"mutant_awake != {number} &&" if self.synchronises else f"mutant_awake == {number} ||"
        )
        return line.replace(f"({self.text})", f"({never} ({self.text}))", 1)


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Those of one source, from its first device function on."""
    met: Counter[str] = Counter()
    for mutant in _mutants_of(file):
        met[mutant.text] += 1
        yield replace(mutant, nth=met[mutant.text])


def harmless(file: Path = HARMLESS) -> dict[tuple[str, str, int], str]:
    """The reasons of those that nothing can notice, by their names."""
    entries = tomllib.loads(file.read_text())["harmless"]
    return {(e["file"], e["text"], e.get("nth", 1)): e["reason"] for e in entries}


def _mutants_of(file: Path) -> Iterator[Mutant]:
    in_kernel = False
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        in_kernel = in_kernel or bool(KERNEL.search(line))
        if not in_kernel:
            continue
        if (call := SYNCHRONISATION.search(line)) is not None:
            yield Mutant(file, number, call[0], synchronises=True)
        elif (wait := WAIT.search(line)) is not None:
            yield Mutant(file, number, wait[1], synchronises=True)
        condition = found[2] if (found := CONDITION.match(line)) is not None else "("
        if condition.count("(") == condition.count(")"):
            yield Mutant(file, number, condition, synchronises=False)


def sources(op: str) -> list[Path]:
    """The files that the cases of ``op`` say most of."""
    folder = ROOT / "csrc" / "cuda"

    def owner(path: Path) -> str | None:
        names = [name for name in OWNERS if path.stem.startswith(name)]
        return OWNERS[max(names, key=len)] if names else None

    files = sorted([*folder.glob("*.cu"), *folder.glob("*.h")])
    return [path for path in files if owner(path) == op]


def copy_tree(tree: Path) -> None:
    """What a build needs, so that mutants never touch the sources themselves."""
    for name in ("csrc", "cmake", "tests/emulation", "CMakeLists.txt", "LICENSE"):
        source, target = ROOT / name, tree / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def insert(tree: Path, mutants: list[Mutant]) -> None:
    """All of them into the copy, numbered from 1 on."""
    texts: dict[Path, list[str]] = {}
    for number, mutant in enumerate(mutants, start=NOBODY + 1):
        lines = texts.setdefault(mutant.file, mutant.file.read_text().splitlines())
        lines[mutant.line - 1] = mutant.insert(lines[mutant.line - 1], number)
    for file, lines in texts.items():
        (tree / file.relative_to(ROOT)).write_text(AWAKE + "\n".join(lines) + "\n")


def run_cases(
    op: str, module: Path, number: int, say: multiprocessing.connection.Connection
) -> None:
    """In a process of its own: says what the core cases of ``op`` find in mutant ``number``."""
    os.environ[CHOSEN] = str(number)
    torch.set_num_threads(1)
    kernels = Kernels(load_file(module), emulated=True)
    for case in cases(op):
        for order, seed, os_threads in SCHEDULES if case.core else []:
            kernels.begin(order, seed, os_threads)
            try:
                case.run(kernels)
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                fits = (kind for kind, pattern in FINDINGS if re.search(pattern, text))
                say.send((next(fits, "error"), case.name, text))
                return
    say.send(("", "", ""))


def finding(op: str, module: Path, number: int, limit_s: float) -> tuple[str, str, str]:
    """The kind of what is found, the case and its words; nothing if all went well."""
    hear, say = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=run_cases, args=(op, module, number, say)
    )
    process.start()
    say.close()
    try:
        return hear.recv() if hear.poll(limit_s) else ("no end", "", "")
    except EOFError:
        return ("crash", "", "")
    finally:
        process.kill()
        process.join()


def beyond_a_tensor(op: str, module: Path, number: int, limit_s: float) -> str:
    """What AddressSanitizer says of the core cases of ``op``.

    Many conditions guard a read of global memory, and what is read beyond a tensor is seldom used.
    """
    environment = {**address_sanitizer.environment(), CHOSEN: str(number)}
    command = address_sanitizer.command(module, op)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no end"
    if done.returncode == 0:
        return ""
    return "beyond a tensor" if "AddressSanitizer" in done.stderr else "error"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.cuda.mutants")
    parser.add_argument("ops", nargs="*", metavar="OP", default=[], help="all by default")
    parser.add_argument("--synchronisation", action="store_true", help="no conditions")
    parser.add_argument("--words", action="store_true", help="what was said of each")
    args = parser.parse_args()
    ops = args.ops or list(OPS)
    mutants = [
        (op, mutant)
        for op in ops
        for file in sources(op)
        for mutant in mutants_of(file)
        if mutant.synchronises or not args.synchronisation
    ]
    tree = BUILD / "source"
    copy_tree(tree)
    insert(tree, [mutant for _, mutant in mutants])
    module = build_emulated(BUILD / "build", source=tree)
    sanitized = Path()
    if not args.synchronisation:
        sanitized = address_sanitizer.build(BUILD / "build-asan", source=tree)

    reasons = harmless()
    limit_s: dict[str, float] = {}
    tally: Counter[str] = Counter()
    for number, (op, mutant) in enumerate(mutants, start=NOBODY + 1):
        if op not in limit_s:
            start = time.monotonic()
            kind, case, words = finding(op, module, NOBODY, 600)
            assert not kind, f"{op} fails without a mutant: {case}: {words}"
            limit_s[op] = 30 + 5 * (time.monotonic() - start)
        kind, case, words = finding(op, module, number, limit_s[op])
        if not kind and not mutant.synchronises:
            kind = beyond_a_tensor(op, sanitized, number, limit_s[op])
        kind = kind or ("harmless" if mutant.name in reasons else UNNOTICED)
        tally[kind] += 1
        place = f"{mutant.file.name}:{mutant.line}" + (
            f" ({mutant.nth}.)" if mutant.nth > 1 else ""
        )
        print(f"{kind:16} {place:36} {mutant.text:64} {case}", flush=True)
        if args.words and words:
            print(" " * 16, words.replace("\n", "\n" + " " * 17)[:500], flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in tally.most_common()))
    return 1 if tally[UNNOTICED] else 0


if __name__ == "__main__":
    sys.exit(main())
