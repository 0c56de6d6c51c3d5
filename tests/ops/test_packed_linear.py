"""linear with packed weights: float64, every tail of the blocking, epilogues, rows, threads, bad input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops
from afnext.ops import runtime
from afnext.ops._compiled import compiled
from afnext.ops.linear import multiply_unpacked

FLOATS = [torch.float32, torch.bfloat16]
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PAIRS = list(product(FLOATS, FORMATS))
EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


@pytest.fixture(params=[*runtime.available_cpu_isas("packed_linear"), "reference", "tiles"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every instruction set, plain torch, and the kernel for AMX tiles (emulated where there are none),
    which takes bfloat16 alone: the rest runs on the machine's best kernel once more."""
    if request.param == "reference":
        with ops.force_reference():
            yield request.param
        return
    if request.param == "tiles":
        usual, tiles = compiled.packed_linear, compiled.packed_linear_tiles

        def either(
            x: Tensor, data: Tensor, bias: Any, residual: Any, format: str, *rest: Any
        ) -> None:
            fits = x.dtype == torch.bfloat16 and format == "bfloat16"
            (tiles if fits else usual)(x, data, bias, residual, format, *rest)

        monkeypatch.setattr(compiled, "packed_linear", either)
        yield request.param
        return
    before = runtime.cpu_isa()
    runtime.set_cpu_isa(request.param)
    yield request.param
    runtime.set_cpu_isa(before)


def exact(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    """The layer in float64."""
    out = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if activation == "gelu":
        out = F.gelu(out)
    elif activation == "silu_mul":
        gate, up = out.chunk(2, dim=-1)
        out = F.silu(gate) * up
    return out if residual is None else out + residual.double()


def assert_good(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> None:
    """Error against float64: one rounding of the output, and of float32 sums the usual sqrt(K) roundings.

    The slopes of gelu (at most 1.13) and of silu(gate) * up (at most 1.1 times the other factor) carry
    the error of the sums on; their own arithmetic is good to a few roundings of float32.
    """
    expected = exact(x, weight, bias, activation, residual)
    sums = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = F.linear(x.double().abs(), weight.double().abs())
    if bias is not None:
        size = size + bias.double().abs()
    error = size * 2.0**-24 * (2 + x.shape[-1] ** 0.5)
    if activation == "silu_mul":
        (gate, up), (gate_error, up_error) = sums.chunk(2, -1), error.chunk(2, -1)
        error = 1.1 * gate_error * up.abs() + up_error * gate.abs() + (gate * up).abs() * 2.0**-20
    elif activation == "gelu":
        error = 1.13 * error + expected.abs() * 2.0**-21 + 1e-8
    if residual is not None:
        error = error + residual.double().abs() * 2.0**-24
    floor = expected.abs() * EPS[out.dtype] * 1.01 + error + 1e-37
    wrong = (out.double() - expected).abs() - floor
    assert out.shape == expected.shape
    assert (wrong <= 0).all(), wrong.max()


# Rows: tiles of 5, 6, 12, 14 and 32 rows, whole and broken, and the step from few to many; columns and
# depths: panels of 32, lines of 16 words, chunks of 256 steps.
@pytest.mark.parametrize(("dtype", "format"), PAIRS)
@pytest.mark.parametrize("m", [*range(9), 13, 14, 15, 17, 29, 33, 64, 70])
def test_matches_float64(path: str, dtype: torch.dtype, format: str, m: int) -> None:
    for n, k in product((1, 31, 33, 100), (0, 1, 31, 33, 100, 513)):
        x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(FORMATS[format])
        bias = torch.randn(n).to(dtype) if (m + n + k) % 2 else None
        assert_good(ops.linear(x, ops.pack(weight, format), bias), x, weight, bias)


@pytest.mark.parametrize(("dtype", "format"), PAIRS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 513, 2600), (300, 545, 1100), (530, 70, 700)])
def test_blocks(path: str, dtype: torch.dtype, format: str, m: int, n: int, k: int) -> None:
    x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(FORMATS[format])
    assert_good(ops.linear(x, ops.pack(weight, format)), x, weight)


