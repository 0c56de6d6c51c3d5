"""A recipe small enough to run in seconds, and its pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from afnext.training.config import (
    DataConfig,
    LossWeights,
    MixPhase,
    ModelShape,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)
from afnext.training.data import Vocabulary
from afnext.training.synthesis import ClipSet, generate, open_clips
from afnext.training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def words() -> TokenizerConfig:
    return TokenizerConfig(pieces=700, clips=300)


@pytest.fixture(scope="session")
def vocab(words: TokenizerConfig) -> Vocabulary:
    return Vocabulary(train_tokenizer(words.pieces, words.clips, words.seed))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ClipSet]:
    folder = tmp_path_factory.mktemp("clips")
    list(generate(folder, {2.0: 6, 3.1: 4}, seed=3))
    return open_clips(folder)


@pytest.fixture
def recipe(words: TokenizerConfig) -> TrainConfig:
    mix = [MixPhase(1.0, {"2-4": 1.0})]
    small = {"audio_tokens": 100, "questions": 2, "warmup_steps": 2, "learning_rate": 1e-3}
    return TrainConfig(
        name="tiny",
        data=DataConfig(seed=1, clips={2.0: 6}),
        held_out=DataConfig(seed=2, clips={2.0: 4}),
        tokenizer=words,
        model=ModelShape(
            audio_width=32, audio_layers=1, audio_heads=2, audio_ffn=48,
            width=32, layers=3, heads=2, kv_heads=1, ffn=48,
        ),
        stages=[
            StageConfig("ears", 3, "audio_tower|head", mix, LossWeights(0.0, 1.0, 0.0), **small),
            StageConfig("joint", 4, ".", mix, **small),
        ],
        bf16=False,
        workers=1,
        evaluate_every=4,
        save_every=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")
