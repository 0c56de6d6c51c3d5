"""Reference cases for the driver of the C++ interface, ``python -m tests.cpp.make_cases FOLDER``.

Random but seeded inputs, results in float64 by plain torch. ``case.h`` describes the two files that this
writes. A new op adds a function that gives its calls to ``OPS``, and a line to ``ops.cpp``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import torch
from torch import Tensor

from afnext import ops
from afnext.ops import reference
from tests.cpp import decoder_cases, quantized_cases, serving_cases
from tests.cpp.calls import DTYPES, TOLERANCE, Call, Output, label, randn
from tests.ops.attention_oracle import Case, make_case, offsets, oracle, with_gradients
from tests.ops.paged_cache import empty_cache, fill

ERROR = 1e-4  # of log_mel: see tests/ops/test_log_mel.py


# --- a function an op ----------------------------------------------------------------------------------


def silu_mul() -> Iterator[Call]:
    def make(name: str, gate: Tensor, up: Tensor) -> Call:
        out = reference.silu_mul(gate.double(), up.double())
        return Call(name, {"gate": gate, "up": up}, {"out": Output(out, gate.dtype)})

    for dtype in DTYPES:
        for shape in [(1,), (3, 17), (2, 5, 64), (7, 100), (0, 16), (4, 0)]:
            yield make(
                f"{list(shape)} {label(dtype)}", *(randn(*shape, dtype=dtype) * 3 for _ in "gu")
            )
        halves = randn(9, 2 * 37, dtype=dtype)
        yield make(f"halves of one tensor {label(dtype)}", halves[:, :37], halves[:, 37:])
    call = make("misuse", randn(3, 8), randn(3, 8))
    yield call.misused("up", up=randn(3, 9))
    yield call.misused("up", up=randn(3, 8, dtype=torch.bfloat16))
    yield call.misused("gate", gate=randn(3, 8).double())
    yield call.misused("gate", gate=randn(3, 16)[:, ::2])
    yield call.misused("out", out=randn(3, 7))


def rms_norm() -> Iterator[Call]:
    def make(name: str, x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Call:
        inputs = {"x": x, "weight": weight}
        total = x.double()
        if residual is not None:
            inputs["residual"] = residual
            total = (x + residual).double()
        out, _ = reference.rms_norm(total, weight.double(), 1e-6, None)
        outputs = {"out": Output(out, x.dtype)}
        if residual is not None:
            outputs["total"] = Output(total, x.dtype)
        return Call(name, inputs, outputs, {"eps": 1e-6})

    for dtype in DTYPES:
        for shape in [(1, 1), (5, 63), (2, 3, 64), (4, 1000), (0, 8), (3, 0)]:
            x, weight = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
            yield make(f"{list(shape)} {label(dtype)}", x, weight)
            residual = randn(*shape, dtype=dtype)
            yield make(f"{list(shape)} {label(dtype)} with residual", x, weight, residual)
    call = make("misuse", randn(3, 8), randn(8), randn(3, 8))
    yield call.misused("weight", weight=randn(7))
    yield call.misused("weight", weight=randn(8, dtype=torch.bfloat16))
    yield call.misused("x", x=randn(3, 8).to(torch.int32))
    yield call.misused("residual", residual=None)
    yield call.misused("residual", residual=randn(2, 8))
    yield call.misused("total", total=randn(3, 16)[:, ::2])


def layer_norm() -> Iterator[Call]:
    def make(name: str, x: Tensor, pooled: Tensor | None = None) -> Call:
        weight, bias = (randn(x.shape[-1], dtype=x.dtype) for _ in "wb")
        inputs = {"x": x, "weight": weight, "bias": bias}
        inputs |= {} if pooled is None else {"pooled": pooled}
        doubles = (t.double() for t in (x, weight, bias))
        out = reference.layer_norm(*doubles, 1e-5, pooled)
        return Call(name, inputs, {"out": Output(out, x.dtype)}, {"eps": 1e-5})

    for dtype in DTYPES:
        for shape in [(1, 2), (5, 63), (2, 3, 64), (4, 1000), (0, 8)]:
            yield make(f"{list(shape)} {label(dtype)}", randn(*shape, dtype=dtype))
        pooled = torch.tensor([[0, 1], [5, 3], [2, 2]])
        yield make(f"pooled {label(dtype)}", randn(6, 40, dtype=dtype) + 3, pooled)
        yield make(f"strided {label(dtype)}", randn(6, 60, dtype=dtype)[:, 7:50])
    call = make("misuse", randn(3, 8), torch.tensor([[0, 2]]))
    yield call.misused("pooled", pooled=torch.tensor([[0, 3]]))
    yield call.misused("pooled", pooled=torch.tensor([[-1, 0]]))
    yield call.misused("bias", bias=randn(7))
    yield call.misused("x", x=randn(3, 8).double())
    yield call.misused("out", out=randn(2, 8))


def linear() -> Iterator[Call]:
    def make(name: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
        inputs = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
        out = reference.linear(x, weight, bias, torch.float64)
        exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        return Call(name, inputs, {"out": Output(exact, out.dtype)})

    for dtype in DTYPES:
        for rows in [(1,), (2, 3), (17,), (70,), (0,)]:
            for n, k in [(1, 1), (33, 65), (64, 128), (100, 300), (48, 0)]:
                x, weight = (
                    randn(*rows, k, dtype=dtype),
                    randn(n, k, dtype=dtype) / max(k, 1) ** 0.5,
                )
                bias = randn(n, dtype=dtype) if n % 2 else None
                yield make(f"{[*rows, k]} by {n} {label(dtype)}", x, weight, bias)
        weight = randn(40, 50, dtype=dtype)[::2, :33] / 33**0.5
        yield make(f"strided {label(dtype)}", randn(6, 60, dtype=dtype)[:, 5:38], weight)
    call = make("misuse", randn(3, 8), randn(5, 8), randn(5))
    yield call.misused("x", x=randn(3, 7))
    yield call.misused("weight", weight=randn(5, 8, dtype=torch.bfloat16))
    yield call.misused("weight", weight=randn(8, 5).T)
    yield call.misused("bias", bias=randn(4))
    yield call.misused("out", out=randn(3, 4))


def packed_linear() -> Iterator[Call]:
    activations = ("none", "gelu", "silu_mul")

    def make(
        name: str,
        x: Tensor,
        weight: Tensor,
        format: str,
        activation: str = "none",
        extra: bool = False,
    ) -> Call:
        n, k = weight.shape
        if format.startswith("int"):
            with ops.force_reference():
                of_weight = format.removesuffix(":int8")
                plain = of_weight.removesuffix("-zp")
                quantized = ops.quantize(weight, plain, zero_points=plain != of_weight)
            exact = quantized.dequantize(torch.float64)
            inputs = {"values": quantized.values, "scales": quantized.scales}
            inputs |= {} if quantized.zeros is None else {"zeros": quantized.zeros}
        else:
            exact, inputs = weight.double(), {"weight": weight}
        out = x.double() @ exact.T
        gate_up = activation == "silu_mul"
        if extra:
            inputs |= {"bias": randn(n, dtype=x.dtype)}
            inputs |= {"residual": randn(len(x), n // (1 + gate_up), dtype=x.dtype)}
            out = out + inputs["bias"].double()
        if activation == "gelu":
            out = torch.nn.functional.gelu(out)
        elif gate_up:
            out = torch.nn.functional.silu(out[:, : n // 2]) * out[:, n // 2 :]
        if extra:
            out = out + inputs["residual"].double()
        numbers = {"n": n, "k": k, "gate_up": gate_up, "activation": activations.index(activation)}
        # x is rounded to 16-bit integers for integer weights.
        loose = {torch.float32: (5e-4, 5e-4), torch.bfloat16: (1.6e-2, 1.6e-2)}[x.dtype]
        result = Output(out, x.dtype, tolerance=loose if "values" in inputs else None)
        return Call(name, {"x": x, **inputs}, {"out": result}, numbers, {"format": format})

    for dtype in DTYPES:
        for format in (label(dtype), "int8", "int8-g128", "int4-g128", "int4-g32", "int4-g32-zp"):
            for rows, n, k in [(1, 40, 65), (5, 96, 256), (33, 34, 130), (2, 2, 1), (0, 32, 32)]:
                x, weight = randn(rows, k, dtype=dtype), randn(n, k, dtype=dtype) / k**0.5
                name = f"{rows} x {k} by {n} {format} {label(dtype)}"
                yield make(name, x, weight, format)
                yield make(f"{name} gelu", x, weight, format, "gelu", True)
                yield make(f"{name} silu_mul", x, weight, format, "silu_mul", rows > 1)
        # x is rounded to 8-bit integers: this one without loss.
        for format in ("int8:int8", "int8-g128:int8", "int4-g32:int8", "int4-g128-zp:int8"):
            for rows, n, k in [(1, 40, 65), (33, 34, 260)]:
                x = quantized_cases.whole_rows(rows, k, block=128).to(dtype)
                name = f"{rows} x {k} by {n} {format} {label(dtype)}"
                yield make(name, x, randn(n, k, dtype=dtype) / k**0.5, format)
    call = make("misuse", randn(3, 8), randn(6, 8), "float32", "none", True)
    yield call.misused("x", x=randn(3, 7))
    yield call.misused("bias", bias=randn(5))
    yield call.misused("residual", residual=randn(3, 5))
    yield call.misused("activation", activation=2)
    yield call.misused("out", out=randn(3, 5))


def packed_linear_tiles() -> Iterator[Call]:
    """The kernels for AMX tiles, emulated where there are none. Tiles of integers take 8-bit x and no groups
    of 32; all others are of bfloat16, for x of that type."""
    for call in packed_linear():
        format = call.words["format"]
        of_integers = ":int8" in format and "g32" not in format
        of_bfloat16 = label(call.inputs["x"].dtype) == "bfloat16" and format != "float32"
        if (of_integers or of_bfloat16) and not call.throws:
            yield call


def log_mel() -> Iterator[Call]:
    def make(name: str, lengths: list[int], frames: list[int], loudness: float = 0.1) -> Call:
        samples = randn(sum(lengths)) * loudness
        cu_samples, cu_frames = (torch.tensor([0, *n]).cumsum(0) for n in (lengths, frames))
        out = reference.log_mel(samples, cu_samples.tolist(), frames)
        inputs = {"samples": samples, "cu_samples": cu_samples, "cu_frames": cu_frames}
        result = Output(out.double(), torch.float32, tolerance=(ERROR, 0.0))
        return Call(name, inputs, {"out": result})

    yield make("ends of windows", [1, 159, 160, 161, 399, 401], [3, 1, 5, 2, 4, 3])
    yield make("ragged", [5000, 0, 20_480, 333, 16_001], [32, 4, 128, 20, 101])
    yield make("30 s", [480_000], [3000])
    yield make("almost 30 s, quiet", [479_999], [3000], 1e-4)
    yield make("frames left out", [9000, 9000], [0, 10])
    yield make("no windows", [], [])
    yield make("no samples", [0, 0], [0, 0])
    broken = make("not a number", [4000, 4000], [25, 25])
    broken.inputs["samples"][100] = torch.nan
    broken.outputs["out"].expected[:25] = torch.nan
    yield broken
    call = make("misuse", [800, 800], [5, 5])
    yield call.misused("samples", samples=randn(1600).double())
    yield call.misused("cu_samples", cu_samples=torch.tensor([0, 900, 800]))
    yield call.misused("cu_samples", cu_samples=torch.tensor([0, 800, 1600], dtype=torch.int32))
    yield call.misused("cu_frames", cu_frames=torch.tensor([0, 5]))
    yield call.misused("cu_frames", cu_frames=torch.tensor([0, 5, 11]))
    yield call.misused("out", out=randn(10, 80))


def rotate() -> Iterator[Call]:
    def make(name: str, x: Tensor, half: int, angles: bool = False, **flags: bool) -> Call:
        numbers = {"interleaved": 0.0, "inverse": 0.0, **flags}
        times, inv_freq = (
            torch.rand(len(x)) * 1e6,
            10.0 ** -torch.linspace(0, 4, max(half, 1))[:half],
        )
        turn = {"times": times, "inv_freq": inv_freq}
        if angles:
            turn = {"angles": randn(len(x), half) * 100}
        arguments = (turn.get("times"), turn.get("inv_freq"), turn.get("angles"))
        flags_ = (bool(numbers["interleaved"]), bool(numbers["inverse"]))
        out = reference.rotate(x.double(), *arguments, *flags_)
        return Call(name, {"x": x, **turn}, {"out": Output(out, x.dtype)}, numbers)

    for dtype in DTYPES:
        for interleaved in (False, True):
            name = f"{label(dtype)}{' interleaved' if interleaved else ''}"
            for shape, half in [((5, 2, 64), 32), ((3, 3, 80), 20), ((4, 1, 7), 3), ((2, 2, 8), 0)]:
                yield make(
                    f"{list(shape)} {name}",
                    randn(*shape, dtype=dtype),
                    half,
                    interleaved=interleaved,
                )
            yield make(f"angles, inverse {name}", randn(6, 4, 128, dtype=dtype), 64, True,
                       interleaved=interleaved, inverse=True)  # fmt: skip
        yield make(f"strided {label(dtype)}", randn(5, 8, 64, dtype=dtype)[:, ::2, 16:48], 16)
        yield make(f"empty {label(dtype)}", randn(0, 2, 64, dtype=dtype), 32)
    call = make("misuse", randn(4, 2, 16), 8)
    yield call.misused("times", times=randn(3))
    yield call.misused("inv_freq", inv_freq=randn(8).double())
    yield call.misused("times", times=None)
    yield call.misused("angles", angles=randn(4, 8))
    yield call.misused("channels", inv_freq=randn(9))
    yield call.misused("x", x=randn(4, 32))
    yield call.misused("out", out=randn(4, 2, 15))


def attention_arguments(case: Case) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What attention takes besides q, k and v."""
    inputs = {"cu_seqlens_q": offsets(case.lengths_q), "cu_seqlens_k": offsets(case.lengths_k)}
    if case.key_lengths is not None:
        inputs["key_lengths"] = torch.tensor(case.key_lengths, dtype=torch.int32)
    if case.inv_freq is not None:
        assert case.times_q is not None
        assert case.times_k is not None
        inputs |= {"times_q": case.times_q, "times_k": case.times_k, "inv_freq": case.inv_freq}
    left, right = case.window or (-1, -1)
    numbers = {
        "interleaved": float(case.interleaved), "causal": float(case.causal), "window_left": left,
        "window_right": right, "scale": case.q.shape[2] ** -0.5,
    }  # fmt: skip
    return inputs, numbers


