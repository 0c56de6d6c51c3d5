"""Processes, with gloo between them or alone: forked from one that has torch imported, so that eight cost
little."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

WAIT = 600.0
"""Seconds after which a test's processes are given up."""


def forked() -> ForkServerContext:
    """Where processes are forked from one that has imported what tests run in them."""
    context = multiprocessing.get_context("forkserver")
    # torch's compiler too: its optimizers and FSDP import it.
    imported = ["torch._dynamo", "afnext.parallel", "afnext.training.loop", "afnext.cli"]
    context.set_forkserver_preload([*imported, "afnext.assistant"])
    return context


def spawn(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns (plain values) in each of ``world`` processes of a gloo group.

    Raises:
        AssertionError: with the traceback of the first that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = start(world, str(Path(folder) / "store"), function, *args)
        try:
            answers = [_answer(rank, pipe) for rank, (_, pipe) in enumerate(started)]
        finally:
            for process, _ in started:
                process.join(5)
                if process.is_alive():
                    process.kill()
    failed = [f"rank {i}: {answer}" for i, (good, answer) in enumerate(answers) if not good]
    assert not failed, "\n".join(failed)
    return [answer for _, answer in answers]


def start(
    world: int, store: str, function: Callable[..., Any], *args: Any
) -> list[tuple[BaseProcess, Connection]]:
    """The processes, which meet at a file ``store``, each with the pipe that its answer comes through."""
    context = forked()
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    try:
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_main, args=(rank, world, store, theirs, function, args)
            )
            process.start()
            theirs.close()
            started.append((process, ours))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return started


def _answer(rank: int, pipe: Any) -> tuple[bool, Any]:
    try:
        return pipe.recv() if pipe.poll(WAIT) else (False, f"no answer in {WAIT:.0f} s")
    except EOFError:
        return False, "died"


def _main(rank: int, world: int, store: str, pipe: Any, function: Callable, args: tuple) -> None:
    import torch
    import torch.distributed as dist

    from afnext.ops.runtime import set_num_threads

    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, world), rank=rank, world_size=world,
            timeout=timedelta(seconds=WAIT / 2),
        )  # fmt: skip
        pipe.send((True, function(*args)))
        dist.barrier()
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    os._exit(0)  # threads of gloo may still wait for ranks that failed
