"""A recipe small enough to run in seconds, on banks made in NumPy."""

from __future__ import annotations

from pathlib import Path

import pytest

from afnext.training import loop
from afnext.training.config import (
    LossWeights,
    ModelShape,
    StageConfig,
    SynthesisConfig,
    TrainConfig,
)
from afnext.training.synthesis import banks
from afnext.training.synthesis.dataset import SceneSet
from tests.training.banks import make_once

SETS = {"short": [SceneSet("mixed", 8, 2.0, 4.0), SceneSet("sounds", 4, 2.0, 3.0)],
        "longer": [SceneSet("mixed", 2, 31.0, 33.0)]}  # fmt: skip


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where training sets are kept between tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def fake_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Banks without the operating system's programs."""
    monkeypatch.setattr(banks, "make", make_once)


def stage(name: str, train: list[str], freeze: list[str], **fields: object) -> StageConfig:
    """A stage of four small steps."""
    values: dict[str, object] = {"steps": 4, "mixture": {"short": 1.0}, "batch_tokens": 300}
    return StageConfig(name, train=dict.fromkeys(train, 2e-3), freeze=freeze, **(values | fields))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def recipe() -> TrainConfig:
    """Stages of every sort: the encoder by labels, the decoder by scripts, all by audio."""
    return TrainConfig(
        name="tiny",
        seed=3,
        model=ModelShape(
            pieces=500, audio_width=32, audio_layers=1, audio_heads=2, audio_ffn=48,
            width=32, layers=2, heads=2, kv_heads=1, ffn=48,
        ),
        synthesis=SynthesisConfig(1, 24, SETS),
        held_out=SynthesisConfig(2, 8, SETS, "held-out"),
        stages=[
            stage("ears", ["audio_tower", "heads"], ["projector", "language_model"],
                  losses=LossWeights(0.0, 1.0, 1.0), optimizer="muon"),
            stage("letters", ["language_model"], ["audio_tower", "projector", "heads"],
                  hearing="script"),
            stage("all", ["net", "heads"], [], mixture={"longer": 0.5}, mixture_of={"ears": 0.5},
                  audio_seconds=40.0, optimizer="muon", accumulate=2,
                  losses=LossWeights(1.0, 0.3, 0.3, 0.3, 1.0, 0.3, 0.2)),
        ],
        bf16=False,
        threads=1,
        workers=1,
        evaluate_every=4,
        save_every=1,
        export_dtype="float32",
    )  # fmt: skip


@pytest.fixture(scope="session")
def trained(
    recipe: TrainConfig, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run of ``recipe`` that nothing broke."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(banks, "make", make_once)
        loop.train(recipe, out, data=shared_data)
    return out
