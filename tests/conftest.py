"""Shared by all tests: one thread a test process is enough, and a held-out scene to ask about."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out synthesised scene of 8 s, as a WAV file: nano was not trained on its seed."""
    import soundfile

    from afnext.training.synthesis import SAMPLE_RATE, clip

    path = tmp_path_factory.mktemp("scene") / "scene.wav"
    soundfile.write(path, clip(424242, 8.0, 0).samples, SAMPLE_RATE)
    return path
