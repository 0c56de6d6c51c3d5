"""How ops meet torch: what every op owes to callers, whoever wrote its kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_origin, get_type_hints

import numpy as np
import pytest
import torch

from afnext import ops

X, TIMES, INV_FREQ, WEIGHT = torch.ones(2, 1, 8), torch.zeros(2), torch.ones(4), torch.ones(8)
LSE = torch.zeros(1, 2)

TAKE_ARRAYS = (
    "all_to_all_pack", "all_to_all_unpack", "attention", "layer_norm", "linear", "log_mel",
    "merge_attention", "paged_append", "paged_attention", "rms_norm", "rotate", "sample", "silu_mul",
)  # fmt: skip

MISUSES: list[tuple[str, Callable[[], object]]] = [
    ("rotate: interleaved must be a bool, got str",
     lambda: ops.rotate(X, TIMES, INV_FREQ, interleaved="x")),
    ("rotate: angles must be a tensor, got str", lambda: ops.rotate(X, angles="x")),
    ("rms_norm: eps must be a number, got NoneType", lambda: ops.rms_norm(X, WEIGHT, None)),
    ("rms_norm: eps must be a number, got str", lambda: ops.rms_norm(X, WEIGHT, "x", X)),
    ("layer_norm: eps must be a number, got NoneType",
     lambda: ops.layer_norm(X, WEIGHT, WEIGHT, None)),
    ("silu_mul: up must be a tensor, got int", lambda: ops.silu_mul(X, 4)),
    ("merge_attention: lse_b must be a tensor, got NoneType",
     lambda: ops.merge_attention(X, LSE, X, None)),
    # Under its public name: the schema calls it scale.
    ("attention: softmax_scale must be a number, got str",
     lambda: ops.attention(X, X, X, softmax_scale="x")),
    ("paged_attention: causal must be a bool, got list",
     lambda: ops.paged_attention(X, X, X, X, X, X, causal=[])),
    ("paged_attention: softmax_scale must be a number, got str",
     lambda: ops.paged_attention(X, X, X, X, X, X, softmax_scale="x")),
    # A first argument of torch's has the others be torch's, too.
    ("attention: k must be a tensor, got ndarray",
     lambda: ops.attention(X, X.numpy(), X.numpy())),
    ("attention: cu_seqlens_k must be a tensor, got list",
     lambda: ops.attention(X, X, X, cu_seqlens_k=[0, 2])),
    ("attention: times_q must be a tensor, got ndarray",
     lambda: ops.attention(X, X, X, rotation=ops.Rotation(TIMES.numpy(), TIMES, INV_FREQ))),
    ("rms_norm: weight must be a tensor, got ndarray",
     lambda: ops.rms_norm(X, WEIGHT.numpy(), 1e-6)),
    ("rms_norm: residual must be a tensor, got list", lambda: ops.rms_norm(X, WEIGHT, 1e-6, [1.0])),
    ("layer_norm: bias must be a tensor, got ndarray",
     lambda: ops.layer_norm(X, WEIGHT, WEIGHT.numpy())),
    ("silu_mul: up must be a tensor, got ndarray", lambda: ops.silu_mul(X, X.numpy())),
    ("linear: weight must be a tensor or a PackedWeight, got ndarray",
     lambda: ops.linear(X, WEIGHT.numpy())),
    ("merge_attention: lse_a must be a tensor, got ndarray",
     lambda: ops.merge_attention(X, LSE.numpy(), X, LSE)),
    ("rotate: times must be a tensor, got list", lambda: ops.rotate(X, [0, 1], INV_FREQ)),
    ("log_mel: cu_samples must be a tensor, got ndarray",
     lambda: ops.log_mel(TIMES, np.array([0, 2]))),
    ("paged_append: v must be a tensor, got ndarray",
     lambda: ops.paged_append(X, X.numpy(), X, X, X, X, X)),
    ("sample: top_k must be a tensor, got ndarray",
     lambda: ops.sample(X[0], TIMES, TIMES.numpy(), TIMES, TIMES, TIMES)),
    # What torch cannot hold, and numbers that no root survives.
    ("rms_norm: weight must be of a dtype that torch has, got <U1",
     lambda: ops.rms_norm(X.numpy(), np.array(["a"]), 1e-6)),
    ("pack: weight must be of a dtype that torch has, got <U1",
     lambda: ops.pack(np.array([["a"]]), "float32")),
    ("quantize: weight must be of a dtype that torch has, got object",
     lambda: ops.quantize(np.array([[None]]), "int8")),
    ("rms_norm: eps must be 0 or more, got -1", lambda: ops.rms_norm(X, WEIGHT, -1)),
    ("layer_norm: eps must be 0 or more, got nan",
     lambda: ops.layer_norm(X, WEIGHT, WEIGHT, math.nan)),
    ("quantize: zero_points must be a bool, got str",
     lambda: ops.quantize(X[0], "int8", zero_points="x")),
]  # fmt: skip


@pytest.mark.parametrize(("said", "call"), MISUSES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_argument_of_a_wrong_type_is_one_line(
    said: str, call: Callable[[], object], mode: Callable[[], object]
) -> None:
    """torch's own words for it are five lines with its schema."""
    with mode(), pytest.raises(ValueError, match="must be") as error:
        call()
    assert str(error.value) == said


