"""How much memory the cache of keys and values may take where nobody says."""

from __future__ import annotations

import os
from pathlib import Path

import torch

LEAST, UNKNOWN, USUAL = 1 << 28, 1 << 30, 4 << 30
# Of what is free on a GPU. Two engines may be made before either takes its share, and what is computed needs
# memory as well.
GPU_SHARE = 0.4


def default_cache_bytes(device: torch.device, one_context: int) -> int:
    """4 GiB, or one whole context where that is more, but half of what is free at most; on CUDA 40 % of that.

    Args:
        device: where the cache will be.
        one_context: bytes of keys and values of the longest context.
    """
    free = available_bytes(device)
    if device.type == "cuda":
        return max(LEAST, int(free * GPU_SHARE))
    return max(LEAST, min(free // 2, max(USUAL, one_context)))


def available_bytes(device: torch.device) -> int:
    """Memory that can be had now; a guess where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return 2 * UNKNOWN
    free = _proc_available()
    limit, used = _group_limit(), _group_anonymous()
    return free if limit is None else min(free, max(0, limit - used))


def _proc_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 2 * UNKNOWN


def _group_limit() -> int | None:
    """Of the container, where there is one."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _group_anonymous() -> int:
    """What the container cannot do without: files in memory (mapped weights) can be read again."""
    try:
        for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines():
            if line.startswith("anon "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
