"""The emulator of CUDA blocks: instructions beside their definitions, kernels beside float64 under five
orders of threads, and the same kernels with one fault each, which must be found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs CMake, Ninja"
    ),
]

ORDERS = ["first in", "last in", "random 1", "random 2", "two OS threads"]
# What finds a fault, in every order: an error that ends the launch, or races.
FAULTS = {
    ("named_barriers", "beyond_the_last"): "barriers 0 to 15, not 16",
    ("dependent", "no_wait"): r"dependent.h:\d+: a (read|write).* before griddepcontrol.wait",
    ("dependent", "no_wait_in_a_block"): "a block ended without griddepcontrol.wait",
    (
        "dependent",
        "no_barrier",
    ): r"dependent.h:\d+: a read, before griddepcontrol.wait, of what a kernel",
    (
        "dependent",
        "reads_too_soon",
    ): r"dependent.h:\d+: a read, before griddepcontrol.wait, of what",
    (
        "dependent",
        "copies_too_soon",
    ): r"dependent.h:\d+: a read, before griddepcontrol.wait, of what",
    (
        "dependent",
        "writes_too_soon",
    ): r"dependent.h:\d+: a write to global memory before griddepcont",
    ("reduction", "no_first_barrier"): "read after write|what nobody wrote",
    ("reduction", "no_second_barrier"): "read after write|what nobody wrote",
    ("reduction", "barrier_in_a_branch"): "deadlock: 40 threads.*a barrier at reduction.h",
    ("reduction", "shuffle_in_a_branch"): "deadlock.*the other lanes at reduction.h",
    ("reduction", "reads_unwritten"): r"reduction.h:\d+: a load at shared byte 528, beyond",
    ("reduction", "past_the_end"): r"reduction.h:\d+: a store at shared byte 528, beyond",
    ("reduction", "early_exit"): "deadlock: 127 threads.*the others have ended",
    ("reduction", "no_warp_sync"): "read after write|what nobody wrote",
    ("mma_product", "no_wait"): "read of a copy in flight.*mma_product.h",
    ("mma_product", "no_barrier_after_wait"): "read after write|what nobody wrote|in flight",
    ("mma_product", "no_barrier_at_end"): "write after read",
    ("mma_product", "unaligned"): "cp.async at shared byte .* wants a multiple of 16",
    ("wgmma_product", "no_wait_for_empty"): "more arrivals at an mbarrier than the 1",
    ("wgmma_product", "no_wait_for_full"): "more arrivals|asynchronous read|in flight",
    ("wgmma_product", "released_too_soon"): "write under an asynchronous read",
    ("wgmma_product", "no_wgmma_fence"): "no wgmma.fence has handed over",
    ("wgmma_product", "no_wgmma_wait"): "a wgmma that nobody waits for",
    ("wgmma_product", "no_proxy_fence"): "without fence.proxy.async",
    ("wgmma_product", "no_store_wait"): "ended before its bulk copies landed",
    ("wgmma_product", "few_bytes_expected"): "deadlock.*an mbarrier at wgmma_product.h",
    ("wgmma_product", "many_arrivals"): "deadlock|write after read|in flight|asynchronous read",
    (
        "wgmma_product_a_in_registers",
        "registers_reused",
    ): "a register of wgmma's was changed before",
    ("wgmma_product", "not_initialised"): "an mbarrier that nobody has initialised",
}
# What the race detector and the launch cannot know: counted, or found by AddressSanitizer.
OTHERS = {("mma_product", "no_swizzle"), ("mma_product", "reads_past_a")}

Outcomes = dict[tuple[str, str], list[dict[str, Any]]]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def build(folder: Path, *options: str) -> Path:
    for command in (["-S", HERE, "-B", folder, "-G", "Ninja", *options], ["--build", folder]):
        done = run("cmake", *command)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "kernels"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("emulation"))


def read(text: str) -> Outcomes:
    outcomes: Outcomes = defaultdict(list)
    for line in text.splitlines():
        outcome = json.loads(line)
        outcomes[outcome["kernel"], outcome["fault"]].append(outcome)
    return outcomes


@pytest.fixture(scope="module")
def outcomes(kernels: Path) -> Outcomes:
    return read(run(kernels).stdout)


def test_every_order_ran(outcomes: Outcomes) -> None:
    assert all([o["order"] for o in runs] == ORDERS for runs in outcomes.values())
    assert {key for key in outcomes if key[1] != "none"} == FAULTS.keys() | OTHERS


def test_right_kernels_are_right_and_clean(outcomes: Outcomes) -> None:
    """Sums of 384 products of unit Gaussians in float32 are off by 3e-5 at most; counts are whole."""
    right = [o for (_, fault), runs in outcomes.items() if fault == "none" for o in runs]
    assert len(right) == 27 * len(ORDERS)
    for outcome in right:
        assert not outcome["error"], outcome
        assert not outcome["races"], outcome
        assert outcome["distance"] < 1e-4, outcome
        assert outcome["bank_conflicts"] == 0, outcome


@pytest.mark.parametrize(("kernel", "fault"), FAULTS)
def test_faults_are_found_in_every_order(outcomes: Outcomes, kernel: str, fault: str) -> None:
    for outcome in outcomes[kernel, fault]:
        found = " ".join([outcome["error"], *outcome["races"]])
        assert re.search(FAULTS[kernel, fault], found), outcome


def test_a_right_result_is_no_proof(outcomes: Outcomes) -> None:
    """In turn, threads get through without the last barrier: only the detector sees it."""
    outcome = outcomes["mma_product", "no_barrier_at_end"][0]
    assert outcome["distance"] < 1e-4
    assert outcome["races"]


def test_bank_conflicts_are_counted(outcomes: Outcomes) -> None:
    """Without the swizzle, the eight rows of a matrix lie in the same banks: seven passes more for each."""
    for outcome in outcomes["mma_product", "no_swizzle"]:
        assert not outcome["races"]
        assert outcome["distance"] < 1e-4
        blocks, warps, steps, matrices = 4, 4, 16, 4 + 2 * 4
        assert outcome["bank_conflicts"] == 7 * blocks * warps * steps * matrices


def test_a_seed_is_a_schedule(kernels: Path) -> None:
    first, second = (run(kernels, "wgmma_product", "many_arrivals").stdout for _ in range(2))
    assert first == second
    of_seeds = [o for o in read(first)["wgmma_product", "many_arrivals"] if "random" in o["order"]]
    assert of_seeds[0]["races"] != of_seeds[1]["races"]


@pytest.mark.sweep
def test_global_memory_by_address_sanitizer(tmp_path: Path) -> None:
    """A read past a matrix is found at the kernel's line, on a fiber's stack; right kernels are clean."""
    kernels = build(tmp_path, "-DEMULATION_ADDRESS_SANITIZER=ON")
    done = run(kernels, "mma_product", "reads_past_a")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "mma_product.h" in done.stderr
    for kernel in ("mma_product", "wgmma_product", "boxes_64"):
        done = run(kernels, kernel, "none")
        assert done.returncode == 0, done.stderr[-2000:]
        assert all(o["distance"] < 1e-4 for runs in read(done.stdout).values() for o in runs)


@pytest.mark.sweep
def test_on_other_machines(tmp_path: Path) -> None:
    """Stacks by ucontext, as where there is no switch of our own: the same, in every order."""
    kernels = build(tmp_path, "-DEMULATION_UCONTEXT=ON")
    for kernel in ("lanes", "reduction", "mma_product", "wgmma_product"):
        done = run(kernels, kernel, "none")
        (runs,) = read(done.stdout).values()
        assert len(runs) == len(ORDERS), done.stderr
        assert all(not o["error"] and not o["races"] and o["distance"] < 1e-4 for o in runs)
    (runs,) = read(run(kernels, "mma_product", "no_barrier_at_end").stdout).values()
    assert all(o["races"] for o in runs)


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="needs a cross compiler and QEMU",
)
def test_on_64_bit_arm(tmp_path: Path) -> None:
    """The other switch between stacks."""
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    kernels = build(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
    for kernel in ("lanes", "mma_product", "wgmma_product"):
        done = run("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", kernels, kernel, "none")
        (runs,) = read(done.stdout).values()
        assert len(runs) == len(ORDERS), done.stderr
        assert all(not o["error"] and not o["races"] and o["distance"] < 1e-4 for o in runs)
