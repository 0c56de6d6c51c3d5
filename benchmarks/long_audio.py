"""Half an hour in one file: memory beyond weights, keys and values; the first token, and where its time goes.

Then ten minutes that another process was asked about, with what it left on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile

from .models.folder import write_folder
from .models.released import AUDIO, TEXT, geometry
from .process import GIB, Peak, anonymous, in_fresh_process
from .results import Failure, Table

MINUTES, QUICK_MINUTES = 30, 5
YESTERDAY = 10  # minutes that were asked about before
RATE = 44_100
LIMIT = 1.0  # GiB beyond weights, keys and values
ROOM = 1.1  # of the sum of its parts, which overlap, that the first token may take
LAYERS = 4  # of the released model's decoder, and of its encoder
TOKENS = 33  # that are said
FORMATS = {"tokens": ",.0f", "of its parts": ".2f", "memory beyond, GiB": ".2f"}
QUESTION = "What happens in this recording?"


def write_recording(path: Path, minutes: float, channels: int = 2, seed: int = 0) -> None:
    """Noise that swells once a second, 44.1 kHz, 16 bits; the format is the name's."""
    rng = np.random.default_rng(seed)
    swell = np.sin(np.linspace(0, np.pi, RATE, dtype=np.float32))[:, None] * 0.1
    with soundfile.SoundFile(path, "w", RATE, channels) as file:
        for _ in range(round(minutes * 60)):
            file.write(rng.standard_normal((RATE, channels), np.float32) * swell)


def measure(model: str | Path, recording: Path, disk: Path | None = None) -> dict[str, float]:
    """Ask about ``recording`` in a fresh process, with a disk cache if there is a folder for it."""
    try:
        found: dict[str, float] = in_fresh_process(_ask, model, recording, disk)
    except EOFError:
        raise RuntimeError(f"long_audio: asking {model} failed") from None
    return found


def _ask(pipe: Connection, folder: str | Path, recording: Path, disk: Path | None) -> None:
    import afnext
    from afnext.engine.engine import PAGE_SIZE

    model = afnext.load(folder, disk_cache=disk)
    model.ask(np.zeros(16_000, np.float32), QUESTION, max_tokens=1)  # weights are where they stay
    model.engine.clear_caches()
    before = anonymous()
    with Peak() as peak:
        reply = model.ask(recording, QUESTION, max_tokens=TOKENS)
    timings, usage = reply.timings, reply.usage
    tokens = usage.prompt_tokens + usage.completion_tokens
    cache = -(-tokens // PAGE_SIZE) * model.engine.page_bytes
    parts = timings.decode_audio + timings.mel + timings.encode + timings.prefill
    pipe.send(
        {
            "tokens": usage.prompt_tokens,
            "decode, s": timings.decode_audio,
            "mel, s": timings.mel,
            "encode, s": timings.encode,
            "prefill, s": timings.prefill,
            "first token, s": timings.first_token,
            "of its parts": timings.first_token / parts,
            "tokens/s": timings.tokens_per_second,
            "keys and values, GiB": cache / GIB,
            "memory beyond, GiB": (peak.bytes - before - cache) / GIB,
        }
    )


def outcomes(quick: bool) -> Iterator[Table | Failure]:
    """nano about a FLAC and an MP3, and the released geometry's first layers about the FLAC."""
    minutes = QUICK_MINUTES if quick else MINUTES
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flac, mp3 = folder / "long.flac", folder / "long.mp3"
        for path in (flac, mp3):
            write_recording(path, minutes)
            yield from _told(f"nano, {minutes} min", path.suffix, measure("nano", path))
        if not quick:
            text = replace(TEXT, num_hidden_layers=LAYERS)
            write_folder(folder / "7B", geometry(text, replace(AUDIO, num_hidden_layers=LAYERS)))
            name = f"7B, {LAYERS} of {TEXT.num_hidden_layers} layers, {minutes} min"
            yield from _told(name, flac.suffix, measure(folder / "7B", flac))
        short = folder / "yesterday.flac"
        write_recording(short, QUICK_MINUTES if quick else YESTERDAY)
        rows = {
            name: measure("nano", short, folder / "disk")
            for name in ("for the first time", "the next day")
        }
        yield Table("long_audio", "nano, a recording that was asked about before", rows, FORMATS)


def _told(name: str, format: str, figures: dict[str, float]) -> Iterator[Table | Failure]:
    rows = {f"44.1 kHz stereo {format[1:].upper()}": figures}
    yield Table("long_audio", f"{name}, the first token", rows, FORMATS)
    if (beyond := figures["memory beyond, GiB"]) > LIMIT:
        yield Failure("long_audio", name, f"{beyond:.2f} GiB, not {LIMIT:g} GiB")
    if (share := figures["of its parts"]) > ROOM:
        yield Failure("long_audio", name, f"the first token takes {share:.2f} times its parts")