# Outputs of more than 2 MB go past the caches, a whole line at a time.
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_outputs_beyond_the_caches(path: str, dtype: torch.dtype, activation: str | None) -> None:
    m, n, k = 300, 4096, 40
    x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    bias, residual = torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)
    packed = ops.pack(weight, str(dtype).removeprefix("torch."))
    out = ops.linear(x, packed, bias, activation=activation, residual=residual)
    assert_good(out, x, weight, bias, activation, residual)
    few = ops.linear(x[:40], packed, bias, activation=activation, residual=residual[:40])
    assert path == "reference" or torch.equal(out[:40], few)


def test_rows_beyond_one_packing() -> None:
    """16 MB of packed x is all that is held at a time: 2,600 rows of 4,096 floats take three rounds."""
    x, weight = torch.randn(2600, 4096), torch.randn(40, 4096)
    assert_good(ops.linear(x, ops.pack(weight, "float32")), x, weight)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 200, 3000), (40, 200, 3000), (200, 200, 3000)])
def test_as_good_as_torch(path: str, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    """The gold standard: at most twice the error of torch's own op of the same precision."""
    x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    format = str(dtype).removeprefix("torch.")
    expected = F.linear(x.double(), weight.double())
    ours = (ops.linear(x, ops.pack(weight, format)).double() - expected).abs()
    theirs = (F.linear(x, weight).double() - expected).abs()
    assert ours.max() <= 2 * theirs.max()
    assert ours.square().mean().sqrt() <= 1.5 * theirs.square().mean().sqrt()


@pytest.mark.parametrize(("dtype", "format"), PAIRS)
@pytest.mark.parametrize("activation", [None, "gelu", "silu_mul"])
@pytest.mark.parametrize("m", [1, 7, 66])
def test_epilogues(
    path: str, dtype: torch.dtype, format: str, activation: str | None, m: int
) -> None:
    gated = activation == "silu_mul"
    for columns, k in ((1, 40), (16, 40), (33, 70), (100, 31)):
        weight = torch.randn(2 * columns if gated else columns, k).to(FORMATS[format])
        packed = ops.pack(weight, format, gate_up=gated)
        x = torch.randn(m, k).to(dtype)
        for with_bias, with_residual in product((False, True), repeat=2):
            bias = torch.randn(weight.shape[0]).to(dtype) if with_bias else None
            residual = torch.randn(m, columns).to(dtype) if with_residual else None
            out = ops.linear(x, packed, bias, activation=activation, residual=residual)
            assert_good(out, x, weight, bias, activation, residual)


def test_gelu_over_its_range(path: str) -> None:
    """Every sixteenth of [-9, 9], through an identity: within 2 units in the last place and 1e-8."""
    values = torch.cat(
        [torch.arange(-9, 9, 1 / 16), torch.tensor([-40.0, 40.0, 1e30, -1e30, 1e-30])]
    )
    out = ops.linear(values[:, None], ops.pack(torch.ones(1, 1), "float32"), activation="gelu")
    expected = F.gelu(values.double())[:, None]
    assert ((out.double() - expected).abs() <= expected.abs() * 2.0**-22 + 1e-8).all()
    special = torch.tensor([[float("nan")], [float("inf")]])
    special = ops.linear(special, ops.pack(torch.ones(1, 1), "float32"), activation="gelu")
    assert special[0].isnan()
    assert special[1].isposinf()


@pytest.mark.parametrize("dtype", FLOATS)
def test_output_may_be_the_residual(kernel: str, dtype: torch.dtype) -> None:
    """A residual stream is added to in place: the compiled call takes `out` for `residual`."""
    for m, activation in product((3, 200), (None, "silu_mul")):
        gated = activation is not None
        weight = torch.randn(140 if gated else 70, 50).to(dtype)
        packed = ops.pack(weight, str(dtype).removeprefix("torch."), gate_up=gated)
        x, stream = torch.randn(m, 50).to(dtype), torch.randn(m, 70).to(dtype)
        expected = ops.linear(x, packed, activation=activation, residual=stream)
        compiled.packed_linear(
            x,
            packed.data,
            None,
            stream,
            packed.format,
            packed.n,
            50,
            gated,
            activation or "",
            stream,
        )
        assert torch.equal(stream, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [3, 70])
def test_strides_and_offsets(path: str, dtype: torch.dtype, m: int) -> None:
    weight = torch.randn(50, 37).to(dtype)
    packed = ops.pack(weight, str(dtype).removeprefix("torch."))
    x = torch.randn(m, 100).to(dtype)[:, 3:40]
    assert_good(ops.linear(x, packed), x, weight)
    turned = torch.randn(4, m, 37).to(dtype).transpose(0, 1)  # no even distance between its rows
    residual = torch.randn(50, 4, m).to(dtype).permute(2, 1, 0)
    assert_good(ops.linear(turned, packed, residual=residual), turned, weight, None, None, residual)
    same = torch.randn(37).to(dtype).expand(m, 37)
    assert_good(ops.linear(same, packed), same, weight)


@pytest.mark.parametrize("shape", [(9,), (2, 9), (2, 0, 9), (2, 3, 9), (1, 2, 1, 3, 9)])
def test_leading_dimensions(path: str, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(4, 9)
    residual = torch.randn(*shape[:-1], 4)
    out = ops.linear(x, ops.pack(weight, "float32"), residual=residual)
    assert out.shape == (*shape[:-1], 4)
    torch.testing.assert_close(out, F.linear(x, weight) + residual)


@pytest.mark.parametrize(("dtype", "format"), PAIRS)
@pytest.mark.parametrize("m", [2, 20, 80])
def test_infinities_and_nan_stay_in_their_rows(
    path: str, dtype: torch.dtype, format: str, m: int
) -> None:
    x, weight = torch.randn(m, 70).to(dtype), torch.randn(33, 70).to(FORMATS[format])
    x[0, 3], x[1, 5], weight[32, 69] = float("inf"), float("nan"), float("nan")
    out = ops.linear(x, ops.pack(weight, format)).double()
    expected = F.linear(x.double(), weight.double())
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())


@pytest.mark.parametrize(("dtype", "format"), PAIRS)
def test_a_row_does_not_depend_on_the_others_or_on_threads(dtype: torch.dtype, format: str) -> None:
    x, packed = torch.randn(300, 700).to(dtype), ops.pack(torch.randn(900, 700), format)
    before, whole = runtime.num_threads(), ops.linear(x, packed)
    try:
        for threads in (1, 2, 3, 5):
            runtime.set_num_threads(threads)
            assert torch.equal(ops.linear(x, packed), whole)
            for rows in (1, 5, 40, 100):
                assert torch.equal(ops.linear(x[:rows], packed), whole[:rows])
    finally:
        runtime.set_num_threads(before)


def test_numpy() -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s, dtype=np.float32) for s in ((3, 20), (7, 20)))
    out = ops.linear(x, ops.pack(weight, "float32"), residual=np.ones((3, 7), dtype=np.float32))
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(out, x @ weight.T + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(2, 5)}, "x"),
        ({"x": torch.zeros(2, 4, dtype=torch.float64)}, "x"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"bias": torch.zeros(3, dtype=torch.bfloat16)}, "bias"),
        ({"residual": torch.zeros(2, 4)}, "residual"),
        ({"residual": torch.zeros(3)}, "residual"),
        ({"residual": torch.zeros(2, 3, dtype=torch.bfloat16)}, "residual"),
        ({"activation": "relu"}, "activation"),
        ({"activation": "silu_mul"}, "activation"),
        ({"weight": ops.pack(torch.zeros(6, 4), "float32", gate_up=True)}, "activation"),
        ({"x": torch.zeros(2, 4, requires_grad=True)}, "x, bias and residual"),
        ({"weight": torch.zeros(3, 4), "activation": "gelu"}, "activation"),
        ({"weight": torch.zeros(3, 4), "residual": torch.zeros(2, 3)}, "residual"),
    ],
)
def test_bad_input_names_the_argument(backend: str, change: dict[str, Any], named: str) -> None:
    args: dict[str, Any] = {
        "x": torch.zeros(2, 4),
        "weight": ops.pack(torch.zeros(3, 4), "float32"),
    }
    with pytest.raises(ValueError, match=f"linear: {named} "):
        ops.linear(**(args | change))