def attention_cases() -> Iterator[tuple[str, Case]]:
    """Ragged, grouped, masked, turned, of odd and large head dims, empty."""
    ragged, keys = [5, 0, 70, 9, 3], [40, 12, 90, 4, 0]
    for dtype in DTYPES:
        name = label(dtype)
        yield f"one token {name}", make_case([1], dtype=dtype)
        yield f"ragged {name}", make_case(ragged, keys, group=3, dtype=dtype)
        yield (
            f"causal, turned {name}",
            make_case(ragged, keys, dtype=dtype, causal=True, turned=True),
        )
        yield (
            f"window, interleaved {name}",
            make_case([40, 33], dim=48, dtype=dtype, window=(7, 3), turned=True, interleaved=True),
        )
        yield f"key lengths {name}", make_case([9, 20], [30, 20], dtype=dtype, key_lengths=[17, 0])
        for dim in (1, 7, 33, 128, 256):
            yield (
                f"head dim {dim} {name}",
                make_case([19], dim=dim, group=2, dtype=dtype, causal=True),
            )
        yield f"many blocks {name}", make_case([300], group=4, kv_heads=1, dtype=dtype, causal=True)
        yield f"no queries {name}", make_case([0], [8], dtype=dtype)
        yield f"no sequences {name}", make_case([], dtype=dtype)


