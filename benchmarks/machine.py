"""The machine that a result was measured on."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cpu_model() -> str:
    """The processor's own name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


@cache
def caches() -> dict[str, int]:
    """Bytes of each data cache that one core sees, as ``{"L1": 32768, ...}``; empty where unknown."""
    sizes = {}
    for folder in sorted(CACHES.glob("index*")):
        if (folder / "type").read_text().strip() != "Instruction":
            text = (folder / "size").read_text().strip()
            number, unit = text.rstrip("KMG"), text[-1]
            sizes[f"L{(folder / 'level').read_text().strip()}"] = int(number) * UNITS.get(unit, 1)
    return sizes


def largest_cache() -> int:
    """Bytes of the last level; 32 MB where the system does not say."""
    return max(caches().values(), default=32 << 20)


def memory_bytes() -> int:
    """Installed memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe() -> dict[str, Any]:
    """Everything that a reader of a result needs to judge it."""
    import numpy
    import torch

    import afnext
    from afnext.ops import runtime

    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "isa": runtime.cpu_isa(),
        "isa_detected": runtime.detected_cpu_isa(),
        "threads": runtime.num_threads(),
        "torch_threads": torch.get_num_threads(),
        "caches": caches(),
        "memory_bytes": memory_bytes(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "afnext": afnext.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def one_line() -> str:
    """Processor, instruction set, threads, load, versions."""
    here = describe()
    versions = here["versions"]
    return (
        f"{here['cpu']}, {here['isa']}, {here['threads']} threads (torch {here['torch_threads']}), "
        f"load {here['load']:.1f}, torch {versions['torch']}, Python {versions['python']}"
    )


def slug(machine: dict[str, Any]) -> str:
    """A folder name for results of this kind of machine, as ``amd-epyc-avx512_bf16-2-threads``."""
    name = re.sub(r"\((r|tm)\)|\bcpu\b|@.*|processor", " ", machine["cpu"].lower())
    words = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{words}-{machine['isa']}-{machine['threads']}-threads"
