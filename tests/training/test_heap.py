"""What a process that trains frees stays with it, and is not fetched again page by page."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import os, resource, sys
import torch
from afnext.training import hold_memory
if sys.argv[1] == "held":
    hold_memory()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == sys.argv[2]
def step(megabytes):
    tensors = [torch.ones(megabytes << 18) for _ in range(4)]
sizes = 50, 48, 20, 31, 9, 50
for megabytes in 3 * sizes:
    step(megabytes)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in 2 * sizes[::-1]:
    step(megabytes)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **env: str) -> int:
    run = [sys.executable, "-c", FAULTS, *arguments]
    return int(subprocess.check_output(run, text=True, env={"PATH": "", **env}))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_steps_do_not_fetch_their_memory_anew() -> None:
    """Of 1.7 GB; into which holes they fit is not the same each time."""
    most = 0.2 * faults("as it is")
    assert any(faults("held", "128") < most for _ in range(5))
    assert any(faults("held", "7", ONEDNN_PRIMITIVE_CACHE_CAPACITY="7") < most for _ in range(5))
