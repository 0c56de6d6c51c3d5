"""Memory and time of loading the whole 7B geometry from disk, and its decode speed; writes 16.5 GB.

``python -m benchmarks.memory --folder weights`` keeps the folder for another run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from . import machine
from .results import duration, write

SHARD_BYTES = 5_000_000_000
BLOCK = 1 << 24  # random numbers that all weights are made of
STEPS = 8
STATUS = Path("/proc/self/status")
GIB = 1 << 30


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file to be: its name, its shape and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    start: int
    end: int


def write_folder(folder: Path, config: Any) -> None:
    """A model folder in the published layout with random bfloat16 weights, written as a stream.

    The tokenizer and the chat template are nano's, the audio tokens the ones that it knows.
    """
    import torch

    from afnext.hub import find_model
    from afnext.model import AudioLanguageModel, ModelConfig

    nano = find_model("nano")
    known = ModelConfig.from_folder(nano)
    config = replace(
        config,
        audio_token_id=known.audio_token_id,
        audio_bos_token_id=known.audio_bos_token_id,
        audio_eos_token_id=known.audio_eos_token_id,
        dtype="bfloat16",
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(nano / file, folder / file)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in AudioLanguageModel(config).state_dict().items()}
    files = _layout(shapes)
    generator = torch.Generator().manual_seed(0)
    block = torch.empty(BLOCK).normal_(0.0, 0.02, generator=generator).bfloat16()
    weights = block.view(torch.int16).numpy().tobytes()
    ones = torch.ones(1, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    for name, tensors in files.items():
        _write_file(folder / name, tensors, weights, ones)
    index = {"metadata": {}, "weight_map": {t.name: f for f, ts in files.items() for t in ts}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    # Last, as it makes the folder a whole one.
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2))


def _layout(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[Tensor]]:
    """Tensors in their order, by file."""
    files: list[list[Tensor]] = [[]]
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        start = files[-1][-1].end if files[-1] else 0
        if files[-1] and start + size > SHARD_BYTES:
            files.append([])
            start = 0
        files[-1].append(Tensor(name, shape, start, start + size))
    return {f"model-{i + 1:05d}-of-{len(files):05d}.safetensors": f for i, f in enumerate(files)}


def _write_file(path: Path, tensors: list[Tensor], weights: bytes, ones: bytes) -> None:
    """One safetensors file: the length of its header, the header, and bytes."""
    header = {
        t.name: {"dtype": "BF16", "shape": t.shape, "data_offsets": [t.start, t.end]}
        for t in tensors
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 64 + 56)  # so that weights begin at a multiple of 64
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for number, tensor in enumerate(tensors):
            left = tensor.end - tensor.start
            norm = re.search(r"norm\.weight$", tensor.name) is not None
            at = number * 4096 % len(weights)
            while left:
                piece = ones * (left // 2) if norm else weights[at : at + left]
                file.write(piece)
                left -= len(piece)
                at = 0


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


class Peak:
    """The most anonymous memory that this process had within a ``with``, looked at every few ms."""

    bytes = 0

    def __enter__(self) -> Peak:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, anonymous())


def in_fresh_process(work: Callable[..., None], *arguments: object) -> Any:
    """What ``work(pipe, *arguments)`` sends through ``pipe``.

    Raises:
        EOFError: it ended without.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def measure(folder: Path, quantization: str | None) -> dict[str, Any]:
    """Load a folder and decode a few tokens, in a fresh process."""
    try:
        found: dict[str, Any] = in_fresh_process(_load, folder, quantization)
    except EOFError:
        raise RuntimeError(f"memory: loading {folder} failed") from None
    return found


def _load(pipe: Connection, folder: Path, quantization: str | None) -> None:
    import torch

    import afnext
    from afnext.engine.pages import Sequence as CachedSequence

    before = anonymous()
    start = time.perf_counter()
    with Peak() as peak:
        model = afnext.load(folder, quantization=quantization)
    loaded, held = time.perf_counter() - start, anonymous()
    runner = model.engine.runner
    sequence = CachedSequence(runner.new_pool(64, 32), 64)
    with torch.inference_mode():
        logits = runner.prefill(runner.embed(torch.arange(16)), sequence)
        runner.decode(int(logits.argmax()), sequence)
        start = time.perf_counter()
        for _ in range(STEPS):
            logits = runner.decode(int(logits.argmax()), sequence)
        step = (time.perf_counter() - start) / STEPS
    pipe.send(
        {
            "quantization": quantization,
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "load_seconds": loaded,
            "anonymous_before_bytes": before,
            "anonymous_peak_bytes": peak.bytes,
            "anonymous_loaded_bytes": held,
            "tokens_per_second": 1 / step,
            "bytes_per_second": runner.bytes_per_token / step,
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what each format takes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--folder", type=Path, help="where the weights are, or are to stay")
    parser.add_argument("--formats", nargs="+", default=["int4"], choices=["int8", "int4"])
    parser.add_argument("--json", type=Path, help="write the results there too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "config.json").exists():
            from .models.released import geometry

            start = time.perf_counter()
            write_folder(folder, geometry())
            print(f" wrote random weights to {folder} in {duration(time.perf_counter() - start)}")
        results = [measure(folder, quantization) for quantization in options.formats]
    for found in results:
        print(
            f" {found['quantization']}, {found['parameters'] / 1e9:.2f} billion parameters: loaded in "
            f"{duration(found['load_seconds'])}; anonymous memory "
            f"{found['anonymous_peak_bytes'] / GIB:.2f} GiB at its peak, "
            f"{found['anonymous_loaded_bytes'] / GIB:.2f} GiB then; "
            f"{found['tokens_per_second']:.3g} tokens/s, {found['bytes_per_second'] / 1e9:.3g} GB/s"
        )
    if options.json is not None:
        write(options.json, {"machine": machine.describe(), "results": results})


def run() -> None:
    """The default: int4, in a temporary folder."""
    main([])


if __name__ == "__main__":
    main(sys.argv[1:])
