"""Ops that move memory: norms, gates, rotation, merging, the features of audio."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from afnext import ops

from ..case import Case
from .lab import Lab
from .row import Row

BF16 = 2  # bytes


def rms_norm(lab: Lab, rows: int, width: int, residual: bool) -> Case:
    weight = lab.random(width)
    parts = 4 if residual else 2
    inputs = lab.rotated(
        lambda: (lab.random(rows, width), lab.random(rows, width)), parts * BF16 * rows * width
    )

    def ours() -> object:
        x, extra = inputs()
        return ops.rms_norm(x, weight, 1e-6, extra if residual else None)

    def theirs() -> object:
        x, extra = inputs()
        return F.rms_norm(x + extra if residual else x, (width,), weight, 1e-6)

    return Case(
        f"[{rows}, {width}]{' + residual' * residual}",
        ours=ours,
        peers={"torch": theirs},
        bytes=parts * BF16 * rows * width,
        dtype="bfloat16",
    )


def layer_norm(lab: Lab, rows: int, width: int) -> Case:
    weight, bias = lab.random(width), lab.random(width)
    size = 2 * BF16 * rows * width
    inputs = lab.rotated(lambda: lab.random(rows, width), size)
    return Case(
        f"[{rows}, {width}]",
        ours=lambda: ops.layer_norm(inputs(), weight, bias),
        peers={"torch": lambda: F.layer_norm(inputs(), (width,), weight, bias)},
        bytes=size,
        dtype="bfloat16",
    )


def silu_mul(lab: Lab, rows: int, width: int) -> Case:
    size = 3 * BF16 * rows * width
    inputs = lab.rotated(lambda: (lab.random(rows, width), lab.random(rows, width)), size)

    def theirs() -> object:
        gate, up = inputs()
        return F.silu(gate) * up

    return Case(
        f"[{rows}, {width}]",
        ours=lambda: ops.silu_mul(*inputs()),
        peers={"torch": theirs},
        bytes=size,
        dtype="bfloat16",
    )


def rotate(lab: Lab, tokens: int, heads: int, dim: int) -> Case:
    size = 2 * BF16 * tokens * heads * dim
    inputs = lab.rotated(lambda: lab.random(tokens, heads, dim), size)
    times = torch.arange(tokens, device=lab.device)
    inv_freq = (1e6 ** -(torch.arange(0, dim, 2) / dim)).to(lab.device)
    angles = times[:, None] * inv_freq
    cos, sin = (torch.cat((t, t), -1)[:, None].bfloat16() for t in (angles.cos(), angles.sin()))

    def theirs() -> object:  # as transformers does, with its tables of bfloat16 made beforehand
        x = inputs()
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    return Case(
        f"[{tokens}, {heads}, {dim}]",
        ours=lambda: ops.rotate(inputs(), times, inv_freq),
        peers={"torch, by tables": theirs},
        bytes=size,
        dtype="bfloat16",
    )


def sample(lab: Lab, rows: int, width: int) -> Case:
    """top_p 0.95; the peer's draw is its sort, cut and multinomial."""
    size = BF16 * rows * width
    inputs = lab.rotated(lambda: lab.random(rows, width), size)
    temperature, top_p = (torch.full((rows,), x, device=lab.device) for x in (0.7, 0.95))
    top_k = torch.zeros(rows, dtype=torch.int32, device=lab.device)
    min_p, uniform = (torch.full((rows,), x, device=lab.device) for x in (0.0, 0.5))

    def theirs() -> object:
        ordered, order = (inputs().float() / 0.7).softmax(-1).sort(-1, descending=True)
        kept = ordered * (ordered.cumsum(-1) - ordered < 0.95)
        return order.gather(1, torch.multinomial(kept, 1))

    return Case(
        f"[{rows}, {width}]",
        ours=lambda: ops.sample(inputs(), temperature, top_k, top_p, min_p, uniform),
        peers={"torch": theirs},
        bytes=size,
        dtype="bfloat16",
    )


def merge_attention(lab: Lab, tokens: int, heads: int, dim: int) -> Case:
    size = 3 * (BF16 * dim + 4) * tokens * heads

    def make() -> Any:
        lse = [lab.random(heads, tokens, dtype=torch.float32) for _ in range(2)]
        return (
            lab.random(tokens, heads, dim), lse[0], lab.random(tokens, heads, dim), lse[1]
        )  # fmt: skip

    inputs = lab.rotated(make, size)

    def theirs() -> object:
        out_a, lse_a, out_b, lse_b = inputs()
        lse = torch.logaddexp(lse_a, lse_b)
        a, b = ((part - lse).exp().T[..., None] for part in (lse_a, lse_b))
        return (out_a * a + out_b * b).bfloat16(), lse

    return Case(
        f"[{tokens}, {heads}, {dim}]",
        ours=lambda: ops.merge_attention(*inputs()),
        peers={"torch": theirs},
        bytes=size,
        dtype="bfloat16",
    )


def log_mel(lab: Lab, windows: int, seconds: int) -> Case:
    samples, frames = 16_000 * seconds, 100 * seconds
    size = 4.0 * windows * (samples + 128 * frames)
    inputs = lab.rotated(lambda: lab.random(windows * samples, dtype=torch.float32), size)
    ends = torch.arange(windows + 1) * samples
    hann = torch.hann_window(400, device=lab.device)
    filters = torch.rand(128, 201, device=lab.device)  # slaney's zeros would save torch nothing

    def theirs() -> object:
        x = inputs().view(windows, samples)
        spectrum = torch.stft(x, 400, 160, window=hann, return_complex=True)[..., :-1]
        mel = (filters @ spectrum.abs().square()).clamp_min(1e-10).log10()
        peak = mel.amax((1, 2), keepdim=True)
        return (torch.maximum(mel, peak - 8) + 4) / 4

    return Case(
        f"{windows} windows of {seconds} s",
        ours=lambda: ops.log_mel(inputs(), ends),
        peers={"torch.stft and friends": theirs},
        bytes=size,
    )


ROWS = [
    Row("log_mel", log_mel, {"windows": n, "seconds": 30}, {"windows": min(n, 2), "seconds": 1})
    for n in (1, 60)
] + [
    Row("rms_norm", rms_norm, {"rows": rows, "width": 3584, "residual": residual},
        {"rows": 3, "width": 64}, needs=("add_rms_norm" if residual else "rms_norm",))
    for rows, residual in ((8192, False), (8192, True), (1, True))
] + [
    Row("layer_norm", layer_norm, {"rows": 15000, "width": 1280}, {"rows": 3, "width": 64}),
    Row("silu_mul", silu_mul, {"rows": 4096, "width": 18944}, {"rows": 3, "width": 64}),
    Row("rotate", rotate, {"tokens": 8192, "heads": 28, "dim": 128}, {"tokens": 5, "heads": 2}),
    *(Row("sample", sample, {"rows": rows, "width": 152_064}, {"rows": 2, "width": 70}) for rows in (1, 32)),
    Row("merge_attention", merge_attention, {"tokens": 8192, "heads": 28, "dim": 128},
        {"tokens": 5, "heads": 2}),
]  # fmt: skip
