"""``python -m afnext.training.synthesis scene.flac``: one scene, and on standard output what is in it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from afnext.training.synthesis import banks
from afnext.training.synthesis.scenes import KINDS, compose
from afnext.training.synthesis.sounds import SAMPLE_RATE
from afnext.training.tasks.script import script


def main(arguments: list[str] | None = None) -> None:
    """Write a scene of held-out voices and instruments, which no training set has."""
    parser = argparse.ArgumentParser(
        prog="python -m afnext.training.synthesis", description=main.__doc__
    )
    parser.add_argument("path", type=Path, help="what to write: .wav, .flac or .ogg")
    parser.add_argument(
        "--kind", choices=list(KINDS), default="mixed", help="what is heard (default: mixed)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="its length (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="another scene each (default: 0)")
    parser.add_argument("--banks", help="folder for voices and instruments, kept between calls")
    parser.add_argument(
        "--sentences", type=int, default=100, help="that voices say, to draw from (default: 100)"
    )
    options = parser.parse_args(arguments)
    if options.path.suffix.lower() not in (".wav", ".flac", ".ogg"):
        parser.error(f"path: must end in .wav, .flac or .ogg, got {options.path}")
    if not options.path.parent.is_dir():
        parser.error(f"path: there is no folder {options.path.parent}")
    if options.seconds <= 0:
        parser.error(f"--seconds: must be above 0, got {options.seconds:g}")
    with tempfile.TemporaryDirectory() as folder:
        where = Path(options.banks or folder)
        *_, (_, made) = banks.make(where, "held-out", options.sentences, options.seed)
        assert made is not None
        scene = compose(options.kind, options.seconds, np.random.default_rng(options.seed), made)
    soundfile.write(options.path, scene.samples, SAMPLE_RATE)
    print(script(scene))


if __name__ == "__main__":
    main()
