"""The ablations: a variant changes what it says, and a study trains, shares, keeps and reports its runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from afnext.errors import AfnextError
from afnext.evaluation import ablations
from afnext.evaluation.ablations import LENGTHS, RECIPE, VARIANTS, Study, at_once
from afnext.model import AudioLanguageModel, ModelConfig
from afnext.training import load_recipe, loop
from afnext.training.config import (
    LossWeights,
    ModelShape,
    StageConfig,
    SynthesisConfig,
    TrainConfig,
    mixture_of,
)
from afnext.training.network.optimizer import parts_of
from afnext.training.synthesis.dataset import SceneSet

pytestmark = pytest.mark.slow


def changed(variant: str) -> dict[str, Any]:
    """Keys of the shipped recipe that a variant changes, with their values."""

    def flat(values: Any, where: str = "") -> dict[str, Any]:
        if isinstance(values, dict | list):
            items = values.items() if isinstance(values, dict) else enumerate(values)
            return {k: v for key, value in items for k, v in flat(value, f"{where}.{key}").items()}
        return {where[1:]: values}

    base = load_recipe(RECIPE)
    before = flat(dataclasses.asdict(base))
    after = flat(dataclasses.asdict(VARIANTS[variant].change(base)))
    assert before.keys() == after.keys()
    return {key: value for key, value in after.items() if value != before[key]}


def test_each_variant_changes_what_it_says_and_nothing_else() -> None:
    assert changed("base") == {}
    assert changed("rote-time") == {"model.rote": "time"}
    assert changed("rote-none") == {"model.rote": "none"}
    no_clock = {f"stages.{i}.losses.clock": 0.0 for i in (1, 2)}
    assert changed("no-clock") == no_clock
    assert changed("digits") == {"model.times": "digits"} | no_clock
    assert changed("direct") == {f"stages.{i}.answers": "direct" for i in range(3)}


def test_all_at_once_is_the_last_stage_on_the_tokens_of_all() -> None:
    base = load_recipe(RECIPE)
    found, last = at_once(base), base.stages[-1]
    (only,) = found.stages
    assert dataclasses.replace(found, stages=base.stages) == base
    tokens = {s.name: s.steps * s.batch_tokens for s in base.stages}
    total = sum(tokens.values())
    assert abs(only.steps * only.batch_tokens - total) <= only.batch_tokens / 2
    assert sum(only.mixture.values()) == pytest.approx(1)
    for name, share in only.mixture.items():
        of = {s.name: mixture_of(s, base.stages) for s in base.stages}
        wanted = sum(tokens[s] * m.get(name, 0) / sum(m.values()) for s, m in of.items())
        assert share == pytest.approx(wanted / total)
    assert only.train == {
        "multi_modal_projector": 2e-3, "language_model.*(layers|norm)": 2e-3,
        "embed_tokens|lm_head": 2e-3,
    }  # fmt: skip
    own = {"name": last.name, "steps": last.steps, "mixture": last.mixture, "train": last.train}
    assert dataclasses.replace(only, **own) == last


def test_the_recipe_fits_its_models_and_leaves_the_longest_recordings_unseen() -> None:
    with torch.device("meta"):
        net = AudioLanguageModel(ModelConfig.from_dict({"model_type": "musicflamingo"}))
    names = [n for n, _ in net.named_parameters() if "embed_positions" not in n]
    base = load_recipe(RECIPE)
    assert base.synthesis
    longest = max(s.longest for sets in base.synthesis.sets.values() for s in sets)
    assert longest <= max(stage.audio_seconds for stage in base.stages)
    assert [s.longest <= longest for s in LENGTHS.values()] == [True, True, True, False]
    assert LENGTHS["60 to 120 s"].shortest >= longest
    for variant in VARIANTS.values():
        config = variant.change(base)
        for stage in config.stages:
            parts_of(names, stage.train, stage.freeze)
            assert set(mixture_of(stage, config.stages)) <= set(base.synthesis.sets)


@pytest.fixture
def tiny() -> TrainConfig:
    """Two stages of two steps, on a few sounds."""

    def stage(name: str, freeze: list[str], train: list[str], losses: LossWeights) -> StageConfig:
        return StageConfig(
            name, 2, dict.fromkeys(train, 2e-3), {"short": 1.0}, freeze,
            batch_tokens=200, optimizer="muon", losses=losses,
        )  # fmt: skip

    return TrainConfig(
        name="tiny",
        stages=[
            stage("ears", ["projector", "language_model"], ["audio_tower", "heads"], LossWeights(0, 1)),
            stage("all", [], ["audio_tower", "projector", "language_model", "heads"],
                  LossWeights(1, 1, clock=1)),
        ],
        model=ModelShape(
            pieces=400, audio_width=32, audio_layers=1, audio_heads=2, audio_ffn=48,
            width=32, layers=1, heads=2, kv_heads=1, ffn=48,
        ),
        synthesis=SynthesisConfig(1, 0, {"short": [SceneSet("sounds", 6, 2.0, 3.0)]}),
        bf16=False, threads=1, workers=1, evaluate_every=0, save_every=1,
    )  # fmt: skip


def test_a_study_from_data_to_report(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's model is to the bit what its recipe makes."""
    lengths = {"2 to 10 s": SceneSet("sounds", 3, 2.0, 3.0)}
    study = Study(tiny, tmp_path / "out", tmp_path / "data", lengths)
    for variant in ("base", "digits", "at-once"):
        study.run(variant, 0)
    whole = loop.train(tiny, tmp_path / "whole", data=tmp_path / "data")
    a, b = (load_file(f / "model.safetensors") for f in (whole, study.out / "base" / "0" / "model"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    digits = ModelConfig.from_folder(study.out / "digits" / "0" / "model")
    assert digits.text.vocab_size == ModelConfig.from_folder(whole).text.vocab_size - 100

    again = Study(tiny, tmp_path / "out", tmp_path / "data", lengths)
    monkeypatch.setattr(loop.Run, "train", None)  # what is finished is not trained again
    again.run("base", 0)
    text = again.report()
    assert text == (study.out / "ablations.md").read_text()
    assert "| base | all at once | digits, no clock |" in text
    assert text.count("\n| ") == len(ablations.MEASURES) + 1
    found = json.loads((study.out / "ablations.json").read_text())
    assert found["seeds"] == {"base": [0], "at-once": [0], "digits": [0]}
    assert len(found["compared"]) == 3 * len(ablations.MEASURES)
    assert (study.out / "ablations.svg").read_text().startswith("<?xml")
    with pytest.raises(AfnextError, match="holds runs of another recipe"):
        Study(dataclasses.replace(tiny, seed=5), tmp_path / "out")


def test_a_run_that_was_broken_off_goes_on(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any stage: it ends with the weights of one that was not."""
    study = Study(tiny, tmp_path / "out", tmp_path / "data", {})
    monkeypatch.setattr(study, "score", lambda model: {})
    losses = loop.Run.losses
    for name, last in (("ears", 1), ("all", 1)):

        def fails(run, batch, stage, name=name, last=last):  # type: ignore[no-untyped-def]
            if (stage.name, run.progress.step) == (name, last):
                raise KeyboardInterrupt
            return losses(run, batch, stage)

        monkeypatch.setattr(loop.Run, "losses", fails)
        with pytest.raises(KeyboardInterrupt):
            study.run("base", 0)
        assert study.finished() == {}
    monkeypatch.setattr(loop.Run, "losses", losses)
    study.run("base", 0)
    assert list(study.finished()["base"]) == [0]
    whole = loop.train(tiny, tmp_path / "whole", data=tmp_path / "data")
    a, b = (load_file(f / "model.safetensors") for f in (whole, study.out / "base" / "0" / "model"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_misuse_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    for arguments, why in (
        ([], "resume them or choose another folder"),
        (["--seeds", "0"], "--seeds must be 1 to 10"),
        (["--only", "all"], "invalid choice: 'all'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            ablations.main([str(tmp_path), *arguments])
        assert stopped.value.code == 2
        assert why in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds runs of another recipe"):
        ablations.main([str(tmp_path), "--resume"])
