"""Training tokens a second of nano, from 2K to 32K tokens a sequence, beside attention's share.

Forward and backward of one sequence, a recording of about its length and an answer, bfloat16 autocast.
Lengths take turns. Attention grows with the square of the length; what is left when its time is taken out
should be as fast at every length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from afnext.audio.windows import WINDOW_FRAMES, tokens_in
from afnext.hub import EMBEDDED
from afnext.model import AudioLanguageModel
from afnext.training.network.recompute import autocast
from afnext.training.planner.dry_step import forward
from afnext.training.planner.load import LEARNT, TEXT, Load

from .results import Table

LENGTHS = (2048, 4096, 8192, 16_384, 32_768)
QUICK_LENGTHS = LENGTHS[:3]
ROUNDS = 3
FORMATS = {"tokens/s": ",.0f", "attention": ".1%", "without it": ",.0f", "of the shortest": ".0%"}


def outcomes(quick: bool) -> Iterator[Table]:
    """One row a length."""
    net = AudioLanguageModel.from_pretrained(EMBEDDED["nano"], dtype=torch.float32)
    loads = {length: sequence(length) for length in (QUICK_LENGTHS if quick else LENGTHS)}
    shares = {length: attention_share(net, load) for length, load in loads.items()}  # warms up too
    seconds: dict[int, list[float]] = {length: [] for length in loads}
    for _ in range(1 if quick else ROUNDS):
        for length, load in loads.items():
            begin = time.perf_counter()
            step(net, load)
            seconds[length].append(time.perf_counter() - begin)
    rows, first = {}, 0.0
    for length, load in loads.items():
        rate = load.tokens / median(seconds[length])
        rest = rate / (1 - shares[length])
        first = first or rest
        rows[f"{length:,} tokens"] = {
            "tokens/s": rate,
            "attention": shares[length],
            "without it": rest,
            "of the shortest": rest / first,
        }
    yield Table("training_lengths", "nano, forward and backward", rows, FORMATS)


def sequence(length: int) -> Load:
    """A recording and what is said about it, of so many tokens together."""
    windows, left = [], length - TEXT
    while left > 0:
        frames = min(WINDOW_FRAMES, 4 * left)
        windows.append(frames)
        left -= tokens_in(frames)
    return Load((length,), tuple(windows), length, LEARNT)


def step(net: AudioLanguageModel, load: Load) -> None:
    """Forward and backward."""
    with autocast("cpu", True, "keep"):
        loss = forward(net, load)
    loss.backward()
    net.zero_grad(set_to_none=True)


def attention_share(net: AudioLanguageModel, load: Load) -> float:
    """Of the time that operations take in a step, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(net, load)
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    attention = sum(v for k, v in spent.items() if "attention" in k)
    return attention / sum(spent.values())
