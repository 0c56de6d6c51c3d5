"""The most memory that a piece of Python takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

# Not ru_maxrss, which begins at what the parent had at most.
READ = """
def high_water():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])
"""


def grown(before: str, code: str, *arguments: object) -> int:
    """kB by which the high-water mark rises in ``code``, over where ``before`` (imports, warming up) left
    it; ``arguments`` are its ``sys.argv[1:]``. Linux alone.
    """
    program = f"{READ}{before}\nreached = high_water()\n{code}\nprint(high_water() - reached)"
    run = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=600)
    return int(done.stdout)
