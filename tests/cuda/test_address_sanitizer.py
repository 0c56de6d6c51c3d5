"""Global memory: no kernel reads or writes beyond a tensor in any core case."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.cuda import address_sanitizer
from tests.cuda.conftest import ROOT

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("ninja") is None,
        reason="needs CMake and Ninja",
    ),
]


def checked(*ops: str) -> subprocess.CompletedProcess[str]:
    command = address_sanitizer.command(address_sanitizer.build(), *ops)
    environment = address_sanitizer.environment()
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


def test_kernels_stay_within_their_tensors() -> None:
    done = checked()
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "cases within bounds" in done.stdout


def test_an_access_beyond_a_tensor_is_found() -> None:
    done = checked(address_sanitizer.FAULT)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "rms_norm" in done.stderr