def test_refuses_what_is_no_packing() -> None:
    x, packed, out = torch.zeros(2, 4), ops.pack(torch.zeros(3, 4), "float32"), torch.zeros(2, 3)
    call = compiled.packed_linear
    shifted = torch.zeros(packed.nbytes + 64, dtype=torch.uint8)[4:][: packed.nbytes]
    with pytest.raises(ValueError, match="linear: data must be uint8"):
        call(x, packed.data[:-1], None, None, "float32", 3, 4, False, "", out)
    with pytest.raises(ValueError, match="linear: data must be aligned"):
        call(x, shifted, None, None, "float32", 3, 4, False, "", out)
    with pytest.raises(ValueError, match="linear: format must be"):
        call(x, packed.data, None, None, "int3", 3, 4, False, "", out)
    with pytest.raises(ValueError, match="linear: x must have unit stride"):
        ops.linear(torch.zeros(4, 2).T, packed)
    with pytest.raises(ValueError, match="linear: x and weight must be bfloat16"):
        compiled.packed_linear_tiles(x, packed.data, None, None, "float32", 3, 4, False, "", out)


@pytest.mark.parametrize("activation", [None, "gelu", "silu_mul"])
def test_opcheck(activation: str | None) -> None:
    packed = ops.pack(torch.randn(10, 8), gate_up=activation == "silu_mul")
    for bias, residual in ((None, None), (torch.randn(10), torch.randn(3, packed.columns))):
        torch.library.opcheck(
            torch.ops.afnext.packed_linear.default,
            (torch.randn(3, 8), packed.data, bias, residual, packed.format, 10, 8, packed.gate_up,
             activation or ""),
        )  # fmt: skip


