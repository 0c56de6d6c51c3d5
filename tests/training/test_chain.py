"""nano's own chain, in small, on four processes that share long recordings: the losses are one process's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import afnext
from afnext.training import load_recipe
from afnext.training.config import (
    ModelShape,
    ParallelConfig,
    StageConfig,
    SynthesisConfig,
    TrainConfig,
)
from tests.parallel.processes import spawn
from tests.training.mesh_runs import losses_of

RECIPES = Path(afnext.__file__).parent / "recipes"
SHAPE = ModelShape(
    pieces=500, audio_width=32, audio_layers=1, audio_heads=2, audio_ffn=48,
    width=32, layers=2, heads=4, kv_heads=2, ffn=48,
)  # fmt: skip
CLOSE = 2e-5
"""By the order of sums, and what some steps of AdamW make of that: measured are 4e-7 to 7e-6 (of the
spelling, in the last step), depending on what is drawn."""


def smoke(parallel: ParallelConfig) -> TrainConfig:
    """All stages of the recipe with a small network, two steps each, on a few short recordings; the last one
    hears some of a minute, shared as ``parallel`` says."""
    chain = load_recipe(RECIPES / "nano")
    assert chain.synthesis is not None
    assert chain.held_out is not None

    def few(made: SynthesisConfig, count: int) -> SynthesisConfig:
        sets = {
            name: [replace(s, count=count, longest=s.shortest + 1) for s in scenes]
            for name, scenes in made.sets.items()
        }
        return replace(made, sets=sets, sentences=24)

    def short(stage: StageConfig) -> StageConfig:
        last = stage.name == "midtrain-2"
        made = replace(
            stage, steps=2, optimizer="adamw", accumulate=4, batch_tokens=600, warmup=0.0
        )
        return replace(made, accumulate=2, batch_tokens=2500, parallel=parallel) if last else made

    return replace(
        chain, stages=[short(stage) for stage in chain.stages], evaluate_every=2,
        synthesis=few(chain.synthesis, 3), held_out=few(chain.held_out, 1), bf16=False, threads=1,
        workers=1, save_every=0, model=SHAPE,
    )  # fmt: skip


@pytest.mark.sweep
def test_the_chain_on_four_processes_has_the_losses_of_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    config = smoke(ParallelConfig(ulysses=2, ring=2))
    alone = losses_of(config, tmp_path / "alone", data)
    assert len(alone) == 2 * len(config.stages)
    for answers in spawn(4, losses_of, config, tmp_path / "spread", data):
        for step, (found, wanted) in enumerate(zip(answers, alone, strict=True)):
            assert found == pytest.approx(wanted, rel=CLOSE), f"step {step}"
