"""Memory of the host that a process which trains keeps, instead of giving it back and asking for it anew."""

from __future__ import annotations

import ctypes
import os

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
PRIMITIVES = 128
"""Shapes of products that oneDNN keeps code for, some 0.6 MB each: those of a batch; the next has others."""


def hold_memory() -> None:
    """To be called before anything is computed, by a program that trains and does little else: it holds for
    all of the process. The command ``afnext train`` does.

    A step on a CPU frees gigabytes in tensors whose sizes the next one does not have again. glibc hands them
    back to the system and takes them again page by page, into other holes; where freed memory stays, a step
    has a twentieth of the page faults. That is memory and, on a machine that does other things too, time: of
    nano's last stage beside other programs 1.4 s a step for 3.7 s, on a quiet machine nothing that is seen.
    oneDNN keeps code for the last 1024 shapes, by which a process grew by 45 MB a step.
    ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` in the environment counts before this. Where the C library is another
    one, only that is done.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(M_MMAP_MAX, 0)
        tune(M_TRIM_THRESHOLD, LARGEST)
        tune(M_TOP_PAD, 64 << 20)
