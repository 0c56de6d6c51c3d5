"""Loading all of 7B in int4 and int8: time and memory, quantised as it is read, and mapped the next time.

Writes 16.5 GB of random weights, and as much again in int8; ``python -m benchmarks.loading --folder weights``
keeps the folder for another run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from . import machine
from .models.folder import write_folder
from .models.released import NO_AUDIO, TEXT, geometry
from .process import GIB, Peak, anonymous, in_fresh_process
from .results import Failure, Table, document, duration, write
from .run import peaks_of

FORMATS = ("int4", "int8")
QUICK_LAYERS = 2  # of 28, with next to no encoder
STEPS = 8
LIMIT = {"int4": 7e9}  # bytes of anonymous memory at the peak
SOON = 3.0  # seconds that mapped weights may take
COLUMNS = {"seconds": ".3g", "anonymous at peak, GiB": ".2f", "then, GiB": ".2f"}


def measure(folder: Path, quantization: str | None) -> dict[str, float]:
    """Load a folder and decode a few tokens, in a fresh process."""
    try:
        found: dict[str, float] = in_fresh_process(_load, folder, quantization)
    except EOFError:
        raise RuntimeError(f"loading: {folder} cannot be loaded") from None
    return found


def _load(pipe: Connection, folder: Path, quantization: str | None) -> None:
    import torch

    import afnext
    from afnext.engine.pages import Sequence as CachedSequence

    start = time.perf_counter()
    with Peak() as peak:
        model = afnext.load(folder, quantization=quantization)
    loaded, held = time.perf_counter() - start, anonymous()
    runner = model.engine.runner
    sequence = CachedSequence(runner.new_pool(64, 32), 64)
    with torch.inference_mode():
        logits = runner.prefill(runner.embed(torch.arange(16)), sequence)
        first = time.perf_counter() - start
        runner.decode(int(logits.argmax()), sequence)
        start = time.perf_counter()
        for _ in range(STEPS):
            logits = runner.decode(int(logits.argmax()), sequence)
        step = (time.perf_counter() - start) / STEPS
    pipe.send(
        {
            "seconds": loaded,
            "anonymous at peak, GiB": peak.bytes / GIB,
            "then, GiB": held / GIB,
            "first token, s": first,
            "tokens/s": 1 / step,
            "GB/s": runner.bytes_per_token / step / 1e9,
        }
    )


def _convert(pipe: Connection, folder: Path, out: Path, quantization: str) -> None:
    from afnext.convert import convert

    start = time.perf_counter()
    with Peak() as peak:
        convert(folder, out, quantization=quantization)
    seconds = time.perf_counter() - start
    pipe.send(
        {
            "seconds": seconds,
            "anonymous at peak, GiB": peak.bytes / GIB,
            "then, GiB": anonymous() / GIB,
        }
    )


def evict(folder: Path) -> None:
    """Have the system forget what it holds in memory of the files below ``folder``."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def tables(folder: Path, quantization: str, scratch: Path) -> Iterator[Table | Failure]:
    """One format's figures; ``scratch`` is an empty folder for what is written."""
    parameters = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 2e9
    name = f"{quantization}, {parameters:.2f} billion parameters"
    converted, cache = scratch / "converted", scratch / "cache"
    with patch.dict(os.environ, {"AFNEXT_CACHE": str(cache)}):
        loads = {"quantised while it is read": measure(folder, quantization)}
        loads["the next time"] = measure(folder, quantization)
        shutil.rmtree(cache, ignore_errors=True)  # the disk need not hold both
        conversion = in_fresh_process(_convert, folder, converted, quantization)
        loads["converted"] = measure(converted, None)
        evict(scratch)
        loads["converted, nothing of it in memory"] = measure(converted, None)
    yield Table("loading", name, loads, COLUMNS)
    yield Table("loading", f"{name}, once", {"afnext convert": conversion}, COLUMNS)
    most = loads["quantised while it is read"]["anonymous at peak, GiB"] * GIB
    if most > (limit := LIMIT.get(quantization, most)):
        yield Failure("loading", name, f"{most / 1e9:.2f} GB at the peak, not {limit / 1e9:g} GB")
    for row, found in list(loads.items())[1:]:
        if found["seconds"] > SOON:
            yield Failure("loading", name, f"{row}: {found['seconds']:.2f} s, not {SOON:g} s")


def outcomes(
    quick: bool, folder: Path | None = None, formats: Sequence[str] = FORMATS
) -> Iterator[Table | Failure]:
    """Each format's figures, of a folder that is there or made for them; ``quick``: a few layers alone."""
    with TemporaryDirectory() as temporary:
        config = geometry()
        if quick:
            config = geometry(replace(TEXT, num_hidden_layers=QUICK_LAYERS), NO_AUDIO)
        folder = folder or Path(temporary) / "weights"
        if not (folder / "config.json").exists():
            start = time.perf_counter()
            write_folder(folder, config)
            taken = duration(time.perf_counter() - start)
            print(f" wrote random weights to {folder} in {taken}", flush=True)
        for quantization in formats:
            with TemporaryDirectory() as scratch:
                yield from tables(folder, quantization, Path(scratch))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what each format takes; 1 where one misses its limit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--folder", type=Path, help="where the weights are, or are to stay")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LAYERS} of 28 layers")
    parser.add_argument("--json", type=Path, help="write the results there too")
    options = parser.parse_args(arguments)
    found: list[Table] = []
    failures: list[Failure] = []
    for outcome in outcomes(options.quick, options.folder, options.formats):
        print(outcome, flush=True)
        if isinstance(outcome, Table):
            found.append(outcome)
        else:
            failures.append(outcome)
    if options.json is not None:
        about = machine.describe()
        write(options.json, document(about, peaks_of([]), [], failures, found, complete=True))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
