"""Our calls of some rows, one each, for a profiler that waits for ``cudaProfilerStart``:

    ncu --profile-from-start off --clock-control none --set full -o attention \\
        python -m benchmarks.gpu.profile 'attention tokens=8192'

The argument is a regular expression on rows' names, as that of ``python -m benchmarks gpu --only``.
"""

from __future__ import annotations

import re
import sys

import torch

from .build import load_module
from .lab import Lab


def main(pattern: str) -> None:
    load_module(cuda=True)
    from .rows import ROWS

    lab = Lab(rehearse=False)
    cudart = torch.cuda.cudart()
    for row in ROWS:
        if not re.search(pattern, row.title):
            continue
        case = row.case(lab)
        for _ in range(2):
            case.ours()
        lab.wait()
        cudart.cudaProfilerStart()
        with torch.cuda.nvtx.range(row.title):
            case.ours()
            lab.wait()
        cudart.cudaProfilerStop()
        del case
        lab.release()


if __name__ == "__main__":
    main(sys.argv[1])
