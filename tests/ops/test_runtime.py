"""Threads of the kernels: any number gives the same result; several callers, forks, settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from afnext import ops
from afnext.ops import runtime


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = runtime.num_threads()
    yield
    runtime.set_num_threads(before)


def calls() -> dict[str, Callable[[], Tensor]]:
    """Ops whose elements do not depend on how the work is cut, each large enough to be cut."""
    x, weight = torch.randn(3, 1100), torch.randn(1300, 1100)
    rows, gain = torch.randn(700, 256), torch.randn(256)
    heads, times = torch.randn(500, 4, 64), torch.rand(500) * 100
    inv_freq = torch.rand(32)
    return {
        "linear, few rows": lambda: ops.linear(x, weight),
        "rms_norm": lambda: ops.rms_norm(rows, gain, 1e-6),
        "silu_mul": lambda: ops.silu_mul(rows, rows.flip(0)),
        "rotate": lambda: ops.rotate(heads, times, inv_freq),
        "attention": lambda: ops.attention(heads, heads, heads, causal=True)[0],
    }


def test_the_number_of_threads_changes_no_bit() -> None:
    runtime.set_num_threads(1)
    for name, call in calls().items():
        expected = call()
        for threads in (2, 3, 7):
            runtime.set_num_threads(threads)
            assert torch.equal(call(), expected), f"{name} on {threads} threads"
        runtime.set_num_threads(1)


def test_python_threads_call_at_once_while_the_number_changes() -> None:
    """No result is mixed up with another caller's, and nothing hangs."""
    runtime.set_num_threads(1)
    expected = {name: (call, call()) for name, call in calls().items()}
    wrong: list[str] = []

    def caller() -> None:
        for _ in range(20):
            wrong.extend(n for n, (call, value) in expected.items() if not call().equal(value))

    callers = [threading.Thread(target=caller, daemon=True) for _ in range(4)]
    for thread in callers:
        thread.start()
    threads = 1
    while any(thread.is_alive() for thread in callers):
        runtime.set_num_threads(threads := threads % 4 + 1)
        callers[0].join(0.002)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    """As in a DataLoader's workers: the parent's threads do not exist there. (torch's own pool hangs in
    such a child, so that the comparison is NumPy's.)"""
    runtime.set_num_threads(3)
    x, gain = torch.randn(700, 256), torch.randn(256)
    expected = ops.rms_norm(x, gain, 1e-6).numpy()
    child = os.fork()
    if child == 0:
        here = ops.rms_norm(x, gain, 1e-6).numpy()
        os._exit(0 if runtime.num_threads() == 3 and np.array_equal(here, expected) else 1)
    deadline = time.monotonic() + 120
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert np.array_equal(ops.rms_norm(x, gain, 1e-6).numpy(), expected)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_number_out_of_range_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads must be 1 to 1024"):
        runtime.set_num_threads(threads)


ASK = "from afnext import _C; print(_C.num_threads())"


def asked(before: str = "", **env: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", before + ASK],
        capture_output=True, text=True, env={**os.environ, **env},
    )  # fmt: skip
    return run.stdout.strip() or run.stderr.strip().splitlines()[-1]


def test_the_environment_sets_the_number() -> None:
    assert asked(AFNEXT_NUM_THREADS="5") == "5"
    assert "AFNEXT_NUM_THREADS: must be 1 to 1024, got 'many'" in asked(AFNEXT_NUM_THREADS="many")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity masks")
def test_affinity_bounds_the_number() -> None:
    core = min(os.sched_getaffinity(0))
    pin = f"import os; os.sched_setaffinity(0, [{core}]); "
    assert asked(pin, AFNEXT_NUM_THREADS="") == "1"
