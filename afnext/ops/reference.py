"""Every op in a few lines of plain torch: what both backends are tested against.

``compute_dtype`` is float64 for tests and float32 where a device has no float64 or speed matters more.
The functions take the arguments of the registered ops, already checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference_quantized import is_quantized, round_rows, unpack_quantized

QUERY_BLOCK = 512
WINDOW_SAMPLES = 480_000


def _compute_dtype(x: Tensor, compute_dtype: torch.dtype | None) -> torch.dtype:
    if compute_dtype is not None:
        return compute_dtype
    return torch.float32 if x.device.type == "mps" else torch.float64


# --- log_mel -----------------------------------------------------------------------------------------


@lru_cache
def mel_filters(bins: int = 128, n_fft: int = 400, sample_rate: int = 16_000) -> Tensor:
    """Slaney-scale, slaney-normalised triangular filters, float64 ``[n_fft // 2 + 1, bins]``.

    Source: M. Slaney, Auditory Toolbox (1998), as librosa and Whisper use it: linear below 1 kHz at
    200/3 Hz a mel, logarithmic above with 27 steps to a factor of 6.4.
    """
    step, knee = 200.0 / 3, 1000.0
    log_step = math.log(6.4) / 27
    top = knee / step + math.log((sample_rate / 2) / knee) / log_step
    mels = torch.linspace(0.0, top, bins + 2, dtype=torch.float64)
    knee_mel = knee / step
    edges = torch.where(
        mels < knee_mel, mels * step, knee * torch.exp(log_step * (mels - knee_mel).clamp(min=0))
    )
    frequencies = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rise = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0) * (2.0 / (edges[2:] - edges[:-2]))


def log_mel(
    samples: Tensor,
    cu_samples: list[int],
    frames: list[int],
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Whisper's log-mel of each window, zero-padded to 30 s; float32 ``[sum(frames), 128]``."""
    dtype = _compute_dtype(samples, compute_dtype)
    hann = torch.hann_window(400, dtype=dtype, device=samples.device)
    filters = mel_filters().to(samples.device, dtype)
    parts = [torch.empty(0, 128, dtype=torch.float32, device=samples.device)]
    for (start, end), wanted in zip(pairwise(cu_samples), frames, strict=True):
        window = samples[start:end].to(dtype)
        if samples.dtype == torch.int16:
            window = window / 2**15
        # What lies 2 frames beyond the audio is silence: transform no more than is needed.
        count = min(3000, max(wanted, -(-len(window) // 160) + 2))
        padded = F.pad(window, (0, min(WINDOW_SAMPLES, count * 160 + 400) - len(window)))
        spectrum = torch.stft(padded, 400, 160, window=hann, return_complex=True)[:, :count]
        power = (spectrum.real.square() + spectrum.imag.square()).T @ filters
        logs = power.clamp(min=1e-10).log10()
        logs = torch.maximum(logs, logs.max() - 8.0)
        parts.append(((logs + 4.0) / 4.0)[:wanted].float())
    return torch.cat(parts)


# --- rotation ----------------------------------------------------------------------------------------


def phases(times: Tensor, inv_freq: Tensor, compute_dtype: torch.dtype | None = None) -> Tensor:
    """``times * inv_freq`` in radians, reduced to [-pi, pi] where the dtype allows; ``[T, R/2]``."""
    if times.device.type == "mps":  # no float64 there
        return phases(times.cpu(), inv_freq.cpu()).float().to(times.device)
    dtype = _compute_dtype(times, compute_dtype)
    return (
        torch.remainder(times.to(dtype)[:, None] * inv_freq.to(dtype) + math.pi, 2 * math.pi)
        - math.pi
    )


def rotate_by(x: Tensor, angles: Tensor, interleaved: bool, dtype: torch.dtype) -> Tensor:
    """Turn the first ``2 * angles.shape[1]`` channels of ``x [T, H, D]`` by ``angles [T, R/2]``."""
    half = angles.shape[1]
    cos, sin = angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]
    turned, rest = x[..., : 2 * half].to(dtype), x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        pair = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        pair = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((pair.to(x.dtype), rest), dim=-1)


def rotate(
    x: Tensor,
    times: Tensor | None,
    inv_freq: Tensor | None,
    angles: Tensor | None,
    interleaved: bool,
    inverse: bool,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Rotary embedding of ``x [T, H, D]`` by ``times * inv_freq`` or by given ``angles [T, R/2]``."""
    dtype = _compute_dtype(x, compute_dtype)
    if angles is None:
        assert times is not None
        assert inv_freq is not None
        angles = phases(times, inv_freq, compute_dtype)
    return rotate_by(x, -angles if inverse else angles, interleaved, dtype)


# --- attention ---------------------------------------------------------------------------------------


def visible(
    q_start: int,
    q_stop: int,
    queries: int,
    keys: int,
    causal: bool,
    left: int,
    right: int,
    device: torch.device,
) -> Tensor:
    """Boolean ``[q_stop - q_start, keys]``: may query i see key j, aligned at the bottom right."""
    i = torch.arange(q_start, q_stop, device=device)[:, None] + (keys - queries)
    j = torch.arange(keys, device=device)
    seen = torch.ones(q_stop - q_start, keys, dtype=torch.bool, device=device)
    if causal:
        seen &= j <= i
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    return seen


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One block of queries: q ``[n, Hq, D]``, k and v ``[m, Hq, D]``, seen ``[n, m]``."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) * scale
    # A row that sees nothing keeps its scores and is blanked at the end: a gradient of -inf is NaN.
    empty = ~seen.any(dim=-1)
    scores = scores.masked_fill(~seen & ~empty[:, None], -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None]).masked_fill(empty[:, None], 0.0)
    return torch.einsum("hnm,mhd->nhd", weights, v), lse.masked_fill(empty, -math.inf)


def _sequences(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    key_lengths: Tensor | None,
) -> Iterator[tuple[slice, slice]]:
    """The rows of q and of k of each packed sequence."""
    starts_q = [0, q.shape[0]] if cu_seqlens_q is None else cu_seqlens_q.tolist()
    starts_k = [0, k.shape[0]] if cu_seqlens_k is None else cu_seqlens_k.tolist()
    ends_k = starts_k[1:]
    if key_lengths is not None:
        ends_k = [start + n for start, n in zip(starts_k, key_lengths.tolist(), strict=False)]
    queries = map(slice, starts_q, starts_q[1:])
    yield from zip(queries, map(slice, starts_k, ends_k), strict=True)


def _blocks(
    queries: slice,
    keys: slice,
    causal: bool,
    window_left: int,
    window_right: int,
    device: torch.device,
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a sequence's queries, a block at a time, and which of its keys each sees."""
    count, many = queries.stop - queries.start, keys.stop - keys.start
    for i in range(0, count, QUERY_BLOCK):
        stop = min(i + QUERY_BLOCK, count)
        seen = visible(i, stop, count, many, causal, window_left, window_right, device)
        yield slice(queries.start + i, queries.start + stop), seen


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    key_lengths: Tensor | None,
    times_q: Tensor | None,
    times_k: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    partials: bool,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over packed sequences, a block of queries at a time (nothing of S x S)."""
    dtype = _compute_dtype(q, compute_dtype)
    out_dtype = torch.float32 if partials else q.dtype
    if inv_freq is not None:
        q = rotate(q.to(dtype), times_q, inv_freq, None, interleaved, False, compute_dtype)
        k = rotate(k.to(dtype), times_k, inv_freq, None, interleaved, False, compute_dtype)
    outs, lses = [], []
    group = q.shape[1] // k.shape[1]
    for queries, keys in _sequences(q, k, cu_seqlens_q, cu_seqlens_k, key_lengths):
        kn = k[keys].to(dtype).repeat_interleave(group, dim=1)
        vn = v[keys].to(dtype).repeat_interleave(group, dim=1)
        for rows, seen in _blocks(queries, keys, causal, window_left, window_right, q.device):
            out, lse = _attend(q[rows].to(dtype), kn, vn, seen, scale)
            outs.append(out)
            lses.append(lse)
    if not outs:
        return q.new_zeros(q.shape, dtype=out_dtype), q.new_empty(
            q.shape[1], 0, dtype=torch.float32
        )
    return torch.cat(outs).to(out_dtype), torch.cat(lses, dim=1).float()


def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    key_lengths: Tensor | None,
    times_q: Tensor | None,
    times_k: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    partials: bool,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``attention`` from its results, which may be over more keys than are given here: each part
    of the keys gives its part of the gradients. A block of queries at a time.
    """
    dtype = _compute_dtype(q, compute_dtype)
    grad, total = grad_out.to(dtype), lse.to(dtype)
    # d loss / d score = weight * (grad_out . v - slope)
    slope = (grad * out.to(dtype)).sum(-1).T
    if grad_lse is not None:
        slope = slope - grad_lse.to(dtype)
    exact_q, exact_k, exact_v = (x.to(dtype) for x in (q, k, v))
    if inv_freq is not None:
        exact_q = rotate(exact_q, times_q, inv_freq, None, interleaved, False, compute_dtype)
        exact_k = rotate(exact_k, times_k, inv_freq, None, interleaved, False, compute_dtype)
    grads = dq, dk, dv = [torch.zeros_like(x) for x in (exact_q, exact_k, exact_v)]
    group = q.shape[1] // k.shape[1]
    for queries, keys in _sequences(q, k, cu_seqlens_q, cu_seqlens_k, key_lengths):
        kn, vn = (x[keys].repeat_interleave(group, dim=1) for x in (exact_k, exact_v))
        for rows, seen in _blocks(queries, keys, causal, window_left, window_right, q.device):
            scores = torch.einsum("nhd,mhd->hnm", exact_q[rows], kn) * scale
            weights = torch.exp(scores - total[:, rows, None]).masked_fill(~seen, 0.0)
            moved = torch.einsum("nhd,mhd->hnm", grad[rows], vn) - slope[:, rows, None]
            moved = weights * moved * scale
            dq[rows] = torch.einsum("hnm,mhd->nhd", moved, kn)
            for sums, part, x in ((dk, moved, exact_q), (dv, weights, grad)):
                each = torch.einsum("hnm,nhd->mhd", part, x[rows])
                sums[keys] += each.unflatten(1, (k.shape[1], group)).sum(2)
    if inv_freq is not None:
        for turned, times in ((dq, times_q), (dk, times_k)):
            back = rotate(turned, times, inv_freq, None, interleaved, True, compute_dtype)
            turned.copy_(back)
    return tuple(x.to(q.dtype) for x in grads)  # type: ignore[return-value]


def merge_attention(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Merge two partial results over disjoint keys by their log-sum-exp."""
    dtype = _compute_dtype(out_a, compute_dtype)
    a, b = lse_a.to(dtype), lse_b.to(dtype)
    lse = torch.logaddexp(a, b)
    safe = lse.masked_fill(lse == -math.inf, 0.0)
    wa, wb = (a - safe).exp().T[..., None], (b - safe).exp().T[..., None]
    out = wa * out_a.to(dtype) + wb * out_b.to(dtype)
    return out.to(out_a.dtype), lse.float()


# --- paged cache -------------------------------------------------------------------------------------


def gather_pages(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """The first ``length`` tokens of one request: pages ``[P, H, slot, D]`` to ``[length, H, D]``."""
    used = -(-length // pages.shape[2])
    return pages[table[:used].long()].transpose(1, 2).flatten(0, 1)[:length]


def paged_append(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    start: Tensor,
    times: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> None:
    """Write k (rotated) and v ``[T, Hkv, D]`` into their pages; beside 8-bit ones go the rows' scales."""
    if k_scales is not None:
        k, v = k.float(), v.float()  # nothing is rounded twice
    if inv_freq is not None:
        k = rotate(k, times, inv_freq, None, interleaved, False, compute_dtype)
    slots = k_pages.shape[2]
    ends, starts = cu_seqlens.tolist(), start.tolist()
    for n in range(len(starts)):
        position = torch.arange(ends[n + 1] - ends[n], device=k.device) + starts[n]
        page = page_table[n][position // slots].long()
        for x, pages, scales in ((k, k_pages, k_scales), (v, v_pages, v_scales)):
            rows = x[ends[n] : ends[n + 1]]
            if scales is not None:
                peak, whole = rows.abs().amax(dim=-1), pages.dtype == torch.int8
                most = 127 if whole else 448  # float8_e4m3fn
                scales[page, :, position % slots] = peak / most
                rows = rows * (most / peak).nan_to_num(0, 0, 0)[..., None]
                rows = rows.round().nan_to_num() if whole else rows
            pages[page, :, position % slots] = rows.to(pages.dtype)


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lengths: Tensor,
    times: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the last queries of each request over its pages (keys were rotated at append)."""
    if k_scales is not None and v_scales is not None:
        k_pages = (k_pages.float() * k_scales[..., None]).to(q.dtype)
        v_pages = (v_pages.float() * v_scales[..., None]).to(q.dtype)
    if inv_freq is not None:
        q = rotate(q, times, inv_freq, None, interleaved, False, compute_dtype)
    lengths = kv_lengths.tolist()
    keys = [gather_pages(k_pages, page_table[n], length) for n, length in enumerate(lengths)]
    values = [gather_pages(v_pages, page_table[n], length) for n, length in enumerate(lengths)]
    empty = k_pages.new_empty(0, k_pages.shape[1], k_pages.shape[3])
    cu_seqlens_k = torch.cat([kv_lengths.new_zeros(1), kv_lengths.cumsum(0)])
    return attention(
        q, torch.cat([empty, *keys]), torch.cat([empty, *values]), cu_seqlens_q, cu_seqlens_k, None,
        None, None, None, False, causal, window_left, window_right, scale, False, compute_dtype,
    )  # fmt: skip


# --- the rest ----------------------------------------------------------------------------------------


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, compute_dtype: torch.dtype | None = None
) -> Tensor:
    """``x @ weight.T + bias``, accumulated in at least float32."""
    dtype = compute_dtype or x.dtype
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(
        x.dtype
    )


def unpack(data: Tensor, format: str, n: int, k: int, gate_up: bool) -> Tensor:
    """The plain weight ``[n, k]`` of a packing in 32-column panels (``csrc/include/afnext/pack.h``)."""
    if is_quantized(format):
        return unpack_quantized(data, format, n, k, gate_up)
    columns, width = (n // 2, 16) if gate_up else (n, 32)
    panels = -(-columns // width)
    dtype, steps, word = (
        (torch.bfloat16, -(-k // 32) * 16, 2) if format == "bfloat16" else (torch.float32, k, 1)
    )
    words = data.view(dtype).view(panels, steps, 32, word).transpose(1, 2)
    rows = words.reshape(panels, 32, steps * word)[..., :k]
    halves = [rows[:, :16], rows[:, 16:]] if gate_up else [rows]
    return torch.cat([half.reshape(panels * width, k)[:columns] for half in halves])


def packed_linear(
    x: Tensor,
    data: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    format: str,
    n: int,
    k: int,
    gate_up: bool,
    activation: str,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """``activation(x @ weight.T + bias) + residual`` of a packed weight, rounded once."""
    dtype = compute_dtype or torch.float32
    weight = unpack(data, format, n, k, gate_up).to(dtype)
    if format.endswith(":int8"):
        x = round_rows(x)
    out = F.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))
    if activation == "gelu":  # 1 + erf cancels in float32 where x is negative
        out = F.gelu(out.to(_compute_dtype(x, compute_dtype)))
    elif activation == "silu_mul":
        out = F.silu(out[..., : n // 2]) * out[..., n // 2 :]
    return (out if residual is None else out + residual.to(dtype)).to(x.dtype)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """RMS norm of ``x + residual`` and that sum, in transformers' order of roundings."""
    dtype = _compute_dtype(x, compute_dtype)
    total = x if residual is None else x + residual
    normed = total.to(dtype) * torch.rsqrt(total.to(dtype).square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype), total


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    pooled: Tensor | None,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Layer norm of x's rows, or of the means of the rows that ``pooled`` names."""
    dtype = _compute_dtype(x, compute_dtype)
    rows = x.to(dtype)
    if pooled is not None:
        rows = rows.reshape(math.prod(x.shape[:-1]), x.shape[-1])[pooled].mean(1)
    out = F.layer_norm(rows, (x.shape[-1],), weight.to(dtype), bias.to(dtype), eps)
    return out.to(x.dtype)


def silu_mul(gate: Tensor, up: Tensor, compute_dtype: torch.dtype | None = None) -> Tensor:
    """``silu(gate) * up``."""
    dtype = _compute_dtype(gate, compute_dtype)
    return (F.silu(gate.to(dtype)) * up.to(dtype)).to(gate.dtype)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Inverse transform sampling in the order of falling logits, after three cuts of the order's tail."""
    dtype = _compute_dtype(logits, compute_dtype)
    scores = logits.to(dtype).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    greedy = ~(temperature > 0)
    scores = scores / temperature.masked_fill(greedy, 1.0).to(dtype)[:, None]
    scores = scores - scores.amax(-1, keepdim=True)
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    weights = ordered.exp()
    count = scores.shape[1]

    def keep_to(places: Tensor) -> Tensor:
        """The tokens up to these places of the order, and their equals."""
        return weights * (ordered >= ordered.gather(1, places[:, None]))

    kept = keep_to(torch.where(top_k > 0, top_k, count).clamp(max=count).long() - 1)
    reached = kept.cumsum(-1) - kept < top_p.to(dtype)[:, None] * kept.sum(-1, keepdim=True)
    within = (reached & (kept > 0)).sum(-1).clamp(min=1)
    kept = torch.where((top_p < 1)[:, None], keep_to(within - 1) * (kept > 0), kept)
    least = min_p.to(dtype).clamp(max=1)[:, None] * weights[:, :1]
    kept = kept * (weights >= least)
    mass = kept.cumsum(-1)
    places = (mass <= uniform.to(dtype)[:, None] * mass[:, -1:]).sum(-1)
    places = torch.minimum(places, (kept > 0).sum(-1) - 1).clamp(min=0).masked_fill(greedy, 0)
    tokens = order.gather(1, places[:, None])
    logprobs = scores.gather(1, tokens) - torch.logsumexp(scores, -1, keepdim=True)
    return tokens[:, 0], logprobs[:, 0].float()


# --- between ranks -----------------------------------------------------------------------------------


def all_to_all_pack(x: Tensor, head_offsets: list[int], heads: list[int]) -> Tensor:
    """Each rank's heads of ``x [T, H, D]``, one rank after another."""
    parts = [x[:, heads[start:end]].flatten(0, 1) for start, end in pairwise(head_offsets)]
    return torch.cat(parts)


def all_to_all_unpack(
    x: Tensor,
    head_offsets: list[int],
    heads: list[int],
    tokens: int,
    num_heads: int,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """``[T, H, D]`` from each rank's heads; those of several ranks are summed."""
    out = x.new_zeros(tokens, num_heads, x.shape[1], dtype=_compute_dtype(x, compute_dtype))
    for start, end in pairwise(head_offsets):
        part = x[tokens * start : tokens * end].reshape(tokens, end - start, x.shape[1])
        index = torch.tensor(heads[start:end], dtype=torch.int64, device=x.device)
        out.index_add_(1, index, part.to(out.dtype))
    return out.to(x.dtype)
