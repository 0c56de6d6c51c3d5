"""``python -m tests.cuda.resources [NAME ...] [--archs 80 90a 100 120]``: what the CUDA kernels take.

Registers, spills and occupancy, as ptxas reports them; no GPU is needed. The exit code is 1 where a kernel
spills or has a stack, or a tool complains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from tests.cuda.nvcc import ALL_ARCHS, ARCHS, CUDA, Compiled, compile_all, nvcc, sources

COLUMNS = ("regs", "threads", "blocks/SM", "static smem", "stack", "spills")


def lines(compiled: list[Compiled]) -> Iterator[str]:
    """The table. ``blocks/SM`` is what registers alone allow: a launch's shared memory may allow fewer."""
    for one in compiled:
        yield f"{one.name}.cu, sm_{one.arch}{': does not compile' if one.failed else ''}"
        rows = [
            (k.registers, k.threads, k.blocks, k.shared, k.stack, k.spills, k.name)
            for k in one.kernels
        ]
        if rows:
            yield "  " + "  ".join(COLUMNS)
        for row in rows:
            cells = (str(cell).rjust(len(head)) for cell, head in zip(row, COLUMNS, strict=False))
            yield f"  {'  '.join(cells)}  {row[-1]}"
        yield from (f"  ! {line}" for line in one.complaints)


def is_sound(one: Compiled) -> bool:
    """It compiles without a complaint, into kernels that keep all in registers."""
    in_registers = not any(k.spills or k.stack for k in one.kernels)
    return in_registers and not one.failed and not one.complaints


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.resources", description=__doc__)
    parser.add_argument("names", nargs="*", help="of csrc/cuda/NAME.cu; all by default")
    parser.add_argument("--archs", nargs="+", default=list(ARCHS), help=", ".join(ALL_ARCHS))
    options = parser.parse_args(arguments)
    if nvcc() is None:
        print("resources: needs nvcc", file=sys.stderr)
        return 2
    names = {source.relative_to(CUDA).with_suffix("").as_posix(): source for source in sources()}
    if unknown := [name for name in options.names if name not in names]:
        print(f"resources: no csrc/cuda/{unknown[0]}.cu", file=sys.stderr)
        return 2
    chosen = [names[name] for name in options.names] or list(names.values())
    compiled = compile_all(options.archs, chosen)
    print("\n".join(lines(compiled)))
    return 0 if all(map(is_sound, compiled)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
