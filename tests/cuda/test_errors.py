"""What calls on a device refuse, and in which words."""

from __future__ import annotations

import re

import pytest
import torch

from tests.cuda.harness import EmulatedArray, Kernels

pytestmark = pytest.mark.slow


def rms_norm(kernels: Kernels, x: object, weight: object) -> None:
    kernels.compiled.rms_norm(x, None, weight, 1e-6, kernels.empty(2, 8, dtype=torch.float32), None)


def test_tensors_on_two_devices_are_refused(kernels: Kernels) -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    message = re.escape("rms_norm: weight must be on cuda:0, got float32 [8] on cpu")
    with pytest.raises(ValueError, match=message):
        rms_norm(kernels, kernels.put(x), weight)
    message = re.escape("rms_norm: weight must be on cpu, got float32 [8] on cuda:0")
    with pytest.raises(ValueError, match=message):
        rms_norm(kernels, x, kernels.put(weight))
    message = re.escape("rms_norm: weight must be on cuda:0, got float32 [8] on cuda:1")
    with pytest.raises(ValueError, match=message):
        rms_norm(kernels, kernels.put(x), EmulatedArray(weight, device=1))
    message = re.escape("rms_norm: weight must be on cuda:1, got float32 [8] on cuda:0")
    with pytest.raises(ValueError, match=message):
        rms_norm(kernels, EmulatedArray(x, device=1), kernels.put(weight))


def test_a_shape_that_takes_too_much_shared_memory_is_refused(kernels: Kernels) -> None:
    """In words, before a launch: a sine and a cosine of each pair of a token are 256 KB."""
    half = 32_768
    x = kernels.put(torch.zeros(1, 1, 2 * half))
    inv_freq, times = kernels.put(torch.ones(half)), kernels.put(torch.zeros(1))
    out = kernels.empty(1, 1, 2 * half, dtype=torch.float32)
    message = re.escape(
        "rotate: needs 262144 bytes of shared memory a block, cuda:0 has 232448 (on float32 [1, 1, 65536]"
    )
    with pytest.raises(RuntimeError, match=message):
        kernels.compiled.rotate(x, times, inv_freq, None, False, False, out)


def test_dtypes_of_a_device_are_named(kernels: Kernels) -> None:
    message = re.escape("x must be float32, bfloat16 or float16, got float64 [2, 8] on cuda")
    with pytest.raises(ValueError, match=message):
        rms_norm(kernels, kernels.put(torch.ones(2, 8).double()), kernels.put(torch.ones(8)))


def test_an_old_device_is_refused(kernels: Kernels) -> None:
    kernels.compiled.set_emulated_device(75)
    try:
        message = re.escape(
            "rms_norm: cuda:0 has compute capability 7.5, kernels need 8.0 (on float32 [2, 8] on cuda:0)"
        )
        with pytest.raises(RuntimeError, match=message):
            rms_norm(kernels, kernels.put(torch.ones(2, 8)), kernels.put(torch.ones(8)))
    finally:
        kernels.compiled.set_emulated_device(90)


def test_16_bit_samples_are_for_devices(kernels: Kernels) -> None:
    samples = torch.zeros(800, dtype=torch.int16)
    message = re.escape("log_mel: samples must be float32 on the CPU, got int16 [800] on cpu")
    with pytest.raises(ValueError, match=message):
        kernels.compiled.log_mel(samples, [0, 800], [5], torch.empty(5, 128))
    message = re.escape("log_mel: samples must be float32 [800], got float64 [800] on cuda")
    out = kernels.empty(5, 128, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        kernels.compiled.log_mel(kernels.put(samples.double()), [0, 800], [5], out)


def test_pooled_rows_lie_beside_the_others(kernels: Kernels) -> None:
    x, ones = kernels.put(torch.ones(2, 8)), kernels.put(torch.ones(8))
    message = re.escape("layer_norm: pooled must be on cuda:0, got int64 [1, 2] on cpu")
    out = kernels.empty(1, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        kernels.compiled.layer_norm(x, ones, ones, 1e-5, torch.tensor([[0, 1]]), out)
