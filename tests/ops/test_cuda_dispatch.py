"""CUDA's side of dispatch as far as it can be seen without a GPU: shapes and devices of fake tensors, and
in a build with CUDA kernels the registrations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from afnext import ops
from afnext.ops import runtime

OPS = Path(ops.__file__).parent
DEFINED = re.compile(r'define\(\s*"(\w+)\((?:(?!\n\)).)*?cuda=True', re.DOTALL)


def declared() -> list[str]:
    """Ops whose ``define`` says ``cuda=True``."""
    return [name for path in sorted(OPS.glob("*.py")) for name in DEFINED.findall(path.read_text())]


def test_declared_ops_have_a_kernel_where_the_build_has_cuda() -> None:
    assert {"rms_norm", "add_rms_norm"} <= set(declared())
    for op in declared():
        assert runtime.has_cuda_kernels(op) == runtime.has_cuda()
    assert not runtime.has_cuda_kernels("no_such_op")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_results_lie_where_x_lies(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        x = torch.empty(3, 2, 16, dtype=dtype, device="cuda")
        weight = torch.empty(16, dtype=dtype, device="cuda")
        results = [
            *ops.rms_norm(x, weight, 1e-6, x),
            ops.layer_norm(x, weight, weight),
            ops.silu_mul(x, x),
            ops.linear(x, torch.empty(16, 16, dtype=dtype, device="cuda")),
        ]
        for result in results:
            assert (result.device.type, result.dtype, result.shape) == ("cuda", dtype, x.shape)


def test_tensors_on_two_devices_are_refused() -> None:
    with FakeTensorMode():
        x, weight = torch.empty(3, 16, device="cuda"), torch.empty(16)
        with pytest.raises(ValueError, match="rms_norm: weight must be on cuda:0 like x, got cpu"):
            ops.rms_norm(x, weight, 1e-6)
