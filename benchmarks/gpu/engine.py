"""The engine on a GPU at the released geometry, beside transformers: first tokens, streams, many at once.

    python -m benchmarks.gpu.engine [--json FILE] [--rehearse] [--only WORDS]

Weights are random, samples are noise. Times are of a wall clock, since tokens come to the host. Needs
transformers for the peer, tokenizers and safetensors beside torch.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .. import machine
from ..results import Failure, Result, document, result_of, table, write
from ..timing import alternate
from .__main__ import SAVED, slug
from .build import load_module
from .lab import Lab


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.engine", description=__doc__)
    parser.add_argument("--json", type=Path, help="where results go, if not benchmarks/results")
    parser.add_argument("--rehearse", action="store_true", help="a layer, on the CPU")
    parser.add_argument("--budget", type=float, default=240, help="seconds, about")
    parser.add_argument("--only", default="", help="a regular expression on rows' names")
    options = parser.parse_args(arguments)
    until = time.monotonic() + options.budget
    load_module(cuda=not options.rehearse)
    from .engine_rows import Bench, check_nano

    device = torch.device("cpu" if options.rehearse else "cuda")
    here: dict[str, Any] = machine.describe()
    path: Path | None = options.json
    if not options.rehearse:
        name = torch.cuda.get_device_name()
        here |= {"gpu": {"name": name}}
        path = path or SAVED / slug({"name": name}) / "engine.json"
    failures: list[Failure] = []
    results: list[Result] = []
    try:
        check_nano(device)
        print("nano's answers are right", flush=True)
    except Exception as error:
        failures.append(Failure.of("engine", "nano", error))
        print(f"FAILED {failures[-1]}", flush=True)
    peaks = Lab(options.rehearse).peaks
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        for case in Bench(options.rehearse, Path(folder)).cases():
            if not re.search(options.only, case.name):
                continue
            try:
                timings = alternate({case.label: case.ours, **case.peers}, rounds=case.rounds)
                results.append(result_of("engine", case, timings, peaks))
                print(table(results[-1]), flush=True)
            except Exception as error:
                failures.append(Failure.of("engine", case.name, error))
                print(f"FAILED {failures[-1]}", flush=True)
            if path is not None:
                write(path, document(here, peaks, results, failures, complete=False))
            if time.monotonic() > until:
                print("out of time", flush=True)
                break
    if path is not None:
        write(path, document(here, peaks, results, failures, complete=time.monotonic() <= until))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
