"""The loop: it learns, it resumes where it stopped, and what it writes loads here and in transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afnext.errors import AfnextError, CheckpointError
from afnext.model import AudioLanguageModel
from afnext.training import loop, state
from afnext.training.config import TrainConfig


def _log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_from_data_to_model_folder(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    folder = loop.train(recipe, tmp_path, data=shared_data)
    kinds = [r["kind"] for r in _log(tmp_path)]
    assert kinds[0] == "start"
    assert "held-out" in kinds
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    net = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    saved = state.load(tmp_path / "checkpoint.pt")["weights"]
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, saved[f"net.{name}"])
    with pytest.raises(AfnextError, match="resume it or choose another"):
        loop.train(recipe, tmp_path, data=shared_data)


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken in each stage; weights are bit-equal, so optimizer, data and schedule all resumed."""
    whole = loop.train(recipe, tmp_path / "whole", data=shared_data)
    draw, broken = loop.draw, tmp_path / "broken"
    for stage, stop in (("ears", 2), ("joint", 3)):

        def fails(sets, at, step, *rest, stage=stage, stop=stop):
            if (at.name, step) == (stage, stop):
                raise KeyboardInterrupt
            return draw(sets, at, step, *rest)

        monkeypatch.setattr(loop, "draw", fails)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, broken, data=shared_data, resume=True)
    monkeypatch.setattr(loop, "draw", draw)
    resumed = loop.train(recipe, broken, data=shared_data, resume=True)
    a, b = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_stage_trains_what_it_names_and_nothing_else(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    start = loop.train(dataclasses.replace(recipe, stages=[]), tmp_path / "0", data=shared_data)
    ears = dataclasses.replace(recipe, stages=recipe.stages[:1])
    end = loop.train(ears, tmp_path / "1", data=shared_data)
    a, b = load_file(start / "model.safetensors"), load_file(end / "model.safetensors")
    for name in a:
        moved = not torch.equal(a[name], b[name])
        assert moved == (name.startswith("audio_tower") and "embed_positions" not in name), name


def test_the_frame_loss_falls(recipe: TrainConfig, tmp_path: Path, shared_data: Path) -> None:
    stage = dataclasses.replace(recipe.stages[0], steps=40, learning_rate=5e-3)
    run = dataclasses.replace(recipe, stages=[stage], evaluate_every=0, save_every=0)
    journal = loop.Journal(tmp_path / "log.jsonl", every=0.0)
    sets = loop._clips(run.data, shared_data / "train", 1, journal)
    loop.Run(run, tmp_path, sets, sets, journal).train()
    losses = [r["frame_loss"] for r in _log(tmp_path) if r["kind"] == "train"]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_damaged_checkpoint_is_refused_and_pickle_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot resume"):
        state.load(path)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"weights": Evil()}, path)
    with pytest.raises(CheckpointError):
        state.load(path)
    assert not marker.exists()


def test_transformers_gives_the_same_logits(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """The exported folder in transformers' own class: float32, so 1e-4 of the largest logit."""
    import numpy as np
    from transformers import MusicFlamingoForConditionalGeneration, WhisperFeatureExtractor

    from afnext.audio.windows import AudioWindow
    from afnext.model import AudioBatch

    folder = loop.train(recipe, tmp_path, data=shared_data)
    theirs = MusicFlamingoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    ours = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    samples = np.random.default_rng(0).standard_normal(40_000).astype(np.float32) * 0.1
    window = AudioWindow(samples, 0, len(samples))
    sound = ours.config.audio_token_id
    ids = torch.tensor([[1, 2, *[sound] * window.num_tokens, 3, 4, 5]])
    mel = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)(
        samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    with torch.no_grad():
        wanted = theirs(
            input_ids=ids,
            input_features=mel["input_features"],
            input_features_mask=mel["attention_mask"],
        ).logits
        got = ours(ids, AudioBatch.collate([[window]]))
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