@pytest.mark.parametrize("activation", ["", "gelu", "silu_mul"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_many_rows_on_cuda_are_torchs_product_of_the_unpacked_weight(
    activation: str, with_residual: bool
) -> None:
    """That path, on the CPU in float32: its result is the kernel's but for the order of sums."""
    x, weight, bias = torch.randn(2, 40, 70), torch.randn(34, 70), torch.randn(34)
    gate_up = activation == "silu_mul"
    packed = ops.pack(weight, "float32", gate_up)
    residual = torch.randn(2, 40, packed.columns) if with_residual else None
    tail = (bias, residual, packed.kernel, packed.n, packed.k, gate_up, activation)
    got = multiply_unpacked(x.transpose(0, 1), packed.data, bias, None, *tail[2:])
    expected = ops.linear(
        x.transpose(0, 1).contiguous(), packed, bias, activation=activation or None
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)  # sums of 70, some large
    got = multiply_unpacked(x, packed.data, *tail)
    expected = ops.linear(x, packed, bias, activation=activation or None, residual=residual)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_many_rows_on_cuda_are_a_range_in_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    open_ranges: list[str] = []

    @contextmanager
    def range_of(name: str) -> Iterator[None]:
        open_ranges.append(name)
        yield
        open_ranges.pop()

    module = sys.modules[multiply_unpacked.__module__]
    monkeypatch.setattr(torch.cuda.nvtx, "range", range_of)
    monkeypatch.setattr(module, "multiply_unpacked", lambda *arguments: list(open_ranges))
    x = SimpleNamespace(is_cuda=True, shape=torch.Size([65, 8]), dtype=torch.bfloat16)
    assert module._packed(x, *[None] * 8) == ["linear"]  # type: ignore[attr-defined]
    assert open_ranges == []
