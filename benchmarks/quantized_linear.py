"""Linear layers with int8 and int4 weights beside torch's quantised and bfloat16 ones, and the limits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops

from .packed_linear import torch_prepacked
from .timing import bandwidth, compare, milliseconds, peak_flops

SHAPES = [(18944, 3584), (3584, 18944)]  # (N, K): 7B's gate or up and down projections
ROWS = [1, 4, 8, 64, 512]
CACHE = 256 << 20  # weights that together exceed the caches, as the layers of a model do
OURS = [
    ("int8", "int16"),
    ("int8", "int8"),
    ("int4-g128", "int16"),
    ("int4-g128", "int8"),
    ("int4-g32", "int8"),
]
SLOWER_PEERS = 64  # rows beyond which torch's int4 and int8 kernels take seconds


def _rotate(make: Callable[[], Tensor], count: int) -> Callable[[], Tensor]:
    made = cycle([make() for _ in range(count)])
    return lambda: next(made)


def peers(m: int, n: int, k: int, x: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    """torch's own ways to the same product."""

    def count(bits: int) -> int:
        return max(1, -(-CACHE * 8 // (n * k * bits))) if m <= SLOWER_PEERS else 1

    plain = _rotate(weight.clone, count(16))
    calls: dict[str, Callable[[], object]] = {
        "torch F.linear bfloat16": lambda: F.linear(x, plain())
    }
    if torch.backends.mkldnn.is_available():
        theirs = _rotate(lambda: torch_prepacked(weight, m), count(16))
        linear = torch.ops.mkldnn._linear_pointwise
        calls["torch bfloat16, prepacked by oneDNN"] = lambda: linear(
            x, theirs(), None, "none", [], ""
        )
    int8 = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    transposed = _rotate(lambda: int8.clone().T, count(8))
    rounded = torch.randint(-127, 128, (max(m, 17), k), dtype=torch.int8)  # what it takes at least
    calls["torch _int_mm, x given as int8"] = lambda: torch._int_mm(rounded, transposed())
    if m <= SLOWER_PEERS:
        scales = torch.rand(n).bfloat16()
        bytes_ = _rotate(int8.clone, count(8))
        calls["torch _weight_int8pack_mm"] = lambda: torch._weight_int8pack_mm(x, bytes_(), scales)
        int4 = torch.randint(0, 16, (n, k), dtype=torch.int32)
        nibbles = _rotate(lambda: torch._convert_weight_to_int4pack_for_cpu(int4, 1), count(4))
        groups = torch.rand(k // 128, n, 2).bfloat16()
        calls["torch _weight_int4pack_mm g128"] = lambda: torch._weight_int4pack_mm_for_cpu(
            x, nibbles(), 128, groups
        )
    return calls


def run(
    shapes: list[tuple[int, int]] = SHAPES,
    rows: list[int] = ROWS,
    formats: list[tuple[str, str]] = OURS,
    with_peers: bool = True,
) -> None:
    """Print the table: our formats as ``weights/activations``, then torch's."""
    with torch.inference_mode():
        memory, peak = bandwidth(), peak_flops(2048, torch.bfloat16)
        print(f" memory {memory / 1e9:.1f} GB/s, bfloat16 matrix product {peak / 1e9:.0f} GFLOP/s")
        for n, k in shapes:
            weight = torch.randn(n, k).bfloat16()
            quantized = {format: ops.quantize(weight, format) for format in {f for f, _ in formats}}
            for m in rows:
                print(f" [{m}, {k}] x [{n}, {k}]")
                x = torch.randn(m, k).bfloat16()
                calls: dict[str, Callable[[], object]] = {}
                sizes = {}
                for format, activations in formats:
                    first = ops.pack(quantized[format], activations=activations)
                    count = max(1, -(-CACHE // first.nbytes)) if m <= SLOWER_PEERS else 1
                    others = [
                        ops.pack(quantized[format], activations=activations)
                        for _ in range(count - 1)
                    ]
                    packed = cycle([first, *others])
                    name = f"ops.linear {format}/{activations}"
                    calls[name] = lambda x=x, p=packed: ops.linear(x, next(p))  # type: ignore[misc]
                    sizes[name] = first.nbytes
                if with_peers:
                    calls |= peers(m, n, k, x, weight)
                timings = compare(calls, 5 if m > SLOWER_PEERS else 9)
                for name, size in sizes.items():
                    seconds = timings[name].median
                    print(
                        f"  {name.removeprefix('ops.linear '):16} {size / seconds / 1e9:5.3g} GB/s, "
                        f"{2 * m * n * k / seconds / 1e9:5.3g} GFLOP/s; limit: memory "
                        f"{milliseconds(size / memory)}, bfloat16 {milliseconds(2 * m * n * k / peak)}"
                    )
