"""Attention over ranks: what overlap hides of communication, and the model of its cost, up to 1,024 GPUs.

Two processes with gloo between them, on wires made slow: the model is given what a process computes a second
and the wires' speed, nothing of what is then measured. More ranks, as threads whose kernels sleep for as long
as the model has them compute: what is measured is the order of things. ``python -m
benchmarks.sequence_parallel PICTURE.svg TIMELINE.svg`` draws what the model says of 8 to 1,024 GPUs, and
which kernels and messages are under way when on four ranks that sleep.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from afnext import ops
from afnext.parallel import Link, SequencePlan, attention, local_links, run_local, world_link
from afnext.parallel.cost import H100, Cost, Machine, Shape, choose, cost
from afnext.parallel.delay import Delayed, paced

from . import timeline
from .results import Table

HEADS, DIM = (28, 4), 64
TOKENS, QUICK_TOKENS = 3072, 1024
PAIR = ((1, 2), (2, 1))
MORE = ((1, 4), (2, 2), (4, 1), (1, 8), (2, 4), (4, 2))
WIRE = 0.4
"""Seconds of communication without overlap beside those of computing."""
ROUNDS = 5
PACED_TOKENS, PACED_SECONDS, PACED_ROUNDS = 1024, 0.5, 3
TIMELINE = (2, 2)
PACED_SHAPE = Shape(PACED_TOKENS, *HEADS, 8, 4, 4)
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
LENGTHS = {"128K": 1 << 17, "256K": 1 << 18, "512K": 1 << 19, "1M": 1 << 20}
SHARES = dict.fromkeys(("exposed", "by the model", "hidden", "efficiency"), ".0%")
FORMATS = SHARES | {"Ulysses": ".0f", "ring": ".0f"}


def together(world: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns in each of ``world`` fresh processes of a gloo group, a thread each.

    Raises:
        RuntimeError: one of them ended without.
    """
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(["torch.distributed", "afnext.parallel"])
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(world):
            ours, theirs = spawn.Pipe(duplex=False)
            target = (theirs, rank, world, f"{folder}/store", work, arguments)
            process = spawn.Process(target=_joined, args=target)
            process.start()
            theirs.close()
            started.append((process, ours))
        try:
            return [pipe.recv() for _, pipe in started]
        except EOFError:
            raise RuntimeError("sequence_parallel: a process failed") from None
        finally:
            for process, _ in started:
                process.join()