def exact_attention(case: Case) -> tuple[Tensor, Tensor]:
    if not case.lengths_q:
        return torch.zeros(case.q.shape).double(), torch.zeros(case.q.shape[1], 0).double()
    out, lse = oracle(case, torch.float64)
    return out, lse


def attention() -> Iterator[Call]:
    def make(name: str, case: Case, partials: bool = False) -> Call:
        inputs, numbers = attention_arguments(case)
        out, lse = exact_attention(case)
        outputs = {
            "out": Output(out, torch.float32 if partials else case.q.dtype,
                          tolerance=TOLERANCE[case.q.dtype]),
            # A turned bfloat16 key is rounded before it meets its query.
            "lse": Output(lse, torch.float32, tolerance=TOLERANCE[case.q.dtype]),
        }  # fmt: skip
        return Call(name, {"q": case.q, "k": case.k, "v": case.v, **inputs}, outputs, numbers)

    for name, case in attention_cases():
        yield make(name, case)
    partial = make_case([20], [50], dtype=torch.bfloat16)
    yield make("float32 results of bfloat16", partial, partials=True)
    call = make("misuse", make_case([4, 5], turned=True))
    yield call.misused("k", k=randn(9, 3, 64), v=randn(9, 3, 64))
    yield call.misused("v", v=randn(8, 2, 64))
    yield call.misused("k", k=randn(9, 2, 64, dtype=torch.bfloat16))
    yield call.misused("q", q=randn(9, 2, 300), k=randn(9, 2, 300), v=randn(9, 2, 300))
    yield call.misused("cu_seqlens_q", cu_seqlens_q=torch.tensor([0, 4, 8], dtype=torch.int32))
    yield call.misused("cu_seqlens_k", cu_seqlens_k=torch.tensor([0, 9], dtype=torch.int32))
    yield call.misused("cu_seqlens_k", cu_seqlens_k=None)
    yield call.misused("key_lengths", key_lengths=torch.tensor([4, 6], dtype=torch.int32))
    yield call.misused("times_k", times_k=randn(8))
    yield call.misused("inv_freq", inv_freq=randn(40))
    yield call.misused("window", window_left=-2)
    yield call.misused("out", out=randn(9, 2, 63))
    yield call.misused("lse", lse=randn(9, 2))


