"""What packed weights on a device refuse, and that a call gives the same bits every time."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.cuda.harness import Kernels

pytestmark = pytest.mark.slow


def packed(kernels: Kernels, weight: torch.Tensor, format: str = "bfloat16") -> Any:
    size = kernels.compiled.packed_bytes(format, *weight.shape, False, True)
    data = kernels.put(torch.zeros(size, dtype=torch.uint8))
    kernels.compiled.pack(kernels.put(weight), format, False, data)
    return data


def multiply(kernels: Kernels, x: torch.Tensor, data: Any, n: int, format: str) -> torch.Tensor:
    out = kernels.empty(*x.shape[:-1], n, dtype=x.dtype)
    arguments = (None, None, format, n, x.shape[-1], False, "", out)
    kernels.compiled.packed_linear(kernels.put(x), data, *arguments)
    return kernels.get(out)


@pytest.mark.parametrize(
    ("rows", "dtype", "message"),
    [
        (65, torch.bfloat16, "linear: x must have at most 64 rows on cuda, got 65"),
        (2, torch.float32, "linear: x must be bfloat16 or float16 on cuda, got float32"),
        (2, torch.float16, "linear: x must be bfloat16 like the packed weight"),
    ],
)
def test_what_kernels_do_not_take_is_refused(
    kernels: Kernels, rows: int, dtype: torch.dtype, message: str
) -> None:
    data = packed(kernels, torch.ones(3, 4))
    with pytest.raises(ValueError, match=re.escape(message)):
        multiply(kernels, torch.ones(rows, 4, dtype=dtype), data, 3, "bfloat16")


def test_formats_have_their_devices(kernels: Kernels) -> None:
    sizes = (3, 4, False)
    with pytest.raises(ValueError, match="got 'fp8'"):
        kernels.compiled.packed_bytes("fp8", *sizes, False)
    with pytest.raises(ValueError, match="on cuda, got 'float32'"):
        kernels.compiled.packed_bytes("float32", *sizes, True)


def test_a_packing_of_the_cpu_is_refused(kernels: Kernels) -> None:
    data = torch.zeros(kernels.compiled.packed_bytes("bfloat16", 3, 4, False, False)).byte()
    message = re.escape("linear: data must be ")
    with pytest.raises(ValueError, match=message):
        multiply(kernels, torch.ones(2, 4).bfloat16(), data, 3, "bfloat16")
    with pytest.raises(ValueError, match=message):  # its bytes on the device are of another number
        multiply(kernels, torch.ones(2, 4).bfloat16(), kernels.put(data), 3, "bfloat16")


@pytest.mark.parametrize("rows", [1, 17])
def test_a_product_may_follow_packing_at_once(kernels: Kernels, rows: int) -> None:
    """It starts early and reads weights before it waits: the emulator says so where packing is unfinished."""
    kernels.begin()
    weight = torch.randn(140, 512, generator=torch.Generator().manual_seed(2)).bfloat16()
    x = torch.ones(rows, 512).bfloat16()
    got = multiply(kernels, x, packed(kernels, weight), 140, "bfloat16")
    torch.testing.assert_close(got.double(), x.double() @ weight.double().T, rtol=0.01, atol=0.01)


def test_parts_of_k_are_added_in_order(kernels: Kernels) -> None:
    """Sums of several parts of K, whatever order blocks and warps come in: the same bits."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(17, 2112, generator=random).bfloat16()
    data = packed(kernels, torch.randn(70, 2112, generator=random))
    results = []
    for order in ("first_in", "last_in", "random"):
        kernels.compiled.set_emulation(order, 7)
        results.append(multiply(kernels, x, data, 70, "bfloat16"))
    assert all(torch.equal(results[0], other) for other in results[1:])
