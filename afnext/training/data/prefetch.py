"""Steps made ahead of the one in use, so that training does not wait for files."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

from afnext.ops.runtime import set_num_threads

READERS = 4
"""Threads that make steps where there are no processes for it: they wait for files more than they compute."""
Made = TypeVar("Made")
Plan = TypeVar("Plan")


def ahead(
    dataset: Dataset[Made], plans: Iterator[Plan], depth: int, workers: int = 0
) -> Iterator[Made]:
    """``dataset[plan]`` of each plan, in order.

    Args:
        dataset: makes what is planned, in any thread or process.
        plans: drawn one after another, no sooner than needed.
        depth: how many are made, or waiting to be used, beside the one in use.
        workers: processes that make them; 0: threads of this one.
    """
    if workers:
        yield from DataLoader(
            dataset, batch_size=None, sampler=plans,
            num_workers=workers, prefetch_factor=-(-depth // workers), worker_init_fn=_begin,
        )  # fmt: skip
        return
    with ThreadPoolExecutor(min(depth, READERS), "reader") as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for plan in islice(plans, depth):
                waiting.append(pool.submit(dataset.__getitem__, plan))
            while waiting:
                made = waiting.popleft().result()
                for plan in islice(plans, 1):
                    waiting.append(pool.submit(dataset.__getitem__, plan))
                yield made
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(_: int) -> None:
    """One thread, so that processes do not fight for cores; torch does the same for its own. And SIGTERM,
    which torchrun sends to all of a process's group, is for the one that trains: it needs its batches until
    it has kept a checkpoint, and ends these.
    """
    set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