def attention_backward() -> Iterator[Call]:
    def make(name: str, case: Case) -> Call:
        inputs, numbers = attention_arguments(case)
        out, lse = exact_attention(case)
        grad_out, grad_lse = torch.randn(out.shape).to(case.q.dtype), torch.randn(lse.shape)
        if case.lengths_q:
            exact = with_gradients(
                lambda c: oracle(c, torch.float64), case, grad_out, grad_lse, torch.float64
            )
        else:
            exact = {"dq": case.q.double(), "dk": case.k.double(), "dv": case.v.double()}
        inputs |= {
            "q": case.q, "k": case.k, "v": case.v, "grad_out": grad_out, "grad_lse": grad_lse,
            "out": out.to(case.q.dtype), "lse": lse.float(),
        }  # fmt: skip
        loose = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (8e-2, 2e-2)}[case.q.dtype]
        outputs = {
            f"grad_{t}": Output(exact[f"d{t}"], case.q.dtype, tolerance=loose) for t in "qkv"
        }
        return Call(name, inputs, outputs, numbers)

    for name, case in attention_cases():
        yield make(name, case)
    call = make("misuse", make_case([4, 5]))
    yield call.misused("grad_out", grad_out=randn(9, 2, 63))
    yield call.misused("grad_lse", grad_lse=randn(2, 8))
    yield call.misused("lse", lse=randn(2, 8))
    yield call.misused("grad_k", grad_k=randn(8, 2, 64))
    yield call.misused("cu_seqlens_k", cu_seqlens_k=torch.tensor([0, 5, 8], dtype=torch.int32))


