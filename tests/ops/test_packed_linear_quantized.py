"""linear with int8 and int4 weights: float64 on the same integers, tails, epilogues, outliers, files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from afnext import ops
from afnext.ops import PackedWeight, QuantizedWeight, reference, runtime
from afnext.ops._compiled import compiled

FLOATS = [torch.float32, torch.bfloat16]
FORMATS = [
    ("int8", False),
    ("int8-g128", False),
    ("int4-g128", False),
    ("int4-g128", True),
    ("int4-g32", False),
    ("int4-g32", True),
]
formats = pytest.mark.parametrize(("format", "zero_points"), FORMATS)

# What rounding x to integers may cost, of the size of the products: a step is 1 / 32512 (or 1 / 127)
# of the largest of 128 or 512 neighbours, which is 2.5 to 5 times the root mean square.
ROUNDING = {"int16": 1e-4, "int8": 1.5e-2}
OUTPUT = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}


@pytest.fixture(
    params=[*runtime.available_cpu_isas("packed_linear_quantized"), "reference", "tiles"]
)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every instruction set, plain torch, and the kernels for AMX tiles (emulated where there are none)
    for what they serve."""
    before = runtime.cpu_isa()
    if request.param == "tiles":
        usual, tiles = compiled.packed_linear, compiled.packed_linear_tiles

        def call(*args: Any) -> None:
            of_integers = ":int8" in args[4] and "g32" not in args[4]
            fits = of_integers or args[0].dtype == torch.bfloat16
            (tiles if fits else usual)(*args)

        monkeypatch.setattr(compiled, "packed_linear", call)
    elif request.param != "reference":
        runtime.set_cpu_isa(request.param)
    with ops.force_reference() if request.param == "reference" else nullcontext():
        yield request.param
    runtime.set_cpu_isa(before)


def weights(n: int, k: int, format: str, zero_points: bool = False) -> QuantizedWeight:
    return ops.quantize(torch.randn(n, k), format, zero_points=zero_points)


def oracle(
    x: Tensor, q: QuantizedWeight, bias: Tensor | None = None, square: bool = False
) -> Tensor:
    weight = q.dequantize(torch.float64)
    return F.linear(
        x.double(), weight.square() if square else weight, None if bias is None else bias.double()
    )


def assert_near(
    out: Tensor,
    expected: Tensor,
    activations: str,
    x: Tensor | None = None,
    q: QuantizedWeight | None = None,
) -> None:
    """Norms agree. For x @ q, where sums of few outputs may cancel, the products' size counts too."""
    assert out.shape == expected.shape
    size = expected.norm()
    if x is not None and q is not None:
        size = max(size, oracle(x.double().square(), q, square=True).sum().sqrt())
    if size > 0:
        off = ((out.double() - expected).norm() / size).item()
        assert off < ROUNDING[activations] + OUTPUT[out.dtype], off


@formats
@pytest.mark.parametrize("gate_up", [False, True])
@pytest.mark.parametrize("shape", [(2, 1), (34, 131), (70, 256), (0, 9), (6, 0)])
def test_a_packing_holds_the_weight(
    format: str, zero_points: bool, gate_up: bool, shape: tuple[int, int]
) -> None:
    q = weights(*shape, format, zero_points)
    packed = ops.pack(q, gate_up=gate_up)
    assert torch.equal(packed.unpack(), q.dequantize())
    assert packed.data.numel() == packed.nbytes
    # The plain-torch reader knows the layout too.
    theirs = reference.unpack(packed.data, packed.format, *shape, gate_up)
    assert torch.equal(theirs, q.dequantize())


