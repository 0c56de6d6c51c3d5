"""What calls on a device refuse, and in which words."""

from __future__ import annotations

import re

import pytest
import torch

from tests.cuda.harness import Kernels

pytestmark = pytest.mark.slow


def rms_norm(kernels: Kernels, x: object, weight: object) -> None:
    kernels.compiled.rms_norm(x, None, weight, 1e-6, kernels.empty(2, 8, dtype=torch.float32), None)


def test_tensors_on_two_devices_are_refused(kernels: Kernels) -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    message = re.escape("rms_norm: weight must be on cuda:0, got float32 [8] on cpu")
    with pytest.raises(ValueError, match=message):
        rms_norm(kernels, kernels.put(x), weight)
    message = re.escape("rms_norm: weight must be on cpu, got float32 [8] on cuda")
    with pytest.raises(ValueError, match=message):
        rms_norm(kernels, x, kernels.put(weight))


def test_dtypes_of_a_device_are_named(kernels: Kernels) -> None:
    message = re.escape("x must be float32, bfloat16 or float16, got float64 [2, 8] on cuda")
    with pytest.raises(ValueError, match=message):
        rms_norm(kernels, kernels.put(torch.ones(2, 8).double()), kernels.put(torch.ones(8)))


def test_an_old_device_is_refused(kernels: Kernels) -> None:
    kernels.compiled.set_emulated_device(75)
    try:
        message = re.escape(
            "rms_norm: cuda:0 has compute capability 7.5, kernels need 8.0 (on float32 [2, 8] on cuda)"
        )
        with pytest.raises(RuntimeError, match=message):
            rms_norm(kernels, kernels.put(torch.ones(2, 8)), kernels.put(torch.ones(8)))
    finally:
        kernels.compiled.set_emulated_device(90)
