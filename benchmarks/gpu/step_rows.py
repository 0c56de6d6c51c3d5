"""A whole decode step in a CUDA graph: a 7B model's beside torch's ops, nano's beside empty launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops

from ..case import Case
from .lab import Lab
from .linear_rows import another, packed
from .row import Row

SLOTS = 64
CALLS = 8  # of ours, a layer


@dataclass(frozen=True)
class Geometry:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    ffn: int
    vocabulary: int
    held: int  # tokens in the cache

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        qkv = (self.heads + 2 * self.kv_heads) * self.dim
        return {
            "qkv": (qkv, self.hidden),
            "out": (self.hidden, self.heads * self.dim),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }


GEOMETRIES = {
    "7B": Geometry(28, 3584, 28, 4, 128, 18944, 152064, 2048),
    "nano": Geometry(4, 256, 4, 2, 64, 768, 1132, 512),
    "tiny": Geometry(2, 64, 4, 2, 16, 64, 64, 70),
}


def our_step(lab: Lab, g: Geometry, format: str) -> tuple[Callable[[], Tensor], float]:
    """One token through all layers, by our ops on buffers that stay where they are; the bytes it reads.

    All layers have the same numbers, each in memory of its own.
    """
    first = {
        name: packed(lab, n, k, format, name == "gate_up") for name, (n, k) in g.shapes.items()
    }
    layers = [{name: another(w) for name, w in first.items()} for _ in range(g.layers)]
    head = packed(lab, g.vocabulary, g.hidden, format)
    norm = torch.ones(g.hidden, dtype=torch.bfloat16, device=lab.device)
    pages = -(-g.held // SLOTS)
    caches = [
        [lab.random(pages, g.kv_heads, SLOTS, g.dim) for _ in range(2)] for _ in range(g.layers)
    ]
    every: Any = ops  # plans are of CUDA's column
    plan = every.PagedAttentionPlan(caches[0][0], g.heads, max_requests=1, max_pages=pages)
    plan.update(
        torch.arange(pages).int()[None], torch.tensor([0, 1]).int(), torch.tensor([g.held]).int()
    )
    x = lab.random(1, g.hidden)
    times = torch.tensor([g.held - 1], device=lab.device)
    turn = times, (1e6 ** -(torch.arange(0, g.dim, 2) / g.dim)).to(lab.device)

    def step() -> Tensor:
        total, branch = x, torch.zeros_like(x)
        for weights, (k_pages, v_pages) in zip(layers, caches, strict=True):
            normed, total = ops.rms_norm(total, norm, 1e-6, branch)
            qkv = ops.linear(normed, weights["qkv"]).view(1, -1, g.dim)
            q, k, v = qkv.split((g.heads, g.kv_heads, g.kv_heads), 1)
            plan.append(k, v, k_pages, v_pages, rotation=turn)
            out, _ = plan.attend(q, k_pages, v_pages, rotation=turn)
            branch = ops.linear(out.view(1, -1), weights["out"])
            normed, total = ops.rms_norm(total, norm, 1e-6, branch)
            gated = ops.linear(normed, weights["gate_up"], activation="silu_mul")
            branch = ops.linear(gated, weights["down"])
        return ops.linear(ops.rms_norm(total, norm, 1e-6, branch)[0], head)

    cache = 2.0 * g.layers * 2 * g.held * g.kv_heads * g.dim
    return step, g.layers * sum(w.nbytes for w in first.values()) + head.nbytes + cache


def torch_step(lab: Lab, g: Geometry) -> Callable[[], Tensor]:
    """The same in torch's ops and bfloat16, keys and values contiguous, nothing appended or turned."""
    layers = [
        {name: lab.random(n, k) * k**-0.5 for name, (n, k) in g.shapes.items()}
        for _ in range(g.layers)
    ]
    head = lab.random(g.vocabulary, g.hidden)
    caches = [[lab.random(1, g.kv_heads, g.held, g.dim) for _ in range(2)] for _ in range(g.layers)]
    norm = torch.ones(g.hidden, dtype=torch.bfloat16, device=lab.device)
    x = lab.random(1, g.hidden)

    def step() -> Tensor:
        total = x
        for weights, (k, v) in zip(layers, caches, strict=True):
            qkv = F.linear(F.rms_norm(total, (g.hidden,), norm, 1e-6), weights["qkv"])
            q = qkv.view(1, -1, 1, g.dim)[:, : g.heads]
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            total = total + F.linear(out.reshape(1, -1), weights["out"])
            both = F.linear(F.rms_norm(total, (g.hidden,), norm, 1e-6), weights["gate_up"])
            gate, up = both.chunk(2, -1)
            total = total + F.linear(F.silu(gate) * up, weights["down"])
        return F.linear(F.rms_norm(total, (g.hidden,), norm, 1e-6), head)

    return step


def decode_step(lab: Lab, model: str, format: str) -> Case:
    g = GEOMETRIES["tiny" if lab.rehearse else model]
    step, size = our_step(lab, g, format)
    peers: dict[str, Callable[[], object]]
    if model == "nano":
        launches = CALLS * g.layers + 2
        one = torch.zeros(1, device=lab.device)

        def empty() -> None:
            for _ in range(launches):
                one.add_(1)

        peers = {f"{launches} empty launches": lab.captured(empty)}
    else:
        peers = {"torch, bfloat16": lab.captured(torch_step(lab, g))}
    return Case(
        f"{model}, one token, {format}, {g.held} held",
        ours=lab.captured(step),
        peers=peers,
        bytes=size,
        dtype="bfloat16",
    )


NEEDS = ("add_rms_norm", "packed_linear", "paged_append", "paged_attention")
ROWS = [
    Row("decode_step", decode_step, {"model": model, "format": format}, needs=NEEDS)
    for model, format in (
        ("7B", "bfloat16"), ("7B", "int4-g128"), ("nano", "bfloat16"), ("7B", "int8"),
    )
]  # fmt: skip