def merge_attention() -> Iterator[Call]:
    def make(name: str, dtype: torch.dtype, tokens: int, heads: int, dim: int) -> Call:
        parts = [randn(tokens, heads, dim, dtype=dtype) for _ in "ab"]
        lses = [torch.randn(heads, tokens) * 5 for _ in "ab"]
        if tokens > 2:
            lses[0][:, 0] = lses[1][:, 1] = -torch.inf
            lses[0][:, 2] = lses[1][:, 2] = -torch.inf
        out, lse = reference.merge_attention(parts[0].double(), lses[0], parts[1].double(), lses[1])
        inputs = {"out_a": parts[0], "lse_a": lses[0], "out_b": parts[1], "lse_b": lses[1]}
        results = {"out": Output(out.contiguous(), dtype), "lse": Output(lse, torch.float32)}
        return Call(name, inputs, results)

    for dtype in DTYPES:
        for shape in [(7, 3, 64), (5, 2, 33), (1, 1, 1), (0, 2, 64)]:
            yield make(f"{list(shape)} {label(dtype)}", dtype, *shape)
    call = make("misuse", torch.float32, 4, 2, 8)
    yield call.misused("out_b", out_b=randn(4, 2, 9))
    yield call.misused("lse_a", lse_a=randn(4, 2))
    yield call.misused("out", out=randn(4, 2, 8, dtype=torch.bfloat16))