def _joined(
    pipe: Connection, rank: int, world: int, store: str, work: Callable[..., Any], arguments: tuple
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    ops.runtime.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    pipe.send(work(*arguments))
    dist.barrier()


def _rates(tokens: int) -> tuple[float, float, float]:
    """Operations a second of attention forward and backward, and bytes of memory added up in float32, in one
    process while the others do the same.
    """
    q, k, v = (torch.randn(tokens, n, DIM, requires_grad=True) for n in (7, 1, 1))
    flops = 4 * tokens * tokens / 2 * 7 * DIM
    forward, backward = [], []
    for _ in range(ROUNDS):
        dist.barrier()
        began = time.perf_counter()
        out, _lse = ops.attention(q, k, v, causal=True)
        between = time.perf_counter()
        out.backward(torch.ones_like(out))
        forward.append(between - began)
        backward.append(time.perf_counter() - between)
    sums, seconds = [torch.zeros(1 << 22) for _ in range(2)], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        sums[0] += sums[1]
        seconds.append(time.perf_counter() - began)
    return (
        flops / min(forward), 2.5 * flops / min(backward),
        12 * len(sums[0]) / min(seconds),
    )  # fmt: skip


def _timed(ulysses: int, ring: int, tokens: int, rate: float) -> dict[str, float]:
    """Least seconds of forward and backward on this rank: on wires that are free, and on slow ones with and
    without overlap, one after another each round.
    """
    plan, link = SequencePlan(ulysses, ring, "zigzag", (0, tokens)), world_link(ulysses, ring)
    local = plan.lengths[link.rank]
    q, k, v = (torch.randn(local, n, DIM, requires_grad=True) for n in (HEADS[0], *HEADS[1:] * 2))
    grad = torch.randn(local, HEADS[0], DIM)

    def once(way: Link, overlap: bool) -> float:
        dist.barrier()
        began = time.perf_counter()
        attention(q, k, v, None, plan, link=way, overlap=overlap).backward(grad)
        dist.barrier()
        return time.perf_counter() - began

    ways: dict[str, tuple[Link, bool]] = {
        "free wires": (link, True),
        "overlapped": (Delayed(link, (rate, rate)), True),
        "not overlapped": (Delayed(link, (rate, rate)), False),
    }
    once(link, True)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            found[name].append(once(*way))
    return {name: min(seconds) for name, seconds in found.items()}


def row(seen: dict[str, float], plain: Cost, model: Cost) -> dict[str, float]:
    """Seconds seen beside the model's, and the share of communication that stays exposed."""
    shown = seen["not overlapped"] - seen["free wires"]
    return {
        "free wires, s": seen["free wires"],
        "model, s": plain.seconds,
        "not overlapped, s": seen["not overlapped"],
        "model , s": model.without_overlap,
        "overlapped, s": seen["overlapped"],
        "model  , s": model.seconds,
        "exposed": (seen["overlapped"] - seen["free wires"]) / shown,
        "by the model": model.exposed / model.communication,
    }


def slowed(shape: Shape, ulysses: int, ring: int, forward: float, backward: float,
           memory: float) -> tuple[float, Cost, Cost]:  # fmt: skip
    """The speed of wires that take ``WIRE`` of computing, and the cost without and with them."""
    free = Machine(forward, backward, memory, 1e15, 1e15, 0.0, 64)
    plain = cost(shape, ulysses, ring, free)
    rate = (plain.heads_bytes + plain.ring_bytes) / (WIRE * plain.compute)
    wires = Machine(forward, backward, memory, rate, rate, 0.0, 64)
    return rate, plain, cost(shape, ulysses, ring, wires)


def measured(tokens: int) -> Iterator[Table]:
    """Two processes, a core each."""
    shape = Shape(tokens, *HEADS, DIM, 4, 4)
    told = together(2, _rates, tokens)
    forward, backward, memory = (statistics.median(column) for column in zip(*told, strict=True))
    rows = {}
    for pair in PAIR:
        rate, plain, model = slowed(shape, *pair, forward, backward, memory)
        ranks = together(2, _timed, *pair, tokens, rate)
        seen = {name: max(of_rank[name] for of_rank in ranks) for name in ranks[0]}
        rows[f"{pair[0]} x {pair[1]}"] = row(seen, plain, model)
    name = f"Ulysses x ring, {tokens} tokens, {HEADS[0]}/{HEADS[1]} heads of {DIM}, float32, gloo"
    yield Table("sequence_parallel", name, rows, FORMATS)


def in_order() -> Iterator[Table]:
    """Four and eight ranks as threads that sleep."""
    rows = {}
    for ulysses, ring in MORE:
        seconds, rate, plain, model = _paced(ulysses, ring)
        ways = (
            ("free wires", 1e15, True),
            ("overlapped", rate, True),
            ("not overlapped", rate, False),
        )
        seen = dict.fromkeys((name for name, _, _ in ways), math.inf)
        with paced(seconds, seconds):
            for _ in range(PACED_ROUNDS):
                for name, wires, overlap in ways:
                    took, _ = _threads(PACED_SHAPE, ulysses, ring, wires, overlap)
                    seen[name] = min(seen[name], took)
        rows[f"{ulysses} x {ring}"] = row(seen, plain, model)
    name = f"Ulysses x ring, {PACED_TOKENS} tokens, {HEADS[0]}/{HEADS[1]} heads, threads that sleep"
    yield Table("sequence_parallel", name, rows, FORMATS)


def _paced(ulysses: int, ring: int) -> tuple[float, float, Cost, Cost]:
    """Seconds that kernels sleep for each (query, key) of a head, and what :func:`slowed` says of that."""
    shape = PACED_SHAPE
    pairs = shape.tokens * shape.tokens / 2 * shape.query_heads / ulysses / ring
    seconds = PACED_SECONDS / pairs
    forward, backward = (4 * shape.head_dim / seconds, 10 * shape.head_dim / seconds)
    return seconds, *slowed(shape, ulysses, ring, forward, backward, 1e15)


def _threads(
    shape: Shape, ulysses: int, ring: int, rate: float, overlap: bool
) -> tuple[float, list[Delayed]]:
    """Seconds, and the links with what went over them."""
    plan = SequencePlan(ulysses, ring, "zigzag", (0, shape.tokens))
    links = [Delayed(link, (rate, rate)) for link in local_links(ulysses, ring)]

    def of_rank(link: Link) -> None:
        q, k, v = (
            torch.randn(plan.lengths[link.rank], n, shape.head_dim, requires_grad=True)
            for n in (shape.query_heads, shape.key_heads, shape.key_heads)
        )
        attention(q, k, v, None, plan, link=link, overlap=overlap).sum().backward()

    began = time.perf_counter()
    run_local(links, of_rank)
    return time.perf_counter() - began, links


def laid_out() -> Iterator[Table]:
    """H100s by the thousand, as the model has them: a layer's attention, forward and backward."""
    for name, tokens in LENGTHS.items():
        rows = {}
        for gpus in GPUS:
            ulysses, ring = choose(Shape(tokens), gpus)
            found = cost(Shape(tokens), ulysses, ring, H100)
            alone = cost(Shape(tokens), 1, 1, H100).compute
            rows[f"{gpus} GPUs"] = {
                "Ulysses": float(ulysses),
                "ring": float(ring),
                "ms": found.seconds * 1e3,
                "communication, ms": found.communication * 1e3,
                "hidden": 1 - found.exposed / found.communication,
                "efficiency": alone / gpus / found.seconds,
            }
        yield Table("sequence_parallel", f"{name} tokens on H100s, by the model", rows, FORMATS)


def outcomes(quick: bool) -> Iterator[Table]:
    """What is measured, then what the model says."""
    yield from measured(QUICK_TOKENS if quick else TOKENS)
    yield from in_order()
    yield from laid_out()


def draw(picture: Path) -> None:
    """The layers' seconds over GPUs, each point with its degrees; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, tokens in LENGTHS.items():
        shape = Shape(tokens)
        best = [choose(shape, gpus) for gpus in GPUS]
        seconds = [cost(shape, *pair, H100).seconds * 1e3 for pair in best]
        (line,) = axes.plot(GPUS, seconds, marker="o", markersize=4, label=f"{name} tokens")
        alone = cost(shape, 1, 1, H100).compute * 1e3
        axes.plot(GPUS, [alone / n for n in GPUS], color=line.get_color(), linestyle=":", alpha=0.6)
        for gpus, (ulysses, ring), at in zip(GPUS, best, seconds, strict=True):
            axes.annotate(
                f"{ulysses}x{ring}", (gpus, at), textcoords="offset points", xytext=(0, 6),
                ha="center", fontsize=7,
            )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xticks=GPUS, xticklabels=map(str, GPUS),
        xlabel="H100s that share a sequence (eight a node)",
        ylabel="ms of a layer's attention, forward and backward",
        title="The model's choice of Ulysses x ring; dotted: computing alone, shared out evenly",
    )  # fmt: skip
    axes.legend(fontsize=8)
    figure.savefig(picture, metadata={"Date": None})


def draw_timeline(picture: Path) -> None:
    """One run of four ranks that sleep, without overlap and with it; needs matplotlib."""
    seconds, rate, _, _ = _paced(*TIMELINE)
    runs = {}
    for name, overlap in (("each message waited for at once", False), ("overlapped", True)):
        with paced(seconds, seconds) as kernels:
            start = time.perf_counter()
            _, links = _threads(PACED_SHAPE, *TIMELINE, rate, overlap)
        runs[name] = [timeline.spans(link, kernels, start) for link in links]
    title = f"Ulysses {TIMELINE[0]} x ring {TIMELINE[1]}, forward and backward: what each rank does when"
    timeline.draw(title, runs, picture)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
    draw_timeline(Path(sys.argv[2]))