# Tiles of 1 to 14 rows on every level, one and two of them; panels and blocks whole and broken.
@formats
@pytest.mark.parametrize("activations", ["int16", "int8"])
@pytest.mark.parametrize("m", [0, 1, 4, 7, 15, 33])
def test_matches_float64(
    path: str, format: str, zero_points: bool, activations: str, m: int
) -> None:
    for n, k in ((0, 5), (1, 1), (33, 128), (70, 259), (5, 0)):
        if path == "reference" and m not in (1, 15):
            continue  # rows are all alike there
        q = weights(n, k, format, zero_points)
        packed = ops.pack(q, activations=activations)
        dtype = FLOATS[(m + n) % 2]
        x = torch.randn(m, k).to(dtype)
        bias = torch.randn(n).to(dtype) if n % 2 else None
        assert_near(ops.linear(x, packed, bias), oracle(x, q, bias), activations, x, q)


@pytest.mark.parametrize(("format", "zero_points"), [("int8", False), ("int4-g32", True)])
@pytest.mark.parametrize("activations", ["int16", "int8"])
@pytest.mark.parametrize(("m", "n", "k"), [(2, 515, 2600), (300, 129, 1100), (1030, 40, 96)])
def test_large(
    path: str, format: str, zero_points: bool, activations: str, m: int, n: int, k: int
) -> None:
    q = weights(n, k, format, zero_points)
    x = torch.randn(m, k)
    out = ops.linear(x, ops.pack(q, activations=activations))
    assert_near(out, oracle(x, q), activations)


def test_weight_only_is_within_a_quarter_percent_on_a_real_shape() -> None:
    """And far within: 16-bit integers of x are finer than the bfloat16 that they come from."""
    q = weights(640, 3584, "int4-g128")
    x = torch.randn(64, 3584).bfloat16()
    packed = ops.pack(q, activations="int16")
    out, expected = ops.linear(x.float(), packed), oracle(x, q)
    assert (out - expected).norm() < 4e-5 * expected.norm()
    assert (ops.linear(x, packed) - expected).norm() < 2.5e-3 * expected.norm()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("format", ["int8", "int4-g32"])
def test_epilogues(path: str, dtype: torch.dtype, m: int, format: str) -> None:
    q = weights(84, 150, format)
    x, bias = torch.randn(m, 150).to(dtype), torch.randn(84).to(dtype)
    residual, narrow = torch.randn(m, 84).to(dtype), torch.randn(m, 42).to(dtype)
    packed = ops.pack(q, activations="int16")
    wide = oracle(x, q, bias)
    out = ops.linear(x, packed, bias, activation="gelu", residual=residual)
    assert_near(out, F.gelu(wide) + residual.double(), "int16")
    gate_up = ops.pack(q, gate_up=True, activations="int16")
    out = ops.linear(x, gate_up, bias, activation="silu_mul", residual=narrow)
    assert_near(out, F.silu(wide[:, :42]) * wide[:, 42:] + narrow.double(), "int16")


@pytest.mark.parametrize("activations", ["int16", "int8"])
def test_an_outlier_spoils_its_block_alone(path: str, activations: str) -> None:
    """Columns of the weight outside the outlier's block of 128 see the error of Gaussian rows."""
    weight = torch.randn(48, 512)
    weight[:, 128:256] = 0
    q = ops.quantize(weight, "int8-g128")
    x = torch.randn(3, 512)
    x[1, 200] = 1e4
    assert_near(ops.linear(x, ops.pack(q, activations=activations)), oracle(x, q), activations)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("m", [3, 20])
def test_nan_and_infinity_make_their_row_nan_and_no_other(path: str, bad: float, m: int) -> None:
    q = weights(40, 300, "int4-g128")
    x = torch.randn(m, 300)
    x[1, 150] = bad
    for activations in ("int16", "int8"):
        out = ops.linear(x, ops.pack(q, activations=activations))
        if path != "reference":  # where an infinity stays one
            assert out[1].isnan().all()
        assert not out[1].isfinite().any()
        rest = [i for i in range(m) if i != 1]
        assert_near(out[rest], oracle(x[rest], q), activations)


def test_rows_of_zeros_and_of_extremes(path: str) -> None:
    q = weights(33, 200, "int8")
    x = torch.randn(4, 200) * torch.tensor([0.0, 1e-25, 1e25, 1.0])[:, None]
    out, expected = ops.linear(x, ops.pack(q)), oracle(x, q)
    assert (out[0] == 0).all()
    for row in (1, 2, 3):
        assert_near(out[row], expected[row], "int16")