def paged_append() -> Iterator[Call]:
    def make(
        name: str, lengths: list[int], start: list[int], slots: int, dim: int, dtype: torch.dtype,
        half: int = 0, interleaved: bool = False,
    ) -> Call:  # fmt: skip
        total = [a + b for a, b in zip(start, lengths, strict=True)]
        cache = empty_cache(total, 2, slots, dim, dtype)
        k, v = (randn(sum(lengths), 2, dim, dtype=dtype) for _ in "kv")
        inputs = {
            "k": k, "v": v, "page_table": cache.table, "cu_seqlens": offsets(lengths),
            "start": torch.tensor(start, dtype=torch.int32),
        }  # fmt: skip
        turn: dict[str, Tensor] = {}
        if half:
            turn = {"times": torch.rand(len(k)) * 1e6, "inv_freq": torch.rand(half)}
        k_after, v_after = cache.k_pages.double(), cache.v_pages.double()
        reference.paged_append(
            k.double(), v.double(), k_after, v_after, cache.table, inputs["cu_seqlens"],
            inputs["start"], turn.get("times"), turn.get("inv_freq"), interleaved,
        )  # fmt: skip
        outputs = {
            "k_pages": Output(k_after, dtype, cache.k_pages),
            "v_pages": Output(v_after, dtype, cache.v_pages, (0.0, 0.0)),
        }
        return Call(name, inputs | turn, outputs, {"interleaved": float(interleaved)})

    for dtype in DTYPES:
        name = label(dtype)
        yield make(f"prefill {name}", [40, 0, 7], [0, 5, 9], 16, 64, dtype, 32)
        yield make(f"decode {name}", [1, 1, 1], [15, 16, 0], 16, 80, dtype, 20, True)
        yield make(f"odd slots {name}", [9, 20], [2, 0], 7, 33, dtype)
        yield make(f"nothing {name}", [0, 0], [3, 0], 8, 16, dtype, 8)
    yield from quantized_cases.paged_append()
    call = make("misuse", [3, 4], [0, 2], 8, 16, torch.float32, 8)
    table = call.inputs["page_table"]
    yield call.misused("page_table", page_table=torch.full_like(table, 99))
    yield call.misused("page_table", page_table=torch.full_like(table, -1))
    yield call.misused("page_table", page_table=table.long())
    yield call.misused("page_table", page_table=table[:1])
    yield call.misused("start", start=torch.tensor([0, -1], dtype=torch.int32))
    yield call.misused("start", start=torch.tensor([0, 2**31 - 1], dtype=torch.int32))
    yield call.misused("cu_seqlens", cu_seqlens=torch.tensor([0, 3, 8], dtype=torch.int32))
    yield call.misused("v", v=randn(7, 2, 15))
    yield call.misused("inv_freq", inv_freq=randn(9))
    yield call.misused("times", times=None)
    yield call.misused("k_pages", k_pages=randn(5, 3, 8, 16), v_pages=randn(5, 3, 8, 16))
    yield call.misused("v_pages", v_pages=randn(5, 2, 9, 16))


