"""A small byte-level BPE tokenizer with the tokens of the released models, and nano-like times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from afnext.audio.windows import WINDOW_SAMPLES, AudioWindow
from afnext.chat import Tokenizer

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<sound>",
    "<|sound_bos|>",
    "<|sound_eos|>",
)
PLAIN_ADDED = ("<t>", "</t>", "0.5", "1.5", "2.5")
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
}
CORPUS = [
    "user\nassistant\nsystem\n",
    "When does the dog bark? The dog barks at night. Größe 日本語 🎵",
] * 20


def make_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN_ADDED])
    return backend


def write_folder(folder: Path, **files: object) -> Path:
    """A model folder's texts; ``files`` maps "config" or "generation_config" to objects."""
    folder.mkdir(parents=True, exist_ok=True)
    make_backend().save(str(folder / "tokenizer.json"))
    for name, value in {"tokenizer_config": CONFIG, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="session")
def backend() -> Backend:
    return make_backend()


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    return write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="session")
def windows() -> Callable[[float], list[AudioWindow]]:
    """The windows of a silent recording of so many seconds."""
    return silent_windows


def silent_windows(seconds: float) -> list[AudioWindow]:
    samples = np.zeros(round(seconds * 16_000), np.float32)
    starts = range(0, max(1, len(samples)), WINDOW_SAMPLES)
    parts = [samples[s : s + WINDOW_SAMPLES] for s in starts]
    return [AudioWindow(p, s, len(p), 0) for p, s in zip(parts, starts, strict=True)]
