"""How ops meet torch: what every op owes to callers, whoever wrote its kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from afnext import ops

X, TIMES, INV_FREQ, WEIGHT = torch.ones(2, 1, 8), torch.zeros(2), torch.ones(4), torch.ones(8)
LSE = torch.zeros(1, 2)

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