def test_a_first_argument_of_numpys_has_the_result_be_numpys() -> None:
    """Whatever the others are, and though a Parameter asks for gradients."""
    weight = torch.nn.Parameter(WEIGHT)
    out = ops.rms_norm(X.numpy(), weight, 1e-6)
    assert isinstance(out, np.ndarray)
    assert np.array_equal(out, ops.rms_norm(X, WEIGHT, 1e-6).numpy())


@pytest.mark.parametrize("name", TAKE_ARRAYS)
def test_ops_are_typed_for_arrays(name: str) -> None:
    """The package ships its types: a checker of the caller's must let NumPy's arrays in."""
    first = next(iter(get_type_hints(getattr(ops, name)).values()))
    assert first.__constraints__[0] is torch.Tensor
    assert get_origin(first.__constraints__[1]) is np.ndarray


def test_arrays_without_elements() -> None:
    """NumPy gives them strides of 0, which no op would take for a row of numbers."""
    none, weight = np.zeros((0, 8), np.float32), WEIGHT.numpy()
    assert ops.rms_norm(none, weight, 1e-6).shape == (0, 8)
    assert ops.layer_norm(none, weight, weight).shape == (0, 8)
    assert ops.linear(none, X[:, 0].numpy()).shape == (0, 2)
    assert ops.linear(none, ops.pack(X[:, 0], "float32")).shape == (0, 2)
    assert ops.attention(none[:, None], none[:, None], none[:, None])[0].shape == (0, 1, 8)
    packed = ops.pack(none, "float32")
    assert (packed.n, packed.k) == (0, 8)


@pytest.mark.parametrize("how", ["backwards", "big endian", "a field of a record", "read-only"])
def test_arrays_that_torch_cannot_hold_are_copied(how: str) -> None:
    x = np.random.default_rng(0).standard_normal(1600).astype(np.float32)
    if how == "backwards":
        array = x[::-1].copy()[::-1]
    elif how == "big endian":
        array = x.astype(">f4")
    elif how == "a field of a record":
        records = np.zeros(1600, [("x", "f4"), ("y", "i1")])
        records["x"], array = x, records["x"]
    else:
        array = x.view()
        array.flags.writeable = False
    assert np.array_equal(ops.log_mel(array), ops.log_mel(x))
    assert np.array_equal(ops.silu_mul(array, x), ops.silu_mul(x, x))


def test_also_where_gradients_flow() -> None:
    x = X.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^rms_norm: eps must be a number, got NoneType$"):
        ops.rms_norm(x, WEIGHT, None)


def test_other_errors_of_torch_stay_what_they_are() -> None:
    """A matrix that does not fit into memory is no misuse of a type."""
    huge = torch.empty(1, 1).expand(1 << 40, 1)
    with pytest.raises(RuntimeError, match="alloc"):
        ops.silu_mul(huge, huge)


def test_ops_compile_in_one_graph() -> None:
    """The compiler follows a call through its checks."""

    def layer(x: torch.Tensor) -> torch.Tensor:
        turned = ops.rotate(ops.rms_norm(x, WEIGHT, 1e-6), TIMES, INV_FREQ)
        out, _ = ops.attention(turned, turned, turned, causal=True)
        return ops.silu_mul(out, out)

    x = torch.randn(2, 1, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
