"""Shared by all tests: one thread a test process is enough, and a held-out scene to ask about."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from afnext.training.synthesis.banks import Banks

# How long an example takes is the machine's affair.
settings.register_profile("afnext", deadline=None)
settings.load_profile("afnext")


def pytest_collection_finish() -> None:
    """What is there before the first test stays: a collection that looks through all of it takes a second,
    in which every thread stands still.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out synthesised scene of 8 s, as a WAV file: nano was not trained on its seed."""
    import soundfile

    from afnext.training.synthesis.banks import Banks
    from afnext.training.synthesis.dataset import SceneSet
    from afnext.training.synthesis.sounds import SAMPLE_RATE

    path = tmp_path_factory.mktemp("scene") / "scene.wav"
    no_banks = Banks(path.parent)  # sounds need none
    scene, _ = SceneSet("sounds", 1, 8.0, 8.0).scene(424242, 0, no_banks)
    soundfile.write(path, scene.samples, SAMPLE_RATE)
    return path


@pytest.fixture(scope="session")
def banks(tmp_path_factory: pytest.TempPathFactory) -> Banks:
    """Speech and notes as training sets have them, made without the programs of the operating system."""
    from tests.training.banks import make_banks

    return make_banks(tmp_path_factory.mktemp("banks"))


@pytest.fixture(scope="session")
def held_out_banks(tmp_path_factory: pytest.TempPathFactory) -> Banks:
    from tests.training.banks import make_banks

    return make_banks(tmp_path_factory.mktemp("held-out"), held_out=True)
