"""pack: the weight comes back exactly, from the layout that pack.h describes, at its promised cost."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from afnext import ops
from afnext.ops import reference, runtime
from tests.high_water import grown

pytestmark = pytest.mark.slow

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = [(0, 5), (1, 1), (5, 0), (31, 33), (32, 32), (33, 31), (100, 513), (64, 2), (514, 70)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FORMATS.values())
@pytest.mark.parametrize("gate_up", [False, True])
def test_unpack_gives_the_rounded_weight(
    kernel: str, format: str, dtype: torch.dtype, gate_up: bool
) -> None:
    for n, k in SHAPES:
        weight = torch.randn(2 * n if gate_up else n, k).to(dtype)
        packed = ops.pack(weight, format, gate_up)
        expected = weight.to(FORMATS[format])  # torch's own rounding
        assert torch.equal(packed.unpack(), expected)
        # A second reading of the layout, in torch: what is packed means the same to everyone.
        unpacked = reference.unpack(packed.data, format, packed.n, packed.k, gate_up)
        assert torch.equal(unpacked, expected)


def test_layout_is_the_documented_one(kernel: str) -> None:
    weight = torch.arange(70 * 37.0).reshape(70, 37)
    data = ops.pack(weight, "float32").data.view(torch.float32).view(3, 37, 32)
    assert data[1, 5, 3] == weight[35, 5]
    assert (data[2, :, 6:] == 0).all()
    small = weight.bfloat16()
    pairs = ops.pack(small, "bfloat16").data.view(torch.bfloat16).view(3, 32, 32, 2)
    assert pairs[1, 7, 3, 0] == small[35, 14]
    assert pairs[1, 7, 3, 1] == small[35, 15]
    assert (pairs[:, 19:] == 0).all()
    gated = ops.pack(weight, "float32", gate_up=True).data.view(torch.float32).view(3, 37, 32)
    assert gated[1, 5, 3] == weight[19, 5]
    assert gated[1, 5, 19] == weight[35 + 19, 5]
    assert (gated[2, :, 3:16] == 0).all()


def test_nan_and_infinity_survive(kernel: str) -> None:
    weight = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1e-40, 3.4e38]])
    expected = weight.bfloat16()  # 3.4e38 rounds to infinity
    torch.testing.assert_close(ops.pack(weight).unpack(), expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_may_be_strided(kernel: str, format: str) -> None:
    weight = torch.randn(80, 90)[1::2, 3:70]
    assert torch.equal(ops.pack(weight, format).unpack(), weight.to(FORMATS[format]))


def test_sizes_and_alignment() -> None:
    packed = ops.pack(torch.randn(100, 33))
    assert packed.nbytes == packed.data.numel() == 4 * 32 * 64 * 2  # 4 panels, K padded to 64
    assert packed.data.data_ptr() % 64 == 0
    assert (packed.format, packed.n, packed.k, packed.columns) == ("bfloat16", 100, 33, 100)
    assert ops.pack(torch.randn(100, 33), gate_up=True).columns == 50
    assert ops.pack(torch.randn(100, 33), "float32").nbytes == 4 * 32 * 33 * 4


def test_numpy() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 9), dtype=np.float32)
    weight.setflags(write=False)
    assert np.array_equal(ops.pack(weight, "float32").unpack().numpy(), weight)


def test_threads_change_no_bit() -> None:
    weight, before, results = torch.randn(500, 300), runtime.num_threads(), []
    try:
        for threads in (1, 3):
            runtime.set_num_threads(threads)
            results.append(ops.pack(weight).data)
    finally:
        runtime.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("weight", "format", "gate_up", "message"),
    [
        (torch.zeros(3), "float32", False, "pack: weight must have 2 dimensions"),
        (torch.zeros(3, 2, dtype=torch.int32), "float32", False, "pack: weight must be float32"),
        (torch.zeros(3, 2).T, "float32", False, "pack: weight must have unit stride"),
        (torch.zeros(3, 2), "fp8", False, "pack: format must be"),
        (torch.zeros(3, 2), "float32", True, "pack: weight must have an even number of rows"),
        ("weight", "float32", False, "pack: weight must be a torch tensor, NumPy array"),
    ],
)
def test_bad_input_names_the_argument(
    weight: torch.Tensor, format: str, gate_up: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ops.pack(weight, format, gate_up)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_takes_no_memory_beside_the_result() -> None:
    """A float32 copy of the weight would raise the peak by another 256 MB."""
    warm = """
import torch
from afnext import ops
ops.pack(torch.zeros(64, 64))
weight = torch.ones(8192, 8192, dtype=torch.bfloat16)
"""
    result = ops.pack(torch.ones(8192, 8192, dtype=torch.bfloat16)).nbytes
    assert grown(warm, "packed = ops.pack(weight)") * 1024 - result < 16 << 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: ops.linear(w, ops.quantize(w, "int8")), "linear: weight .*ops.pack it"),
        (lambda w: ops.linear(w, [1.0]), "linear: weight .* got list"),
        (lambda w: ops.linear(w, None), "linear: weight .* got NoneType"),
        (lambda w: ops.linear(w, w, [0.0]), "linear: bias .* got list"),
        (lambda w: ops.linear([1.0], w), "linear: the first argument .* got list"),
        (lambda w: ops.pack(w, 8), "pack: format must be a name, got 8"),
        (lambda w: ops.quantize(w, 8), "quantize: format must be a name, got 8"),
    ],
)
def test_careless_callers_get_one_line(
    call: Callable[[torch.Tensor], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(torch.ones(4, 4))
    assert "\n" not in str(caught.value)


def test_bytes_stay_on_the_cpu_whatever_the_default_device() -> None:
    data = ops.pack(torch.randn(31, 33), "float32").data
    room = torch.empty(len(data) + 65, dtype=torch.uint8)
    first = -room.data_ptr() % 64 + 1
    unaligned = room[first : first + len(data)].copy_(data)
    with torch.device("meta"):
        kept = ops.PackedWeight.from_bytes(unaligned, "float32", 31, 33)
    assert torch.equal(kept.data, data)