@pytest.mark.parametrize("activations", ["int16", "int8"])
@pytest.mark.parametrize("m", [1, 9, 100])
def test_threads_and_other_rows_change_no_bit(activations: str, m: int) -> None:
    packed = ops.pack(weights(1500, 700, "int4-g32"), activations=activations)
    x = torch.randn(m, 700)
    before = runtime.num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            runtime.set_num_threads(threads)
            results.append(ops.linear(x, packed))
    finally:
        runtime.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results[1:])
    assert torch.equal(ops.linear(x[m // 2], packed), results[0][m // 2])


def test_views_leading_dimensions_and_numpy(path: str) -> None:
    q = weights(20, 37, "int8")
    packed = ops.pack(q)
    wide = torch.randn(6, 100)[:, 3:40]
    deep = torch.randn(4, 3, 37).transpose(0, 1)  # no even distance between its rows
    expected = oracle(wide, q)
    assert_near(ops.linear(wide, packed), expected, "int16")
    assert_near(ops.linear(deep, packed), oracle(deep, q), "int16")
    assert_near(torch.from_numpy(ops.linear(wide.numpy(), packed)), expected, "int16")


def test_pack_quantizes_what_is_plain() -> None:
    weight = torch.randn(40, 64)
    for format, activations in (("int8", "int16"), ("int4-g32", "int8")):
        packed = ops.pack(weight, format)
        same = ops.pack(ops.quantize(weight, format))
        assert torch.equal(packed.data, same.data)
        assert (packed.format, packed.activations) == (format, activations)


def test_bad_input_names_the_argument(path: str) -> None:
    q = weights(4, 8, "int4-g32", True)
    for call, said in (
        (lambda: ops.pack(q, "int8"), "pack: format must be int4-g32"),
        (lambda: ops.pack(torch.zeros(2, 2), "int3"), "pack: format must be float32"),
        (lambda: ops.pack(q, activations="int4"), "pack: activations must be int16, int8 or auto"),
        (lambda: ops.pack(torch.zeros(2, 2), activations="int8"), "pack: activations are for"),
        (lambda: ops.pack(weights(3, 8, "int8"), gate_up=True), "pack: weight must have an even"),
        (lambda: ops.linear(torch.zeros(2, 9), ops.pack(q)), r"linear: x must be \[..., 8\]"),
        (lambda: ops.linear(torch.zeros(2, 8).double(), ops.pack(q)), "linear: x must be float32"),
        (lambda: ops.linear(torch.zeros(2, 8), ops.pack(q), torch.zeros(5)), "linear: bias must"),
        (
            lambda: QuantizedWeight(q.values, q.scales.float(), q.zeros, q.format, q.shape),
            "QuantizedWeight: scales must be bfloat16",
        ),
        (
            lambda: ops.linear(
                torch.zeros(2, 8), PackedWeight(torch.zeros(64, dtype=torch.uint8), "int8", 4, 8)
            ),
            "linear: data must be",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_opcheck() -> None:
    for q, activations in product(
        (weights(34, 40, "int8"), weights(34, 40, "int4-g32", True)), ("int16", "int8")
    ):
        p = ops.pack(q, activations=activations)
        torch.library.opcheck(
            torch.ops.afnext.packed_linear.default,
            (torch.randn(3, 40), p.data, torch.randn(34), None, p.kernel, 34, 40, False, "gelu"),
        )


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    plain = torch.randn(34, 70)
    source = ops.fingerprint(plain)
    named = {
        "a": ops.pack(ops.quantize(plain, "int4-g32", zero_points=True), gate_up=True),
        "b": ops.pack(plain, "int8", activations="int8"),
        "c": ops.pack(torch.randn(34, 1000), "float32"),
    }
    ops.save_packed(path, named, source)
    again = ops.load_packed(path, source)
    assert set(again) == set(named)
    for name, packed in named.items():
        assert torch.equal(again[name].data, packed.data)
        assert again[name].kernel == packed.kernel
        assert (again[name].n, again[name].k) == (34, packed.k)
        assert again[name].gate_up == packed.gate_up
    x = torch.randn(3, 70)
    assert torch.equal(ops.linear(x, again["b"]), ops.linear(x, named["b"]))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing is left beside it

    # A large one is not copied: a change of the file is seen.
    assert all(w.data.data_ptr() % 64 == 0 for w in again.values())
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([data[-1] ^ 255]))
    assert int(again["c"].data[-1]) == data[-1] ^ 255
    path.write_bytes(data)

    with pytest.raises(ValueError, match="packed from other weights"):
        ops.load_packed(path, ops.fingerprint(plain + 1))
    assert ops.fingerprint(plain) != ops.fingerprint(plain.view(70, 34))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="holds no packed weights"):
        ops.load_packed(path)
    meta = {"layout": "tiles16-v7", "source": "", "weights": "{}"}
    save_file({"a": torch.zeros(3)}, path, meta)
    with pytest.raises(ValueError, match="has layout 'tiles16-v7'"):
        ops.load_packed(path)
    short = '{"a": {"format": "int8", "n": 4, "k": 8, "gate_up": false, "activations": null}}'
    save_file(
        {"a": torch.zeros(3, dtype=torch.uint8)},
        path,
        meta | {"layout": ops.PackedWeight.layout, "weights": short},
    )
    with pytest.raises(ValueError, match="PackedWeight: data must be"):
        ops.load_packed(path)
    packed = ops.pack(torch.randn(34, 70), "int8")
    described = short.replace('"n": 4, "k": 8', '"n": 34, "k": 70')
    for pad in ("", " " * 8):  # bytes that lie as they come: copied where they are not aligned
        said = meta | {"layout": ops.PackedWeight.layout, "weights": described, "pad": pad}
        save_file({"a": packed.data}, path, said)
        found = ops.load_packed(path)["a"].data
        assert torch.equal(found, packed.data)
        assert found.data_ptr() % 64 == 0
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="is not readable"):
        ops.load_packed(path)
    foreign = PackedWeight(torch.zeros(0, dtype=torch.uint8), "int8", 0, 0, layout="other")
    with pytest.raises(ValueError, match="a has layout 'other'"):
        ops.save_packed(path, {"a": foreign})
    assert path.read_bytes() == b"not safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_activations_are_chosen(path: str, dtype: torch.dtype) -> None:
    """Many rows of Gaussian numbers are multiplied in 8 bits, with outliers or few rows in 16; to the bit."""
    if path == "reference":
        pytest.skip("plain torch keeps x as it is")
    has_tiles = "amx" in runtime.available_cpu_isas("packed_linear_quantized")
    if path == "tiles" and dtype is torch.float32 and not has_tiles:
        pytest.skip("what is decided here is computed by another kernel than 8 bits asked for")
    weight = ops.quantize(torch.randn(70, 300), "int8")
    fixed = {bits: ops.pack(weight, activations=f"int{bits}") for bits in (8, 16)}
    auto = ops.pack(weight, activations="auto")

    def chosen(x: Tensor) -> int:
        out = ops.linear(x, auto)
        (bits,) = [b for b, packed in fixed.items() if torch.equal(ops.linear(x, packed), out)]
        return bits

    x = torch.randn(40, 300).to(dtype)
    assert chosen(x) == 8
    assert chosen(x[:15]) == 16
    assert chosen(x * 1e15) == 8
    outliers = x.clone()
    outliers[:, 7] *= 100  # the other 127 of its group are left with a step of 2
    outliers[:, 150:] *= 10
    assert chosen(outliers) == 16
    broken = x.clone()
    broken[3, 5] = torch.nan
    assert ops.linear(broken, auto)[3].isnan().all()
    good = [i for i in range(40) if i != 3]
    assert torch.equal(ops.linear(broken, auto)[good], ops.linear(broken, fixed[16])[good])
