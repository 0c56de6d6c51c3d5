"""Log-mel, a vector's products and nano's decoding with AVX2 alone; peers keep all instructions.

What an older processor's kernels reach, measured on a newer one: our kernels are held to AVX2 by
``AFNEXT_CPU_ISA`` in a process of its own, and torch and transformers run beside them as ever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, replace

import torch

from afnext.ops import runtime

from . import decoder, log_mel, packed_linear
from .case import Case
from .results import Failure, Result, duration
from .run import measure

LEVEL = "avx2"
PRODUCT = (18944, 3584)  # N, K of 7B's gate or up projection


def limited() -> Iterator[Case]:
    """The cases, for the level in force."""
    for case in _cases():
        yield replace(case, label=f"{case.label}, {runtime.cpu_isa()} alone", slow=False)


def _cases() -> Iterator[Case]:
    yield replace(log_mel.recording(30), name="log-mel of 30 s")
    yield replace(log_mel.recording(1800), name="log-mel of 30 minutes")
    for dtype in (torch.bfloat16, torch.float32):
        yield replace(packed_linear.layer(1, *PRODUCT, dtype), rounds=15)
    yield from decoder.nano()


def outcomes(quick: bool) -> Iterator[Result | Failure]:
    """Every case as the other process measures it, and in the end where peers are faster."""
    if LEVEL not in runtime.available_cpu_isas():
        raise ValueError(f"this machine or build has no kernels for {LEVEL}")
    command = [sys.executable, "-m", f"{__package__}.isa", *(["--quick"] if quick else [])]
    environment = {**os.environ, "AFNEXT_CPU_ISA": LEVEL}
    verdicts = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            plain = json.loads(line)
            if "error" in plain:
                yield Failure(**plain)
                continue
            result = Result.from_dict(plain)
            verdicts.append(verdict(result))
            yield result
    if process.returncode != 0:
        raise RuntimeError(f"the process with {LEVEL} alone ended with {process.returncode}")
    print("\n".join(verdicts))


def verdict(result: Result) -> str:
    """One line: whether we are faster than the best of the peers, and by how much.

    Where the quartiles of the two overlap, neither is.
    """
    peer = result.best_peer
    assert peer is not None
    ours, theirs = result.ours.seconds, peer.seconds
    said = "as fast as"
    if ours.high < theirs.low:
        said = "faster than"
    elif theirs.high < ours.low:
        said = "slower than"
    times = f"{duration(ours.median)} and {duration(theirs.median)}"
    return f" {result.name}: {said} {peer.name} (x{peer.ratio:.3g}: {times})"


def main() -> None:
    """In the other process: one JSON object a line."""
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        for outcome in measure("isa", limited(), "--quick" in sys.argv):
            print(json.dumps(asdict(outcome)), file=out, flush=True)


if __name__ == "__main__":
    main()
