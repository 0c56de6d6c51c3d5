"""What the CPU kernels run on: instruction set and threads."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from ._compiled import compiled

LEVELS = ("baseline", "avx2", "avx_vnni", "avx512", "avx512_bf16", "amx")


def cpu_isa() -> str:
    """The level in use: the machine's best, capped by ``AFNEXT_CPU_ISA`` or ``set_cpu_isa``."""
    return compiled.isa()


def detected_cpu_isa() -> str:
    """The machine's best level."""
    return compiled.detected_isa()


def compiled_cpu_isas(op: str = "") -> list[str]:
    """Levels that this build holds kernels for, in rising order; others run those of the next lower.

    ``op`` asks about the ops whose name begins so, by default all.
    """
    return compiled.compiled_isas(op)


def available_cpu_isas(op: str = "") -> list[str]:
    """Those of ``compiled_cpu_isas(op)`` that this machine runs."""
    return [name for name in compiled_cpu_isas(op) if compiled.can_run(name)]


def set_cpu_isa(name: str) -> None:
    """Cap the level of this process. Raises ``ValueError`` on a level that the machine lacks."""
    compiled.set_isa(name)


def expect_huge_pages(tensor: Tensor) -> None:
    """Ask the system to back a CPU tensor that is about to be written by huge pages (2 MB): without them,
    reading what lies scattered over gigabytes waits for page tables. A hint, harmless where unsupported.
    """
    if tensor.device.type == "cpu":
        compiled.expect_huge_pages(tensor)


def named_range(name: str) -> AbstractContextManager[None]:
    """What runs within it bears this name in ``torch.profiler``.

    Costs 0.2 µs where nobody profiles, ``torch.profiler.record_function`` 6.
    """
    return torch._C._profiler._RecordFunctionFast(name)


def module_path() -> Path:
    """The file of the compiled module."""
    return Path(compiled.__file__)


def num_threads() -> int:
    """Threads that share a kernel's work: ``AFNEXT_NUM_THREADS``, else the available cores."""
    return compiled.num_threads()


def set_num_threads(threads: int) -> None:
    """Set the number of threads of all CPU kernels, 1 to 1024."""
    compiled.set_num_threads(threads)


def has_cuda() -> bool:
    """Whether this build holds CUDA kernels."""
    return compiled.has_cuda


def has_cuda_kernels(op: str) -> bool:
    """Whether ``torch.ops.afnext.<op>`` has a kernel for CUDA tensors in this build, not plain torch alone.

    False for an op that does not exist. Whether a GPU is present is another matter.
    """
    name = f"afnext::{op}"
    if not compiled.has_cuda:
        return False
    return name in torch._C._dispatch_get_all_op_names() and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    )