def paged_attention() -> Iterator[Call]:
    def make(name: str, case: Case, slots: int, half: int = 0) -> Call:
        cache = fill(case, slots)
        turn: dict[str, Tensor] = {}
        if half:  # keys were turned when they were appended
            case.times_q, case.times_k = torch.rand(len(case.q)) * 1e6, torch.zeros(len(case.k))
            case.inv_freq = torch.rand(half)
            turn = {"times": case.times_q, "inv_freq": case.inv_freq}
        _, numbers = attention_arguments(case)
        out, lse = exact_attention(case)
        inputs = {
            "q": case.q, "k_pages": cache.k_pages, "v_pages": cache.v_pages,
            "page_table": cache.table, "cu_seqlens_q": offsets(case.lengths_q),
            "kv_lengths": cache.lengths, **turn,
        }  # fmt: skip
        tolerance = TOLERANCE[case.q.dtype]
        outputs = {
            "out": Output(out, case.q.dtype), "lse": Output(lse, torch.float32, tolerance=tolerance),
        }  # fmt: skip
        return Call(name, inputs, outputs, numbers)

    ragged, keys = [5, 0, 70, 9, 3], [40, 12, 90, 4, 0]
    for dtype in DTYPES:
        name = label(dtype)
        decode = make_case([1] * 4, [1, 0, 33, 150], group=7, dim=128, dtype=dtype, causal=True)
        yield make(f"decode {name}", decode, 16, 64)
        yield make(f"chunks {name}", make_case(ragged, keys, group=2, dtype=dtype, causal=True), 16)
        window = make_case(
            ragged, keys, group=3, dim=40, dtype=dtype, window=(9, 4), interleaved=True
        )
        yield make(f"window {name}", window, 7, 10)
        split = make_case([1, 2], [1100, 2049], kv_heads=1, group=5, dtype=dtype, causal=True)
        yield make(f"split keys {name}", split, 48)
        for dim in (1, 17, 256):
            yield make(
                f"head dim {dim} {name}", make_case([7], [37], group=3, dim=dim, dtype=dtype), 16
            )
        yield make(f"no queries {name}", make_case([0], [8], dtype=dtype), 4)
    yield from quantized_cases.paged_attention()
    call = make("misuse", make_case([2, 3], [9, 4]), 8, 16)
    table = call.inputs["page_table"]
    yield call.misused("page_table", page_table=torch.full_like(table, 99))
    yield call.misused("page_table", page_table=table.double())
    yield call.misused("kv_lengths", kv_lengths=torch.tensor([9, 4000], dtype=torch.int32))
    yield call.misused("kv_lengths", kv_lengths=torch.tensor([-1, 4], dtype=torch.int32))
    yield call.misused("cu_seqlens_q", cu_seqlens_q=torch.tensor([0, 2, 6], dtype=torch.int32))
    yield call.misused("k_pages", k_pages=randn(6, 2, 8, 63), v_pages=randn(6, 2, 8, 63))
    yield call.misused("v_pages", v_pages=randn(6, 2, 7, 64))
    yield call.misused("inv_freq", inv_freq=randn(33))
    yield call.misused("window", window_right=-2)
    yield call.misused("q", q=randn(5, 2, 64).to(torch.float16))


OPS: tuple[Callable[[], Iterator[Call]], ...] = (
    serving_cases.all_to_all_pack, serving_cases.all_to_all_unpack, attention, attention_backward,
    decoder_cases.decoder, layer_norm, linear, log_mel, merge_attention, quantized_cases.pack,
    packed_linear, packed_linear_tiles, paged_append, paged_attention, quantized_cases.quantize,
    rms_norm, rotate, serving_cases.sample, silu_mul,
)  # fmt: skip


# --- the files -----------------------------------------------------------------------------------------


def append(data: BinaryIO, tensor: Tensor) -> int:
    """Write the elements row by row; returns where."""
    place = data.tell()
    packed = tensor.contiguous()
    data.write(packed.flatten().view(torch.uint8).numpy().tobytes() if packed.numel() else b"")
    return place


def write(op: str, call: Call, text: TextIO, data: BinaryIO) -> None:
    text.write(f"case {op} {call.name}\n")
    for name, value in call.numbers.items():
        text.write(f"number {name} {float(value)!r}\n")

    for name, word in call.words.items():
        text.write(f"word {name} {word}\n")

    def tensor(name: str, like: Tensor, dtype: torch.dtype, rest: str) -> None:
        shape, stride = (",".join(map(str, n)) for n in (like.shape, like.stride()))
        text.write(f"tensor {name} {label(dtype)} {shape} {stride} {rest}\n")

    for name, value in call.inputs.items():
        tensor(name, value, value.dtype, f"{append(data, value)} - 0 0")
    for name, output in call.outputs.items():
        atol, rtol = output.tolerance or TOLERANCE.get(output.dtype, (0.0, 0.0))
        before = "-" if output.before is None else append(data, output.before)
        expected = append(data, output.expected.double())
        tensor(name, output.expected, output.dtype, f"{before} {expected} {atol} {rtol}")
    if call.throws:
        text.write(f"throws {call.throws}\n")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cases.txt").open("w") as text, (folder / "cases.bin").open("wb") as data:
        for make in OPS:
            torch.manual_seed(0)
            for call in make():
                write(make.__name__, call, text, data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
